-- SPDX-License-Identifier: Apache-2.0
-- schema.lua - every option, one row: its name, what it may be, what it means.
--
-- A row: { name, default, doc, ... }, its kind taken from the default unless said, and
--   kind     string | integer | number | boolean | strings | table
--   min max  of a number; `words`: what it may be besides
--   choices  of a string; `like`: a pattern it fits, and `wants`, that in words
--   live     it can change while running: it means something to new requests only
--   env      environment variables that stand in for the default, first that is set
--   also     other names it is known by
--   unset    what happens while it has no value; for a computed default, what it computes
--   secret   never printed
--   address  may hold a user and a password, which are not printed
-- Names, meanings and defaults are vLLM's where vLLM has the option; a default that
-- differs says why beside it.

local machine = require "perilune.machine"

local top = {
  { "model", machine.fetched_model,
    "a GGUF file, a folder with config.json and safetensors, or Org/Name",
    kind = "string", env = { "PERILUNE_MODEL" },
    unset = "the model that ./dev run fetched" },
  { "served_model_name", nil, "names that requests may use; answers carry the first",
    kind = "strings", unset = "the name of the model's file or folder" },
  { "tokenizer", nil, "folder of tokenizer.json, where it is not with the model",
    kind = "string", unset = "the model's own" },
  { "chat_template", nil, "a Jinja file, or the template itself",
    kind = "string", unset = "the model's own" },
  { "generation_config", "auto",
    "sampling defaults: auto (generation_config.json beside the model), vllm (none), "
    .. "or a folder's" },
  { "override_generation_config", {}, "sampling defaults laid over generation_config" },
  { "hf_overrides", {}, "values laid over the model's config.json" },
  { "max_logprobs", 20, "most logprobs a request may ask for; -1: no limit",
    min = -1, live = true },
  { "log_level", "info", "what is logged", also = { "uvicorn_log_level" },
    choices = { "debug", "info", "warning", "error" }, live = true },
  { "log_format", "auto", "auto: text on a terminal, else JSON lines",
    choices = { "auto", "text", "json" } },
  { "disable_log_stats", false, "do not log throughput every ten seconds", live = true },
  { "metrics_endpoint_port", nil, "a worker's own port for /metrics, /health and /live",
    kind = "integer", min = 0, max = 65535, unset = "none" },
  { "migration_limit", 0, "how often a request may move when its worker is lost",
    min = 0, max = 2 ^ 32 - 1, live = true },
  { "migration_max_seq_len", nil, "tokens of prompt and answer beyond which none moves",
    kind = "integer", min = 1, max = 2 ^ 32 - 1, unset = "no limit", live = true },
  -- Dynamo's three. None, its word, takes back what a recipe or the environment says.
  { "active_decode_blocks_threshold", nil,
    "share of its KV blocks in use beyond which a worker is busy", kind = "number",
    min = 0, max = 1, words = { "None" }, unset = "no limit",
    env = { "DYN_ACTIVE_DECODE_BLOCKS_THRESHOLD" }, live = true },
  { "active_prefill_tokens_threshold", nil,
    "prompt tokens waiting for it beyond which a worker is busy", kind = "integer",
    min = 0, words = { "None" }, unset = "no limit",
    env = { "DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD" }, live = true },
  { "active_prefill_tokens_threshold_frac", nil,
    "the same as a multiple of max_num_batched_tokens", kind = "number", min = 0,
    words = { "None" }, unset = "no limit",
    env = { "DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD_FRAC" }, live = true },
  { "drain_timeout", 30, "seconds that a drain leaves to what runs before it moves",
    kind = "number", min = 0, live = true },
  { "canary_wait", nil, "seconds without a request after which a worker is tried",
    kind = "number", min = 0.1, unset = "never", live = true },
  { "allow_remote_console", false, "let consoles in over the bus", live = true },
  { "bus", nil, "NATS servers, with commas, by which processes find each other",
    kind = "string", env = { "PERILUNE_BUS", "NATS_SERVER" }, unset = "one process",
    address = true },
  { "namespace", "perilune", "who shares it on a bus sees each other",
    env = { "DYN_NAMESPACE" }, like = "^[%w_-]+$", wants = "letters, digits, - and _" },
  { "bus_user", nil, "user at the bus", kind = "string", unset = "none" },
  { "bus_password", nil, "password at the bus", kind = "string", unset = "none",
    env = { "PERILUNE_BUS_PASSWORD" }, secret = true },
  { "bus_token", nil, "token at the bus", kind = "string", unset = "none",
    env = { "PERILUNE_BUS_TOKEN" }, secret = true },
  { "bus_nkey_seed", nil, "file of the nkey's seed", kind = "string", unset = "none" },
  { "bus_credentials", nil, "file of a user's JWT and seed", kind = "string",
    unset = "none" },
  { "bus_tls_ca", nil, "PEM file of authorities trusted for the bus", kind = "string",
    unset = "the system's" },
  { "bus_tls_cert", nil, "PEM file of this process's certificate", kind = "string",
    unset = "none" },
  { "bus_tls_key", nil, "PEM file of its key", kind = "string", unset = "none" },
  { "lost_after", 2, "seconds of silence after which a process counts as lost",
    kind = "number", min = 0.2, max = 3600 },
  { "bus_patience", 30, "seconds that the bus may be away before all do",
    kind = "number", min = 0, max = 86400 },
}

local http = {
  -- vLLM: every network. Who wants to be open says so.
  { "host", "127.0.0.1", "address to listen at; 0.0.0.0 for every network" },
  { "port", 8000, "port to listen at; 0: any that is free", min = 0, max = 65535 },
  { "api_key", nil, "keys, one of which a request to /v1 must bring", kind = "strings",
    env = { "PERILUNE_API_KEY", "VLLM_API_KEY" }, unset = "open to all", secret = true,
    live = true },
  { "allowed_origins", { "*" }, "origins that browsers may call from (CORS)" },
  { "allowed_methods", { "*" }, "methods that they may use" },
  { "allowed_headers", { "*" }, "headers that they may send" },
  { "allow_credentials", false, "let browsers send cookies" },
  { "response_role", "assistant", "role of a chat's answer", live = true },
  { "return_tokens_as_token_ids", false, "show tokens of logprobs as token_id:N",
    live = true },
  { "enable_request_id_headers", false, "send X-Request-Id back", live = true },
  { "enable_prompt_tokens_details", false, "report cached tokens in usage", live = true },
  { "enable_force_include_usage", false, "report usage at the end of every stream",
    live = true },
  { "enable_server_load_tracking", false, "count requests under way at /load" },
  { "chat_template_content_format", "auto",
    "how templates get a content; auto: as the template reads it",
    choices = { "auto", "string", "openai" }, live = true },
  { "trust_request_chat_template", false, "let requests bring a chat_template",
    live = true },
  { "max_body_bytes", 64 * 2 ^ 20, "largest body of a request", min = 1024,
    max = 2 ^ 40 },
  { "h11_max_incomplete_event_size", 4 * 2 ^ 20, "largest head of a request, in bytes",
    min = 1024, max = 2 ^ 30 },
  { "h11_max_header_count", 256, "most headers of a request", min = 1, max = 2 ^ 16 },
  { "enable_log_requests", false, "log every request as it comes", live = true },
  { "request_timeout", 0, "seconds a request may take in all; 0: as long as it likes",
    kind = "number", min = 0, live = true },
  { "max_waiting", 8192, "requests that may wait while no worker takes any; else 503",
    min = 0, max = 2 ^ 20, live = true },
  { "overload_status", 503, "status of what is refused because all are busy", min = 400,
    max = 599, env = { "DYN_HTTP_OVERLOAD_STATUS_CODE" }, live = true },
  { "disable_frontend_admin_api", false, "do not serve /busy_threshold",
    env = { "DYN_DISABLE_FRONTEND_ADMIN_API" } },
  { "enable_dev_endpoints", false, "serve /reset_prefix_cache",
    env = { "VLLM_SERVER_DEV_MODE" } },
}

local pool = {
  { "count", 1, "workers in the pool; with a role named: in this process", min = 1,
    max = 64 },
  { "max_model_len", nil, "most tokens of prompt and answer; auto, -1: what memory holds",
    kind = "integer", min = 2, max = 2 ^ 24, words = { "auto", -1 },
    unset = "as the model was trained" },
  { "seed", 0, "what dummy weights are drawn from", min = 0 },
  { "load_format", "auto", "auto: from files; dummy: random weights, to measure with",
    choices = { "auto", "dummy" } },
  { "device", "auto", "where it runs; auto: on a GPU that can be used, else on the CPU; "
    .. "null answers at once and computes nothing",
    choices = { "auto", "cpu", "cuda", "null" } },
  { "threads", 0, "threads of the CPU device; 0: one per core", min = 0, max = 1024 },
  { "kernels", "auto", "instructions the CPU device may use; auto: the best there are",
    choices = { "auto", "scalar", "avx2", "avx512", "avx512bf16" } },
  { "activations", "auto", "arithmetic beside quantized weights; auto: int8x2, which "
    .. "answers as float32 does; int8: faster, but logprobs are off by up to 1.0",
    choices = { "auto", "float32", "int8x2", "int8" } },
  { "block_size", 16, "tokens in a block of the KV cache; a multiple of 16",
    min = 1, max = 1024 },
  -- vLLM takes nine tenths of a device that it has to itself. A laptop is shared.
  { "kv_cache_memory_bytes", machine.kv_bytes, "memory of the KV cache", kind = "integer",
    min = 1, unset = "4 GiB, or a quarter of memory where that is less" },
  { "num_kv_blocks", nil, "blocks in the KV cache, whatever the memory",
    kind = "integer", min = 2, max = 2 ^ 24, also = { "num_gpu_blocks_override" },
    unset = "as many as kv_cache_memory_bytes holds" },
  { "kv_cache_dtype", "auto", "type of keys and values in the cache; auto: int16, with a "
    .. "scale for each head of a token",
    choices = { "auto", "float32", "int16" } },
  { "enable_prefix_caching", true, "reuse the KV blocks of a prompt seen before" },
  -- vLLM: sha256, which hashes what Python's pickle writes; CBOR is anybody's.
  { "prefix_caching_hash_algo", "sha256_cbor", "what names a block",
    choices = { "sha256_cbor", "sha256", "xxhash_cbor" } },
  -- vLLM: 2048 and more. A CPU's arithmetic is saturated by far fewer rows, and all who
  -- are being answered wait for the step: 512 bounds their wait and costs no throughput.
  { "max_num_batched_tokens", 512, "tokens in one step", min = 1, max = 2 ^ 20 },
  { "max_num_seqs", 256, "sequences that run at once", min = 1, max = 65536 },
  { "enable_chunked_prefill", true, "read a long prompt in several steps" },
  { "long_prefill_token_threshold", 0, "most tokens of one prompt in a step; 0: all",
    min = 0, max = 2 ^ 24 },
  { "scheduling_policy", "fcfs", "who is first: who came first, or the lowest priority",
    choices = { "fcfs", "priority" } },
  { "stream_interval", 1, "tokens between two events of a stream", min = 1, max = 2 ^ 24,
    live = true },
}

local M = {
  sections = { "top", "http", "pool" },
  rows = { top = top, http = http, pool = pool },
  pools = { worker = true, prefill = true, decode = true },
  -- Hooks: where they may stand, and what they are asked.
  hooks = {
    top = {
      admit = "may the request come in",
      migrate = "what if its worker dies",
      done = "told what became of it",
    },
    pool = {
      cost = "what a request would cost on a worker; the lowest takes it",
      pick = "which worker takes a request",
      split = "shall the prefill pool read the prompt",
    },
    http = {},
  },
}

local index = { top = {}, http = {}, pool = {} }

local function kind_of(default)
  if type(default) == "number" then return "integer" end
  if type(default) == "table" then return #default > 0 and "strings" or "table" end
  return type(default)
end

for _, section in ipairs(M.sections) do
  for _, row in ipairs(M.rows[section]) do
    row.name, row.default, row.doc, row.section = row[1], row[2], row[3], section
    row.kind = row.kind or kind_of(row.default)
    index[section][row.name] = row
    for _, other in ipairs(row.also or {}) do index[section][other] = row end
  end
end

-- The row of a name in a section, or in any: nil where there is none.
function M.find(name, section)
  if section then return index[section][name] end
  return index.top[name] or index.http[name] or index.pool[name]
end

-- The section that a key of the recipe's top level opens, or nil.
function M.section_of(key)
  if key == "http" then return "http" end
  return M.pools[key] and "pool" or nil
end

-- Every name that may stand in a section, hooks too.
function M.names(section)
  local names = {}
  for name in pairs(index[section]) do names[#names + 1] = name end
  for name in pairs(M.hooks[section]) do names[#names + 1] = name end
  table.sort(names)
  return names
end

-- A row's default as a value of the caller's own.
function M.default(row)
  local v = row.default
  if type(v) == "function" then return v() end
  if type(v) ~= "table" then return v end
  local copy = {}
  for k, item in pairs(v) do copy[k] = item end
  return copy
end

return M
