-- SPDX-License-Identifier: Apache-2.0
-- bus.lua - what it costs to run as many processes: a table, then a line of JSON.
--
--   build/perilune lua bench/bus.lua [MODEL] [FIGURE...]
--
-- A frontend and its workers over a nats-server of their own, beside one process that
-- does the same. CPU time is the kernel's count of all threads; docs/bench.md says what
-- each figure is.

package.path = "./bench/?.lua;./tests/?.lua;" .. package.path
local json = require "cjson.safe"
local child = require "front_child"
local costs = require "front_cost"
local deployment = require "support.deployment"
local load = require "front_load"
local mix = require "front_mix"
local pl = require "perilune.ffi"
local serving = require "support.serving"
local C = pl.C
local median = costs.median

local ROUNDS, BLOCKS, STEP_MS = 3, 8192, 10
local TIMES = 30                            -- how often what is seldom is measured

local running = {}                          -- fleets: ended even if something fails

local function now_ms() return tonumber(C.pl_now_ns()) / 1e6 end

-- ---- who serves ---------------------------------------------------------------------

local function joined(...)
  local all = {}
  for _, list in ipairs { ... } do
    for _, word in ipairs(list) do all[#all + 1] = tostring(word) end
  end
  return all
end

-- The flags and environment of the null device.
local function null(flags, step_us)
  return joined({ "--device", "null", "--num-gpu-blocks-override", BLOCKS }, flags),
    { PERILUNE_NULL_STEP_US = step_us and tostring(step_us) or false }
end

local function cpu_of(p) return child.cpu { pid = p.pid } end

local function one_process(model, flags, env)
  local s = serving.start(joined({ "--model", model, "--disable-log-stats" }, flags), env)
  return { port = s.port, stop = function() s:stop() end,
    cpu = function() return cpu_of(s.process) end }
end

local function over_bus(model, flags, env, n_workers)
  local f = deployment.start { model = model, env = env, workers = n_workers or 1,
    worker = flags, frontend = { "--migration-limit", "1000" } }
  running[f] = true
  local function stop()
    running[f] = nil
    f:close()
  end
  local frontend = f.frontends[1]
  return { port = frontend.port, fleet = f, stop = stop,
    cpu = function() return cpu_of(frontend.process) + cpu_of(f.workers[1].process) end,
    writes = function() return child.writes { pid = frontend.process.pid } end,
    frontend_cpu = function() return cpu_of(frontend.process) end,
    nats_cpu = function() return cpu_of(f.nats.process) end }
end

local figures = {}

-- ---- speed --------------------------------------------------------------------------

-- Streamed tokens a second of 64 chats at once, with the model itself; and milliseconds
-- of CPU time a token, of all processes.
local function speed(server)
  local connections = load.open(server.port, costs.STREAMS)
  local texts = {}
  for k = 1, costs.STREAMS do texts[k] = costs.chat(k, 64) end
  local from, cpu = now_ms(), server.cpu()
  load.run(connections, costs.STREAMS, function(k) return texts[k] end, "0\r\n\r\n")
  local took, tokens = now_ms() - from, costs.STREAMS * 64
  cpu = (server.cpu() - cpu) / 1e6 / tokens
  load.close(connections)
  server.stop()
  return tokens / took * 1e3, cpu
end

function figures.speed(model)
  local alone, bus, alone_cpu, bus_cpu = {}, {}, {}, {}
  local flags = { "--no-enable-prefix-caching" }
  for i = 1, ROUNDS do                      -- in turn, for a machine's mood changes
    alone[i], alone_cpu[i] = speed(one_process(model, flags))
    bus[i], bus_cpu[i] = speed(over_bus(model, flags))
  end
  return { alone = median(alone), bus = median(bus), ratio = median(bus) / median(alone),
    alone_cpu_ms = median(alone_cpu), bus_cpu_ms = median(bus_cpu) }
end

-- ---- the first token ----------------------------------------------------------------

-- Milliseconds to the first token of one chat after the other.
local function first_tokens(server, n)
  local one, times = load.open(server.port, 1), {}
  for k = 1, n do
    local asked, whole, first = now_ms(), "", nil
    load.send(one, 0, costs.chat(k, 2))
    while whole:sub(-5) ~= "0\r\n\r\n" do
      load.poll(one, function(_, text)
        whole = whole .. text
        if not first and whole:find('"content":"[^"]') then first = now_ms() - asked end
      end)
    end
    times[#times + 1] = first
  end
  load.close(one)
  return median(times)
end

function figures.first_token(model)
  local flags, env = null({}, nil)
  local alone, bus = one_process(model, flags, env), over_bus(model, flags, env)
  local a, b = {}, {}
  for round = 0, ROUNDS do                  -- round 0 warms up
    a[round], b[round] = first_tokens(alone, 300), first_tokens(bus, 300)
  end
  alone.stop()
  bus.stop()
  return { alone_ms = median(a), bus_ms = median(b),
    more_us = (median(b) - median(a)) * 1e3 }
end

-- ---- CPU time -----------------------------------------------------------------------

-- `measure(server)`'s, and how much of it is the frontend's; the nats-server's beside it.
local function shared_cost(server, measure)
  local all, front, bus = server:cpu(), server.frontend_cpu(), server.nats_cpu()
  local result = measure(server)
  all, front, bus = server:cpu() - all, server.frontend_cpu() - front,
    server.nats_cpu() - bus
  result.frontend_share = front / all
  result.nats_us = result.us * bus / all
  server.stop()
  return result
end

local function streams(model, step_ms, requests, stream_interval)
  local flags, env = null({ "--max-num-seqs", costs.STREAMS, "--stream-interval",
    stream_interval or 1 }, step_ms and step_ms * 1000)
  return shared_cost(over_bus(model, flags, env), function(server)
    return costs.streams(server, requests)
  end)
end

function figures.stream(model) return streams(model, STEP_MS, 1) end

function figures.stream_interval_4(model) return streams(model, STEP_MS, 1, 4) end

function figures.stream_behind(model) return streams(model, nil, 6) end

function figures.request(model)
  local flags, env = null { "--max-num-seqs", costs.CLIENTS }
  return shared_cost(over_bus(model, flags, env), costs.requests)
end

-- The same, CPU microseconds a unit: in one process, over a socket between the two and
-- over the bus, in turn.
local function ways(flags, env, model, measure)
  local us, result = { alone = {}, direct = {}, bus = {} }, {}
  for round = 1, ROUNDS do
    for way, list in pairs(us) do
      env.PERILUNE_DIRECT_LINKS = way == "direct" and "true" or "false"
      local server = way == "alone" and one_process(model, flags, env)
        or over_bus(model, flags, env)
      server.writes = server.writes or function() return 0 end
      list[round] = measure(server).us
      server.stop()
    end
  end
  for way, list in pairs(us) do
    result[way], result[way .. "_least"] = median(list), list[1]
  end
  result.saved = 1 - result.direct / result.bus
  return result
end

local function stream_ways(model, step_ms, requests)
  local flags, env = null({ "--max-num-seqs", costs.STREAMS, "--stream-interval", 1 },
    step_ms and step_ms * 1000)
  return ways(flags, env, model, function(server)
    return costs.streams(server, requests)
  end)
end

function figures.stream_ways(model) return stream_ways(model, STEP_MS, 1) end

function figures.stream_behind_ways(model) return stream_ways(model, nil, 6) end

function figures.request_ways(model)
  local flags, env = null { "--max-num-seqs", costs.CLIENTS }
  return ways(flags, env, model, costs.requests)
end

-- ---- loss ---------------------------------------------------------------------------

-- One long stream on the first of two workers, whichever that is: which it runs on, and
-- its connection.
local function begin_stream(server, k)
  local one = load.open(server.port, 1)
  load.send(one, 0, load.post("/v1/completions", json.encode {
    prompt = mix.prose(128, k), max_tokens = 1500, ignore_eos = true, stream = true }))
  local came = 0
  while came < 4000 do
    load.poll(one, function(_, text) came = came + #text end)
  end
  for _, w in ipairs(server.fleet.workers) do
    if w:metric "vllm:num_requests_running" > 0 then return w, one end
  end
  error("no worker has the stream", 0)
end

-- Waits for something of `one`, a connection: when.
local function next_bytes(one)
  local at
  while not at do
    load.poll(one, function() at = now_ms() end)
  end
  return at
end

local function nothing() end

-- Asks until `test` is true: when that was.
local function when(test)
  local deadline = now_ms() + 10000
  while not test() do
    if now_ms() > deadline then error("it did not happen in 10 s", 0) end
  end
  return now_ms()
end

-- Where a moved stream goes on, and when its loss was seen.
local function lose_one(server, k, signal)
  local f = server.fleet
  local w, one = begin_stream(server, k)
  local frontend = f.frontends[1]
  frontend:news()
  local from = now_ms()
  w:signal(signal)
  local seen = when(function()
    load.poll(one, nothing, 1)              -- leaves the core to others, too
    return frontend:news():find("recreating stream", 1, true)
  end)
  local again = next_bytes(one)
  load.close(one)
  f:forget(w)
  if signal == "KILL" then w.process:remove() else w:ended() end
  f:add_worker()
  f:ready(2)
  return seen - from, again - seen
end

local function quantile(list, q)
  table.sort(list)
  return list[math.max(1, math.ceil(q * #list))]
end

-- From kill -9 to the word in the log, and from there to the next token. Steps take 1 ms.
function figures.kill(model)
  local flags, env = null({}, 1000)
  local server = over_bus(model, flags, env, 2)
  local seen, gaps = {}, {}
  for k = 1, TIMES do seen[k], gaps[k] = lose_one(server, k, "KILL") end
  server.stop()
  return { seen_p50_ms = quantile(seen, 0.5), seen_p99_ms = quantile(seen, 0.99),
    gap_p50_ms = quantile(gaps, 0.5), gap_p99_ms = quantile(gaps, 0.99) }
end

-- From hanging up to a worker with no block in use.
function figures.hang_up(model)
  local flags, env = null({}, 1000)
  local server = over_bus(model, flags, env, 1)
  local times = {}
  for k = 1, TIMES do
    local w, one = begin_stream(server, k)
    local from = now_ms()
    load.close(one)
    times[k] = when(function() return w:is_idle() end) - from
  end
  server.stop()
  return { p50_ms = quantile(times, 0.5), p99_ms = quantile(times, 0.99) }
end

-- ---- all of it ----------------------------------------------------------------------

local ORDER = { "speed", "first_token", "stream", "stream_interval_4", "stream_behind",
  "request", "stream_ways", "stream_behind_ways", "request_ways", "kill", "hang_up" }

local model = arg[1] or os.getenv "PERILUNE_MODEL"
if not model then error("bench: no model, wanted a file or $PERILUNE_MODEL", 0) end
local report = {}
for _, name in ipairs(arg[2] and { unpack(arg, 2) } or ORDER) do
  local ok, result = xpcall(figures[name], debug.traceback, model)
  if not ok then
    for f in pairs(running) do f:remove() end
    error(result, 0)
  end
  report[name] = result
  local keys = {}
  for key in pairs(result) do keys[#keys + 1] = key end
  table.sort(keys)
  for i, key in ipairs(keys) do keys[i] = ("%s %.3f"):format(key, result[key]) end
  print(("%-18s %s"):format(name, table.concat(keys, "  ")))
end
print(json.encode(report))
