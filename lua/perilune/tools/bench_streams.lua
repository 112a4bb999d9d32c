-- SPDX-License-Identifier: Apache-2.0
-- tools/bench_streams.lua - many streams at once from one thread, each event's time
-- taken.
--
--     start --> stream --done--> finish --> the connection serves the next
--                  |
--                  +--error, silence--> fail --> the connection is closed

local client = require "perilune.tools.http_client"
local engine = require "perilune.ffi"
local json = require "cjson.safe"
local C, ffi = engine.C, engine.ffi

local CONNECT_MS = 10000

local function seconds()
  return tonumber(C.pl_now_ns()) * 1e-9
end

local function add(list, v) list[#list + 1] = v end

-- One event of a stream. The first that bears text is the first token, gaps between
-- those that do are the inter-token latency.
local function on_event(run, stream, data)
  if data == "[DONE]" then return end
  local event = json.decode(data)
  if type(event) ~= "table" then
    stream.why = "an event is not JSON"
    return
  end
  if type(event.error) == "table" then stream.why = tostring(event.error.message) end
  if type(event.usage) == "table" then stream.usage = event.usage end
  local choice = type(event.choices) == "table" and event.choices[1]
  if type(choice) ~= "table" or type(choice.text) ~= "string" then return end
  if choice.text == "" and type(choice.finish_reason) == "string" then return end
  if stream.last then
    add(stream.gaps, (run.now - stream.last) * 1e3)
  else
    stream.ttft = (run.now - stream.started) * 1e3
  end
  stream.last, stream.events = run.now, stream.events + 1
end

local function read_by(run, stream)
  local feed = client.events(function(data) on_event(run, stream, data) end)
  local body = {}
  stream.body = body
  stream.response = client.response(function(piece)
    if #body < 8 then add(body, piece) end
    local ok, why = feed(piece)
    if not ok then stream.why = why end
  end)
end

local function fail(run, stream, why)
  C.pl_client_close(stream.socket)
  run.failed = run.failed + 1
  run.errors[why] = (run.errors[why] or 0) + 1
end

local function finish(run, stream)
  local response = stream.response
  local why = stream.why
  if response.status ~= 200 then
    why = client.error_text(response, table.concat(stream.body))
  elseif stream.events == 0 and not why then
    why = "the answer was empty"
  end
  if why then return fail(run, stream, why) end
  run.done = run.done + 1
  local usage = stream.usage or {}
  run.input_tokens = run.input_tokens + (tonumber(usage.prompt_tokens) or 0)
  run.output_tokens = run.output_tokens
                      + (tonumber(usage.completion_tokens) or stream.events)
  if not tonumber(usage.completion_tokens) then run.uncounted = run.uncounted + 1 end
  add(run.ttft, stream.ttft)
  add(run.latency, (run.now - stream.started) * 1e3)
  for _, gap in ipairs(stream.gaps) do add(run.itl, gap) end
  if response.keep then
    add(run.idle, stream.socket)
  else
    C.pl_client_close(stream.socket)
  end
end

-- Sends a request on an idle connection or a new one; waits for neither. `again`: the
-- idle one was closed.
local function start(run, text, again)
  local socket = not again and table.remove(run.idle) or nil
  local kept = socket ~= nil
  run.now = seconds()
  local stream = { started = run.now, heard = run.now, gaps = {}, events = 0,
                   text = text, kept = kept }
  if not kept then
    socket = C.pl_client_another(run.first)
    if socket == nil then return fail(run, stream, ffi.string(C.pl_error_text())) end
  end
  stream.socket = socket
  local ok, why = engine.check(C.pl_client_send(socket, text, #text, 0))
  if not ok and kept then
    C.pl_client_close(socket)
    return start(run, text, true)
  end
  if not ok then return fail(run, stream, why) end
  read_by(run, stream)
  add(run.active, stream)
end

-- Reads what came for one stream: true while it goes on.
local function advance(run, stream)
  local bytes, why, name = client.receive(stream.socket, 0)
  run.now = seconds()
  if not bytes and name == "PL_EAGAIN" then return true end
  local ok = bytes
  if bytes == "" and stream.kept and not stream.response.begun then
    C.pl_client_close(stream.socket)
    start(run, stream.text, true)           -- closed while idle: not this request's fault
    return false
  elseif bytes == "" then
    ok, why = stream.response:close()
  elseif bytes then
    ok, why = stream.response:feed(bytes)
  end
  stream.heard = run.now
  if not ok then
    fail(run, stream, why)
    return false
  end
  if not stream.response.done then return true end
  finish(run, stream)
  return false
end

-- Waits for the streams at most timeout_ms and advances those that have something.
local function attend(run, timeout_ms)
  local streams, n = run.active, #run.active
  for i = 1, n do run.sockets[i - 1] = streams[i].socket end
  local came = C.pl_client_poll(run.sockets, n, run.ready, timeout_ms)
  if came == C.PL_ECANCELED then came = 0 end
  if came < 0 then error(ffi.string(C.pl_error_text())) end
  run.active = {}
  run.now = seconds()
  for i = 1, n do
    local stream, goes_on = streams[i], true
    if run.ready[i - 1] ~= 0 and came > 0 then
      goes_on = advance(run, stream)
    elseif run.now - stream.heard > run.timeout then
      fail(run, stream, "nothing came for the time of --timeout")
      goes_on = false
    end
    if goes_on then add(run.active, stream) end
  end
end

local MOST = 4096                           -- connections that one poll takes

local function due(run, options, started)
  if started == options.requests or #run.active >= MOST then return false end
  if options.rate then return seconds() >= run.next_at end
  return #run.active < options.concurrency
end

local function pause_ms(run, options, started)
  if not options.rate or started == options.requests then return 500 end
  return math.max(0, math.min(500, math.ceil((run.next_at - seconds()) * 1e3)))
end

-- Runs a benchmark: url, request() -> text, requests, concurrency or rate, timeout,
-- progress(finished, seconds). What was measured, times in milliseconds; or nil, message,
-- name where nobody is there.
return function(options)
  local first, absent, name = client.open(options.url, CONNECT_MS)
  if not first then return nil, absent, name end
  local run = {
    first = first, timeout = options.timeout, active = {}, idle = {},
    sockets = ffi.new("pl_client *[?]", MOST), ready = ffi.new("uint8_t[?]", MOST),
    done = 0, failed = 0, uncounted = 0, input_tokens = 0, output_tokens = 0,
    ttft = {}, itl = {}, latency = {}, errors = {}, now = seconds(),
  }
  local began, started, shown = run.now, 0, run.now
  run.next_at = began
  C.pl_terminal_catch(1)                    -- Ctrl-C: report what there is
  while run.done + run.failed < options.requests and not run.interrupted do
    while due(run, options, started) do
      started = started + 1
      start(run, options.request())
      if options.rate then
        run.next_at = run.next_at - math.log(1 - math.random()) / options.rate
      end
    end
    attend(run, pause_ms(run, options, started))
    run.interrupted = C.pl_terminal_interrupts() > 0
    if run.now - shown > 0.1 then
      options.progress(run.done + run.failed, run.now - began)
      shown = run.now
    end
  end
  run.seconds = math.max(seconds() - began, 1e-9)
  options.progress(options.requests, run.seconds)
  C.pl_terminal_catch(0)
  for _, socket in ipairs(run.idle) do C.pl_client_close(socket) end
  for _, stream in ipairs(run.active) do C.pl_client_close(stream.socket) end
  C.pl_client_close(first)
  return run
end
