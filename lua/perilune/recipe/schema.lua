-- SPDX-License-Identifier: Apache-2.0
-- recipe/schema.lua - every option, one row: its name, its possible values, its meaning.
--
-- A row: { name, default, doc, ... }; its kind is taken from the default unless given:
--   kind     string | integer | number | boolean | strings | table
--   min max  of a number; `words`: other values it may have
--   choices  of a string; `like`: a pattern it must match, and `wants`, that in words
--   live     it can change while running, because it affects new requests only
--   env      environment variables that override the default; the first set one wins
--   also     other names for it
--   unset    what applies while it has no value; for a computed default, the computation
--   secret   never printed
--   address  may contain a user and password, which are not printed
-- Names, meanings and defaults are vLLM's if vLLM has the option; a comment explains each
-- default that differs.

local machine = require "perilune.recipe.machine"

local top = {
  { "model", machine.fetched_model,
    "a GGUF file, a folder with config.json and safetensors, or Org/Name",
    kind = "string", env = { "PERILUNE_MODEL" },
    unset = "the model that ./dev run downloaded" },
  { "served_model_name", nil, "names for requests; answers contain the first",
    kind = "strings", unset = "the name of the model's file or folder" },
  { "tokenizer", nil, "folder with tokenizer.json, if it is not with the model",
    kind = "string", unset = "the model's own" },
  { "chat_template", nil, "a Jinja file, or the template itself",
    kind = "string", unset = "the model's own" },
  { "generation_config", "auto",
    "sampling defaults: auto (generation_config.json next to the model), vllm (none), "
    .. "or a folder that contains one" },
  { "override_generation_config", {},
    "sampling defaults that override generation_config" },
  { "hf_overrides", {}, "values that override the model's config.json" },
  { "max_logprobs", 20, "most logprobs a request may ask for; -1: no limit",
    min = -1, live = true },
  { "log_level", "info", "lowest level that is logged", also = { "uvicorn_log_level" },
    choices = { "debug", "info", "warning", "error" }, live = true },
  { "log_format", "auto", "auto: text on a terminal, JSON lines otherwise",
    choices = { "auto", "text", "json" } },
  { "disable_log_stats", false, "do not log throughput every ten seconds", live = true },
  { "metrics_endpoint_port", nil, "a worker's own port for /metrics, /health and /live",
    kind = "integer", min = 0, max = 65535, unset = "none" },
  { "migration_limit", 0, "how often a request may move when its worker is lost",
    min = 0, max = 2 ^ 32 - 1, live = true },
  { "migration_max_seq_len", nil, "longest request, prompt and answer, that may move",
    kind = "integer", min = 1, max = 2 ^ 32 - 1, unset = "no limit", live = true },
  -- Dynamo's three. None, as in Dynamo, cancels what a recipe or the environment sets.
  { "active_decode_blocks_threshold", nil,
    "a worker is busy above this share of KV blocks in use", kind = "number",
    min = 0, max = 1, words = { "None" }, unset = "no limit",
    env = { "DYN_ACTIVE_DECODE_BLOCKS_THRESHOLD" }, live = true },
  { "active_prefill_tokens_threshold", nil,
    "a worker is busy if more prompt tokens than this wait for it", kind = "integer",
    min = 0, words = { "None" }, unset = "no limit",
    env = { "DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD" }, live = true },
  { "active_prefill_tokens_threshold_frac", nil,
    "the same as a multiple of max_num_batched_tokens", kind = "number", min = 0,
    words = { "None" }, unset = "no limit",
    env = { "DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD_FRAC" }, live = true },
  { "drain_timeout", 30, "seconds a drain lets requests run before it moves them",
    kind = "number", min = 0, live = true },
  { "canary_wait", nil, "seconds of idling after which an engine is checked",
    kind = "number", min = 0.1, unset = "never", live = true },
  { "allow_remote_console", false, "let consoles connect over the bus", live = true },
  { "bus", nil, "NATS servers, comma-separated, that connect processes",
    kind = "string", env = { "PERILUNE_BUS", "NATS_SERVER" }, unset = "one process",
    address = true },
  { "namespace", "perilune", "processes with the same one see each other on a bus",
    env = { "DYN_NAMESPACE" }, like = "^[%w_-]+$", wants = "letters, digits, - and _" },
  { "bus_user", nil, "user name for the bus", kind = "string", unset = "none" },
  { "bus_password", nil, "password for the bus", kind = "string", unset = "none",
    env = { "PERILUNE_BUS_PASSWORD" }, secret = true },
  { "bus_token", nil, "token for the bus", kind = "string", unset = "none",
    env = { "PERILUNE_BUS_TOKEN" }, secret = true },
  { "bus_nkey_seed", nil, "file with the nkey seed", kind = "string", unset = "none" },
  { "bus_credentials", nil, "file with a user's JWT and seed", kind = "string",
    unset = "none" },
  { "bus_tls_ca", nil, "PEM file with the CAs trusted for the bus", kind = "string",
    unset = "the system's" },
  { "bus_tls_cert", nil, "PEM file with this process's certificate", kind = "string",
    unset = "none" },
  { "bus_tls_key", nil, "PEM file with its key", kind = "string", unset = "none" },
  { "lost_after", 2, "seconds of silence after which a process counts as lost",
    kind = "number", min = 0.2, max = 3600 },
  { "bus_patience", 30, "seconds the bus may be away before all processes count as lost",
    kind = "number", min = 0, max = 86400 },
}

local http = {
  -- vLLM listens on every network. Here that must be asked for.
  { "host", "127.0.0.1", "address to listen on; 0.0.0.0: every network" },
  { "port", 8000, "port to listen on; 0: any free one", min = 0, max = 65535 },
  { "api_key", nil, "keys, one of which a request to /v1 must send", kind = "strings",
    env = { "PERILUNE_API_KEY", "VLLM_API_KEY" }, unset = "open to all", secret = true,
    live = true },
  { "allowed_origins", { "*" }, "origins that browsers may call from (CORS)" },
  { "allowed_methods", { "*" }, "methods that browsers may use" },
  { "allowed_headers", { "*" }, "headers that browsers may send" },
  { "allow_credentials", false, "allow browsers to send cookies" },
  { "response_role", "assistant", "role of the messages in chat answers", live = true },
  { "return_tokens_as_token_ids", false, "show tokens in logprobs as token_id:N",
    live = true },
  { "enable_request_id_headers", false, "send X-Request-Id back", live = true },
  { "enable_prompt_tokens_details", false, "report cached tokens in usage", live = true },
  { "enable_force_include_usage", false, "report usage at the end of every stream",
    live = true },
  { "enable_server_load_tracking", false, "count the requests under way for /load" },
  { "chat_template_content_format", "auto",
    "form in which templates get content; auto: the form the template reads",
    choices = { "auto", "string", "openai" }, live = true },
  { "trust_request_chat_template", false, "accept a chat_template in requests",
    live = true },
  { "max_body_bytes", 64 * 2 ^ 20, "maximum size of a request body", min = 1024,
    max = 2 ^ 40 },
  { "h11_max_incomplete_event_size", 4 * 2 ^ 20, "largest headers of a request, in bytes",
    min = 1024, max = 2 ^ 30 },
  { "h11_max_header_count", 256, "most headers in a request", min = 1, max = 2 ^ 16 },
  { "enable_log_requests", false, "log every request when it arrives", live = true },
  { "request_timeout", 0, "seconds a request may take in total; 0: no limit",
    kind = "number", min = 0, live = true },
  { "max_waiting", 8192, "requests that may wait for a worker; more get 503",
    min = 0, max = 2 ^ 20, live = true },
  { "overload_status", 503, "status of refusals because all workers are busy", min = 400,
    max = 599, env = { "DYN_HTTP_OVERLOAD_STATUS_CODE" }, live = true },
  { "disable_frontend_admin_api", false, "do not serve /busy_threshold",
    env = { "DYN_DISABLE_FRONTEND_ADMIN_API" } },
  { "enable_dev_endpoints", false, "serve /reset_prefix_cache",
    env = { "VLLM_SERVER_DEV_MODE" } },
}

local pool = {
  { "count", 1, "workers in the pool; with a role given, in this process", min = 1,
    max = 64 },
  { "max_model_len", nil, "most tokens of prompt and answer; auto, -1: what memory holds",
    kind = "integer", min = 2, max = 2 ^ 24, words = { "auto", -1 },
    unset = "as the model was trained" },
  { "seed", 0, "seed of dummy weights", min = 0 },
  { "load_format", "auto", "auto: from files; dummy: random weights, for benchmarks",
    choices = { "auto", "dummy" } },
  { "device", "auto", "where to run; auto: on a usable GPU, otherwise on the CPU; "
    .. "null computes nothing and answers at once",
    choices = { "auto", "cpu", "cuda", "null" } },
  { "threads", 0, "threads of the CPU device; 0: one per core", min = 0, max = 1024 },
  { "kernels", "auto", "instruction set for the CPU device; auto: the best available",
    choices = { "auto", "scalar", "avx2", "avx512", "avx512bf16" } },
  { "activations", "auto", "arithmetic with quantized weights; auto: int8x2, which "
    .. "answers as float32 does; int8: faster, but logprobs are off by up to 1.0",
    choices = { "auto", "float32", "int8x2", "int8" } },
  { "block_size", 16, "tokens per block of the KV cache; a multiple of 16",
    min = 1, max = 1024 },
  -- vLLM takes nine tenths of a device that it has to itself. A CPU's memory is shared.
  { "kv_cache_memory_bytes", machine.kv_bytes, "memory of the KV cache", kind = "integer",
    min = 1, unset = "4 GiB, or a quarter of memory if that is less" },
  { "num_kv_blocks", nil, "blocks in the KV cache, regardless of kv_cache_memory_bytes",
    kind = "integer", min = 2, max = 2 ^ 24, also = { "num_gpu_blocks_override" },
    unset = "as many as kv_cache_memory_bytes holds" },
  { "kv_cache_dtype", "auto", "type of keys and values in the cache; auto: int16, with a "
    .. "scale per head and token",
    choices = { "auto", "float32", "int16" } },
  { "enable_prefix_caching", true, "reuse the KV blocks of prompts seen before" },
  -- vLLM: sha256, which hashes the output of Python's pickle; CBOR is a standard.
  { "prefix_caching_hash_algo", "sha256_cbor", "hash of a block",
    choices = { "sha256_cbor", "sha256", "xxhash_cbor" } },
  -- vLLM: 2048 and more. Far fewer rows saturate a CPU, and every running request waits
  -- for the step: 512 bounds that wait and costs no throughput.
  { "max_num_batched_tokens", 512, "maximum tokens in one step", min = 1, max = 2 ^ 20 },
  { "max_num_seqs", 256, "maximum sequences running at once", min = 1, max = 65536 },
  { "enable_chunked_prefill", true, "split a long prompt over several steps" },
  { "long_prefill_token_threshold", 0, "most tokens of one prompt in a step; 0: no limit",
    min = 0, max = 2 ^ 24 },
  { "scheduling_policy", "fcfs", "first come first served, or by priority, lowest first",
    choices = { "fcfs", "priority" } },
  { "stream_interval", 1, "tokens per event of a stream", min = 1, max = 2 ^ 24,
    live = true },
}

local M = {
  sections = { "top", "http", "pool" },
  rows = { top = top, http = http, pool = pool },
  pools = { worker = true, prefill = true, decode = true },
  -- Hooks: where they may be set, and what they decide.
  hooks = {
    top = {
      admit = "whether to accept a request",
      migrate = "what to do when its worker is lost",
      done = "called when it has ended",
    },
    pool = {
      cost = "the cost of a request on a worker; the cheapest takes it",
      pick = "which worker takes a request",
      split = "whether the prefill pool reads the prompt",
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

-- The row with this name in a section, or in any; nil if there is none.
function M.find(name, section)
  if section then return index[section][name] end
  return index.top[name] or index.http[name] or index.pool[name]
end

-- The section that a key of the recipe's top level opens, or nil.
function M.section_of(key)
  if key == "http" then return "http" end
  return M.pools[key] and "pool" or nil
end

-- Every name that may appear in a section, including hooks.
function M.names(section)
  local names = {}
  for name in pairs(index[section]) do names[#names + 1] = name end
  for name in pairs(M.hooks[section]) do names[#names + 1] = name end
  table.sort(names)
  return names
end

-- A row's default, as a copy for the caller.
function M.default(row)
  local v = row.default
  if type(v) == "function" then return v() end
  if type(v) ~= "table" then return v end
  local copy = {}
  for k, item in pairs(v) do copy[k] = item end
  return copy
end

return M
