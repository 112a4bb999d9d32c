-- SPDX-License-Identifier: Apache-2.0
-- frontend.lua - the process: opens a worker and the HTTP server, runs till told to stop.

local pl = require "perilune.ffi"
local admin = require "perilune.admin"
local buffer = require "string.buffer"
local flow = require "perilune.flow"
local host = require "perilune.host"
local live = require "perilune.live"
local locals = require "perilune.local"
local log = require "perilune.log"
local metrics = require "perilune.metrics"
local openai = require "perilune.openai"
local settings = require "perilune.recipe"
local template = require "perilune.template"
local values = require "perilune.values"
local worker = require "perilune.worker"
local C, ffi = pl.C, pl.ffi

local M = {}

local Server = {}
Server.__index = Server

-- Threads that prepare big requests.
local POOL_THREADS = 2
-- A step that takes longer than this is taken for a standstill.
local STALL_SECONDS = 60
local STATS_SECONDS = 10
-- How long an end waits for answers to be ended, and for big requests to be prepared.
local STOP_SECONDS, JOIN_SECONDS = 1, 1
local SIGHUP = 1
-- What a model's loading leaves is marked anew by each collection: when the heap has
-- grown to this many percent, not 200, so that requests pay for half as many.
local GC_PAUSE = 400

-- How long work has been queued without a step ending, if that is too long.
function Server:stalled_for()
  local s = self.metrics.stats
  C.pl_engine_stats_get(self.engine, s)
  if s.busy_since_ns == 0 then return nil end
  local since = math.max(tonumber(s.busy_since_ns), tonumber(s.last_step_ns))
  local seconds = (tonumber(C.pl_now_ns()) - since) / 1e9
  return seconds > STALL_SECONDS and seconds or nil
end

-- Changes an option or a hook while it runs: true and what to say; nil, why, hint.
function Server:set(path, value, by)
  return live.set(self, path, value, by)
end

-- What Lua does until it says otherwise, for the log of one that does not come back.
function Server:doing(what)
  C.pl_doing(self.rt, what)
end

-- Ends it in good order: nobody new is let in, who is being answered gets what there is,
-- with finish_reason "abort". Asked a second time, it does not wait for them.
function Server:stop()
  if self.stopping then return flow.stop() end
  self.stopping = true
  C.pl_unlisten(self.rt)
  for _, stream in pairs(self.live) do C.pl_stream_cancel(stream) end
  local deadline = C.pl_now_ns() + STOP_SECONDS * 1e9
  while self.in_flight > 0 and C.pl_now_ns() < deadline do flow.sleep(0.005) end
  flow.stop()
end

-- vLLM's line, while there is something to say.
function Server:log_stats()
  local before, last = { 0, 0 }, tonumber(C.pl_now_ns())
  while true do
    flow.sleep(STATS_SECONDS)
    local s, now = self.metrics:refresh(), tonumber(C.pl_now_ns())
    local seconds = (now - last) / 1e9
    local prompt, out = tonumber(s.prompt_tokens), tonumber(s.generation_tokens)
    local active = s.running + s.waiting > 0 or prompt + out > before[1] + before[2]
    log[active and "info" or "debug"](("Engine 000: "
      .. "Avg prompt throughput: %.1f tokens/s, "
      .. "Avg generation throughput: %.1f tokens/s, Running: %d reqs, Waiting: %d reqs, "
      .. "GPU KV cache usage: %.1f%%, Prefix cache hit rate: %.1f%%"):format(
      (prompt - before[1]) / seconds, (out - before[2]) / seconds, s.running, s.waiting,
      100 * s.blocks_used / math.max(s.blocks, 1),
      100 * tonumber(s.prefix_hits) / math.max(tonumber(s.prefix_queries), 1)))
    before, last = { prompt, out }, now
  end
end

-- ---- what prepare.lua needs to know ---------------------------------------------------

-- The text of a template that the recipe names, checked: a slip in it is found now.
local function read_template(given)
  if not given then return nil end
  local f = io.open(given, "rb")
  local text = f and f:read "*a" or given:find "{" and given
  if f then f:close() end
  if not text then
    return nil, ("chat_template '%s' is neither a file nor a template"):format(given)
  end
  local compiled, why = template.compile(text)
  if not compiled then return nil, ("chat_template '%s': %s"):format(given, why) end
  return text
end

local function context(recipe, w, names)
  local own, why = read_template(recipe.chat_template)
  if why then return nil, why end
  local tok, generation = w.tokenizer, w.desc.generation or {}
  local known = {}
  for _, name in ipairs(names) do known[name] = true end
  if not recipe.served_model_name then known[recipe.model] = true end
  return {
    text = tok.text, vocab = w.desc.options.vocab, max_model_len = w.length,
    names = known, defaults = generation, eos_ids = w.desc.eos_ids,
    prefix_ids = tok.prefix_ids or {}, suffix_ids = tok.suffix_ids or {},
    bos_token = tok.bos_token, eos_token = tok.eos_token,
    chat_template = own or tok.chat_template,
    tool_template = own or tok.tool_template or tok.chat_template,
    max_n = 16384, max_choices = worker.MAX_WAITING, max_logprobs = recipe.max_logprobs,
    priority = recipe.worker.scheduling_policy == "priority",
    as_ids = recipe.http.return_tokens_as_token_ids,
    response_role = recipe.http.response_role,
    trust_request_chat_template = recipe.http.trust_request_chat_template,
    prompt_tokens_details = recipe.http.enable_prompt_tokens_details,
  }
end

-- The context as bytes, for Lua states of their own; C's objects go as addresses.
local function blob_of(ctx, engine)
  local plain = {}
  for key, value in pairs(ctx) do plain[key] = value end
  plain.text = ffi.cast("uint64_t", ffi.cast("uintptr_t", ctx.text))
  plain.engine = ffi.cast("uint64_t", ffi.cast("uintptr_t", engine))
  return buffer.encode(plain)
end

-- ---- opening --------------------------------------------------------------------------

local function runtime_options(http)
  local o = ffi.new "pl_runtime_options"
  C.pl_runtime_options_init(o)
  o.max_body = http.max_body_bytes
  o.max_header_bytes = http.h11_max_incomplete_event_size
  o.max_headers = http.h11_max_header_count
  return o
end

local function list_of(value)
  return type(value) == "table" and value or value and { value } or {}
end

local function new_server(recipe, w, rt)
  local http = recipe.http
  local names = list_of(recipe.served_model_name)
  if #names == 0 then names = { w.desc.name } end
  local ctx, why = context(recipe, w, names)
  if not ctx then return nil, why end
  return setmetatable({
    recipe = recipe, rt = rt, worker = w, desc = w.desc, engine = w.engine, ctx = ctx,
    ctx_blob = blob_of(ctx, w.engine), served_names = names, name = names[1],
    in_flight = 0, live = {}, exchanges = {}, role = "frontend",
    started_ns = C.pl_now_ns(), recipe_hash = admin.hash(recipe.file),
    created = math.floor(tonumber(C.pl_wall_ns()) / 1e9),
    api_keys = list_of(http.api_key), stream_interval = recipe.worker.stream_interval,
    force_usage = http.enable_force_include_usage, dev_mode = http.enable_dev_endpoints,
    id_headers = http.enable_request_id_headers, log_requests = http.enable_log_requests,
    track_load = http.enable_server_load_tracking,
    cors = { origins = list_of(http.allowed_origins),
      methods = list_of(http.allowed_methods), headers = list_of(http.allowed_headers),
      credentials = http.allow_credentials },
    metrics = metrics.new(w.engine, names[1], {
      { "block_size", recipe.worker.block_size }, { "num_gpu_blocks", w.blocks },
      { "cache_dtype", recipe.worker.kv_cache_dtype },
      { "enable_prefix_caching", recipe.worker.enable_prefix_caching },
      { "prefix_caching_hash_algo", recipe.worker.prefix_caching_hash_algo } }),
  }, Server)
end

local function listen(server)
  local http = server.recipe.http
  local port = C.pl_listen(server.rt, http.host, http.port)
  if port < 0 then return pl.refusal(port) end
  log.info("serving %s at http://%s:%d", server.name, http.host, port)
  return port
end

-- Its owner's door. Without one it serves all the same.
local function listen_locally(server)
  local name, why = locals.listen(server.rt, server.role)
  server.process_name = name or server.role
  if not name then return log.warning("no console: %s", why) end
  log.info("console: perilune attach %s", name)
end

local function handle_events(server)
  local exchange_ptr = ffi.typeof "pl_exchange *"
  flow.on("request", function(ev)
    local x = ffi.cast(exchange_ptr, ev.object)
    local handle = C.pl_exchange_is_local(x) ~= 0 and admin.handle or openai.handle
    handle(server, x)
  end)
  flow.on("signal", function(ev)
    if ev.a == SIGHUP then return end
    log.info("stopping: signal %d", ev.a)
    server:stop()
  end)
end

local function serve(server)
  if C.pl_runtime_attach(server.rt, server.engine) < 0 then
    return pl.refusal(C.PL_EINTERNAL)
  end
  for _ = 1, POOL_THREADS do
    host.spawn("perilune.pool", tonumber(ffi.cast("uintptr_t", server.rt)))
  end
  server.has_pool = true
  local port, why, name = listen(server)
  if not port then return nil, why, name end
  listen_locally(server)
  if not server.recipe.disable_log_stats then
    flow.spawn(Server.log_stats, server)
  end
  handle_events(server)
  collectgarbage()
  collectgarbage("setpause", GC_PAUSE)
  server:doing ""
  local ran, failed, kind = flow.run(server.rt)
  server:doing(nil)
  return ran, failed, kind
end

-- Serves, and ends the pool's threads whatever happens.
local function serve_and_end(server)
  local ran, ok, why = xpcall(serve, debug.traceback, server)
  for _, x in pairs(server.exchanges) do C.pl_exchange_release(x) end
  C.pl_job_stop(server.rt)
  if not host.join(JOIN_SECONDS) then
    log.warning("a big request is still being prepared; leaving it")
    host.leave(ran and ok and 0 or 1)
  end
  if not ran then return nil, ok end
  return ok, why
end

local function serve_with(recipe, rt, w)
  local server, why = new_server(recipe, w, rt)
  if not server then return nil, why end
  return serve_and_end(server)
end

-- Says whether a signal has come, while nobody polls for events: before flow.run.
local function watcher(rt)
  local events, asked = ffi.new "pl_event[8]", false
  return function()
    for i = 0, C.pl_poll(rt, events, 8, 0) - 1 do
      if events[i].kind == C.PL_EV_SIGNAL and events[i].a ~= SIGHUP then
        log.info("stopping: signal %d", events[i].a)
        asked = true
      end
    end
    return asked
  end
end

-- With the runtime open, for it watches for signals: loads, serves, closes.
local function load_and_serve(recipe, rt)
  local asked = watcher(rt)
  local w, why = worker.open(recipe, recipe.worker, asked)
  local ok = asked()
  if w and not ok then ok, why = serve_with(recipe, rt, w) end
  C.pl_runtime_close(rt)
  if w then worker.close(w) end
  return ok, why
end

-- Hooks that a recipe may carry already, though nothing asks them yet.
local function name_unasked_hooks(recipe)
  for _, hook in ipairs { "admit", "migrate", "done" } do
    if recipe[hook] then
      log.warning("%s: nothing asks the hook '%s' yet", recipe.file, hook)
    end
  end
  for _, hook in ipairs { "cost", "pick", "split" } do
    if recipe.worker[hook] then
      log.warning("%s: nothing asks the hook '%s' of one worker", recipe.file, hook)
    end
  end
end

-- What is not as it comes, and who said so; the model in any case.
local function tell_settings(recipe)
  local told = {}
  for _, s in ipairs(settings.settings(recipe)) do
    if s.value ~= nil and (s.path == "model" or s.origin ~= "default") then
      local shown = s.row and s.row.secret and "(secret)" or values.show(s.value)
      told[#told + 1] = ("%s = %s (%s)"):format(s.path, shown, s.origin)
    end
  end
  log.info("%s: %s; else defaults", recipe.file, table.concat(told, ", "))
end

-- Serves a resolved recipe until a signal; answers the exit code.
function M.run(recipe)
  log.level(recipe.log_level)
  local rt = C.pl_runtime_open(runtime_options(recipe.http))
  local ok, why
  if rt == nil then
    ok, why = pl.refusal(C.PL_EIO)
  else
    tell_settings(recipe)
    name_unasked_hooks(recipe)
    ok, why = load_and_serve(recipe, rt)
  end
  if ok then return 0 end
  log.error("%s", why)
  return 1
end

return M
