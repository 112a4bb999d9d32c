-- SPDX-License-Identifier: Apache-2.0
-- fleet/upstream.lua - workers that are OpenAI servers elsewhere, of any make: what this
-- process knows of their model, how a request is put to them, and whether they are there.
--
--   away --/v1/models answers--> ready --fails twice, without progress--> away
--
-- How much a server has to do is what was sent there from here and, where it offers
-- vLLM's /metrics, what others have sent. What it has cached it says with vLLM's KV
-- events (kv_events); else it is guessed from what it was sent (fleet/sent.lua).

local pl = require "perilune.ffi"
local cjson = require "cjson.safe"
local cluster = require "perilune.fleet.cluster"
local flow = require "perilune.flow"
local log = require "perilune.log"
local urls = require "perilune.recipe.url"
local worker = require "perilune.fleet.worker"
local C, ffi = pl.C, pl.ffi

local M = {}

local new_request, len_out = ffi.typeof "pl_relay_request", ffi.new "size_t[1]"

-- How often a server is asked how it is; how long it has to say so; how often that may
-- fail before it counts as away.
local ASK_SECONDS, ANSWER_SECONDS, MAX_FAILURES = 1, 5, 2
-- Bytes of an answer about a server, and of one that is not streamed.
local MAX_ABOUT, MAX_ANSWER = 8 * 2 ^ 20, 256 * 2 ^ 20
-- What no such worker has: an id of its arithmetic. They are all alike in that.
local NUMERICS = "unknown"
-- Servers that take token ids for a prompt, by what /v1/models says of who owns a model.
local TAKES_IDS = { vllm = true, perilune = true, sglang = true }

-- ---- opening ------------------------------------------------------------------------

-- What a pool's servers serve: { desc, tokenizer, length, servers }; or nil and why.
function M.open(recipe)
  local pool = recipe.worker
  local desc, why = worker.describe(recipe, pool)
  if not desc then return nil, why end
  local tokenizer
  tokenizer, why = worker.tokenizer(recipe, desc)
  if not tokenizer then return nil, why end
  local length = tonumber(pool.max_model_len)
  local self = { desc = desc, tokenizer = tokenizer, servers = {}, workers = {},
    length = length and length > 0 and length or desc.max_positions }
  for i, url in ipairs(pool.upstream) do
    local parsed = assert(urls.parse(url))
    self.uses_tls = self.uses_tls or parsed.tls
    local events = type(pool.kv_events) == "table" and pool.kv_events[i] or nil
    self.servers[i] = { url = parsed, events = events,
      name = parsed.authority .. parsed.prefix,
      replay = pool.kv_events_replay and pool.kv_events_replay[i] or nil }
  end
  return self
end

-- After the runtime.
function M.close(self)
  for _, w in ipairs(self.workers) do C.pl_relay_close(w.asking) end
  C.pl_text_close(ffi.gc(self.tokenizer.text, nil))
end

-- What the servers have in common, as fleet/bus.lua has it of engines.
function M.terms(recipe, self, card)
  local pool = recipe.worker
  return { names = card.names, fingerprint = card.fingerprint, vocab = card.vocab,
    max_model_len = self.length, block_size = pool.block_size, numerics = NUMERICS,
    hash_algo = pool.prefix_caching_hash_algo, hash_seed = worker.hash_seed(),
    max_num_batched_tokens = pool.max_num_batched_tokens,
    prefix_caching = pool.enable_prefix_caching }
end

-- ---- asking about a server ----------------------------------------------------------

local function milliseconds(seconds)
  return math.max(1, math.min(seconds * 1e3, 2 ^ 31 - 1))
end

local function authorization(key)
  return key and "Authorization: Bearer " .. key .. "\r\n" or ""
end

local function request_to(w, method, path, headers, body)
  return ("%s %s%s HTTP/1.1\r\nHost: %s\r\n%s%s\r\n%s"):format(method, w.url.prefix, path,
    w.url.authority, headers, body and ("Content-Length: %d\r\n"):format(#body) or "",
    body or "")
end

-- Hands it over: a status.
local function send(relay, w, text, connect, first, between, max)
  local q = new_request()
  q.host, q.port, q.tls = w.url.host, w.url.port, w.url.tls and 1 or 0
  q.text, q.len = text, #text
  q.connect_ms, q.first_ms = milliseconds(connect), milliseconds(first)
  q.between_ms, q.max_body = milliseconds(between), max
  return C.pl_relay_send(relay, q)
end

-- A GET: its HTTP status and body; or nil and why.
local function get(w, path)
  local relay = C.pl_relay_open(w.rt, nil)
  local id = C.pl_relay_id(relay)
  w.asking = relay                          -- closed at the end, whenever that comes
  flow.listen(id, "answered")
  local text = request_to(w, "GET", path, authorization(w.key))
  local status, body, why
  if send(relay, w, text, ANSWER_SECONDS, ANSWER_SECONDS, ANSWER_SECONDS, MAX_ABOUT) >= 0
      and flow.await(id, "answered").a == 0 then
    status = C.pl_relay_status(relay)
    body = C.pl_relay_body(relay, len_out)
    body = ffi.string(body, len_out[0])
  else
    why = ffi.string(C.pl_relay_why(relay))
  end
  flow.forget(id, "answered")
  w.asking = nil
  C.pl_relay_close(relay)
  return status, body or why
end

-- The values of a metric whose labels hold this text, added up; nil: it is not there.
local function sum_of(text, name)
  local sum
  for value in text:gmatch("\n" .. name .. "{?[^\n]-}? ([%d.eE+-]+)") do
    sum = (sum or 0) + (tonumber(value) or 0)
  end
  return sum
end

local function label(text, name)
  local info = text:match "\nvllm:cache_config_info{([^\n]*)}"
  return info and (("," .. info):match("," .. name .. '="([^"]*)"'))
end

-- Takes up what a server's metrics say of its load.
local function count(w, text)
  text = "\n" .. text
  local running = sum_of(text, "vllm:num_requests_running")
  if not running then return false end
  local c = w.counts or ffi.new "pl_engine_stats"
  local blocks = tonumber(label(text, "num_gpu_blocks") or "") or 0
  local used = sum_of(text, "vllm:kv_cache_usage_perc") or 0
  c.running, c.waiting = running, sum_of(text, "vllm:num_requests_waiting") or 0
  c.blocks, c.blocks_used = blocks, math.min(used, 1) * blocks
  w.counts, w.others = c, math.max(0, c.running + c.waiting - w.n)
  C.pl_load_report(w.load, c, 0)
  return true
end

-- Which of a server's models is ours: one of our names, or else its first.
local function choose_model(w, body)
  local list = cjson.decode(body)
  list = type(list) == "table" and type(list.data) == "table" and list.data or {}
  local chosen
  for _, model in ipairs(list) do
    local id = type(model) == "table" and type(model.id) == "string" and model.id
    for _, name in ipairs(w.served.names) do
      if id == name then chosen = model end
    end
    chosen = chosen or id and model
  end
  if not chosen then return nil, "/v1/models names no model" end
  w.model, w.takes_ids = chosen.id, TAKES_IDS[chosen.owned_by] == true
  return true
end

local function ask_models(w)
  local status, body = get(w, "/v1/models")
  if not status then return nil, body end
  if status ~= 200 then return nil, ("/v1/models answers %d"):format(status) end
  return choose_model(w, body)
end

-- Whether it is there: true; or nil and why not.
local function ask(w)
  if not w.model or w.has_metrics == false then return ask_models(w) end
  local status, body = get(w, "/metrics")
  if not status then return nil, body end
  if status ~= 200 or not count(w, body) then w.has_metrics = false end
  return true
end

-- ---- whether it is there ------------------------------------------------------------

local progress, n_prompt = ffi.new "pl_stream_end", ffi.new "int32_t[1]"

-- Whether a request has got on since `ns`: then it is there, however slow to say so.
local function gets_on(w, ns)
  for _, relay in pairs(w.relays) do
    C.pl_relay_result(relay, progress, n_prompt)
    if progress.last_ns > ns then return true end
  end
  return false
end

local function set_up(w, is_up, why)
  if is_up == (w.state == "ready") then return end
  if is_up then
    log.info("%s is here: %s%s", w.name, w.model, w.takes_ids and "" or
      ", which gets prompts as text")
  else
    w.model = nil                           -- who returns may be another
    log.warning("%s is away: %s", w.name, why)
  end
  w.up(is_up)
  cluster.set_state(w, is_up and "ready" or "away")
end

-- Watches a server; a task.
local function watch(w)
  local failures = 0
  while true do
    local since = C.pl_now_ns()
    local ok, why = ask(w)
    if ok or gets_on(w, since) then failures = 0 else failures = failures + 1 end
    if ok then
      set_up(w, true)
    elseif failures >= MAX_FAILURES then
      if not w.asked then log.warning("%s is not here yet: %s", w.name, why) end
      set_up(w, false, why)
    end
    w.asked = w.asked or ok or failures >= MAX_FAILURES
    flow.sleep(ASK_SECONDS)
  end
end

local function follow(server)
  if not server.events then return nil end
  return function(index, number)
    return C.pl_route_subscribe(index, number, server.events, server.replay, "")
  end
end

-- Adds the servers to a frontend's workers: true; or nil and why not.
function M.join(frontend, self, served)
  local pool = frontend.recipe.worker
  if self.uses_tls then
    local status = C.pl_relay_trust(frontend.rt, pool.upstream_tls_ca)
    if status < 0 then return pl.refusal(status) end
  end
  for _, server in ipairs(self.servers) do
    local up = frontend.metrics:upstream(server.name)
    local tells = pool.enable_prefix_caching and server.events ~= nil
    if not pool.enable_prefix_caching then tells = nil end
    local w = frontend.cluster:add { name = server.name, served = served,
      state = "away", url = server.url, key = pool.upstream_api_key, relays = {},
      numerics = NUMERICS, tags = pool.tags, tells = tells, follow = follow(server),
      events = server.events,
      up = function(is_up) C.pl_metric_set(up, is_up and 1 or 0) end }
    table.insert(self.workers, w)
    flow.spawn(watch, w)
  end
  return true
end

-- ---- requests -----------------------------------------------------------------------

local function add(members, name, text)
  members[#members + 1] = ('"%s":%s'):format(name, text)
end

-- The ids of a JSON string's inside, as JSON has them: ",1,2,3"; nil: it is no text.
local function more_ids(ctx, inside)
  local decoded = cjson.decode('["' .. inside .. '"]')
  if not decoded then return nil end
  local text, out, buf = decoded[1], {}, ffi.new "pl_buf"
  if C.pl_text_encode(ctx.text, text, #text, 1, buf) < 0 then return nil end
  local ids = ffi.cast("const int32_t *", buf.data)
  for i = 0, tonumber(buf.len) / 4 - 1 do out[#out + 1] = "," .. ids[i] end
  C.pl_buf_fini(buf)
  return table.concat(out)
end

local function add_prompt(members, w, ctx, sent, text)
  if w.takes_ids and sent.ids then
    local more = text and more_ids(ctx, text) or ""
    return add(members, "prompt", sent.ids:sub(1, -2) .. more .. "]")
  end
  if not sent.prompt then return end
  add(members, "prompt", text and sent.prompt:sub(1, -2) .. text .. '"' or sent.prompt)
end

local function add_messages(members, sent, text)
  if not sent.messages then return end
  if not text then return add(members, "messages", sent.messages) end
  add(members, "messages", ('%s,{"role":"assistant","content":"%s"}]'):format(
    sent.messages:sub(1, -2), text))
  add(members, "continue_final_message", "true")
  add(members, "add_generation_prompt", "false")
end

local SET_ANEW = { continue_final_message = true, add_generation_prompt = true }

-- The body for server `w`. `text`: what the client has had of the answer, as JSON has
-- it, in `n` tokens; nil: nothing.
function M.body(w, ctx, plan, text, n)
  local sent, members = plan.sent, {}
  add(members, "model", cjson.encode(w.model))
  for _, field in ipairs(sent.fields) do
    if not (text and SET_ANEW[field[1]]) then
      members[#members + 1] = cjson.encode(field[1]) .. ":" .. field[2]
    end
  end
  if plan.kind == "chat" then
    add_messages(members, sent, text)
  else
    add_prompt(members, w, ctx, sent, text)
  end
  local max = sent.max
  if max then
    add(members, max.name, ("%.17g"):format(text and math.max(1, max.value - n)
      or max.value))
  end
  return "{" .. table.concat(members, ",") .. "}"
end

local PATHS = { chat = "/v1/chat/completions", completion = "/v1/completions" }

-- The client's own key goes on, unless it is one for us.
local function key_of(server, job, w)
  if w.key then return authorization(w.key) end
  local own = C.pl_exchange_header(job.exchange, "authorization")
  if own == nil or #server.api_keys > 0 then return "" end
  return "Authorization: " .. ffi.string(own) .. "\r\n"
end

-- Puts a choice's request to server `w`: a status.
function M.send(server, job, choice, w)
  local pool, relay, text = server.recipe.worker, choice.relay, nil
  C.pl_relay_result(relay, progress, n_prompt)
  local n = progress.n_tokens
  if n > 0 then text = ffi.string(C.pl_relay_text(relay, len_out), len_out[0]) end
  local trace = job.who.trace
  local headers = "Content-Type: application/json\r\nX-Request-Id: " .. job.id .. "\r\n"
    .. key_of(server, job, w)
    .. (trace and "traceparent: " .. trace.header .. "\r\n" or "")
  local body = M.body(w, job.served.ctx, job.plan, text, n)
  local whole = request_to(w, "POST", PATHS[job.plan.kind], headers, body)
  C.pl_relay_charge(relay, w.load, math.max(1, choice.prompt.n_tokens + n),
    choice.n_cached or 0)
  return send(relay, w, whole, pool.connect_timeout, pool.first_byte_timeout,
    pool.read_timeout, MAX_ANSWER)
end

-- Whether another server could go on with what there is of a choice's answer.
function M.can_go_on(choice)
  C.pl_relay_result(choice.relay, progress, n_prompt)
  return progress.n_tokens == 0 or C.pl_relay_text(choice.relay, len_out) ~= nil
end

return M
