-- SPDX-License-Identifier: Apache-2.0
-- prefixes.lua - what routing by cached prefixes gains: a table, then a line of JSON.
--
--   build/perilune lua bench/prefixes.lua [MODEL]
--
-- One process with four workers and the model itself, a thread each. Prompts begin with
-- one of SETS shared prefixes, drawn evenly, which together are four times what one
-- worker's cache holds: so the fleet can hold all of them, if each is kept at one place,
-- and a worker that gets every prompt a quarter. CLIENTS each wait for an answer, pause,
-- and send the next request: on average for as long as a worker takes for a prompt that
-- it does not know, which is measured first. Both recipes get the same requests in the
-- same order and start empty; what must be read for the first time counts.

package.path = "./bench/?.lua;" .. package.path
local json = require "cjson.safe"
local child = require "front_child"
local load = require "front_load"
local pl = require "perilune.ffi"
local C = pl.C

local PROGRAM = os.getenv "PERILUNE" or "build/perilune"
local WORKERS, BLOCK, CLIENTS = 4, 16, 3
local SETS, PREFIX = 16, 256                -- tokens
local OWN, ANSWER = 16, 4                   -- tokens of each prompt alone, of an answer
local CACHE = SETS * PREFIX / BLOCK / WORKERS
local REQUESTS, WARM_UP = 200, 5
local POLICIES = { { "round_robin", "recipes/policies/round_robin.lua" },
  { "agg_router", "recipes/agg_router.lua" } }

local function serve(recipe, model)
  local server = child.start { PROGRAM, "run", recipe, "--model", model, "--host",
    "127.0.0.1", "--port", 0, "--log-format", "text", "--worker.count", WORKERS,
    "--threads", 1, "--block-size", BLOCK, "--num-gpu-blocks-override", CACHE + 1,
    "--max-model-len", 1024, "--enable-prompt-tokens-details" }
  server.port = tonumber(server:wait("serving [^\n]*:(%d+)\n", 60))
  return server
end

-- n tokens, the same for the same numbers.
local function tokens(out, seed, n)
  for i = 1, n do
    out[#out + 1] = 1000 + tonumber(C.pl_random_at(seed, i, 0) % 40000)
  end
  return out
end

local function request(k)
  local set = tonumber(C.pl_random_at(7, k, 0) % SETS)
  return load.post("/v1/completions", json.encode {
    prompt = tokens(tokens({}, 100 + set, PREFIX), 1000 + k, OWN), stream = true,
    max_tokens = ANSWER, ignore_eos = true, temperature = 0,
    stream_options = { include_usage = true } })
end

local function ms() return tonumber(C.pl_now_ns()) / 1e6 end

-- Of a whole answer: the tokens of its prompt, and of these, how many were cached.
local function usage(text)
  local of = text:match '"prompt_tokens":(%d+)'
  if not of then error("no usage: " .. text:sub(1, 500), 0) end
  return tonumber(of), tonumber(text:match '"cached_tokens":(%d+)' or 0)
end

-- Bytes of the answer on connection i have come.
local function take(run, i, text)
  local one = run.open[i]
  one.text = one.text .. text
  if not one.first and one.text:find('"choices":[{', 1, true) then
    one.first = true
    run.ttft[#run.ttft + 1] = ms() - one.at
  end
  one.is_over = one.text:sub(-5) == "0\r\n\r\n"
  if one.is_over then
    local n, n_cached = usage(one.text)
    run.prompt, run.cached = run.prompt + n, run.cached + n_cached
  end
end

-- How many answers are whole, which are then forgotten.
local function drop_done(run)
  local open, connections, n = run.open, run.connections, 0
  for i = connections.n - 1, 0, -1 do
    if open[i].is_over then
      load.drop(connections, i)
      open[i] = open[connections.n]
      open[connections.n] = nil
      n = n + 1
    end
  end
  return n
end

-- Sends requests first to last, so many at once at most; whoever has an answer sends the
-- next one after pause(k) ms. Each one's time to its first token in ms; how many tokens
-- of prompts there were, and how many of these were cached.
local function drive(server, first, last, clients, pause)
  local connections, idle, k = load.room(server.port, clients), {}, first
  local run = { connections = connections, open = {}, ttft = {}, prompt = 0, cached = 0 }
  local function on_bytes(i, text) take(run, i, text) end
  for i = 1, clients do idle[i] = ms() end
  while k <= last or connections.n > 0 do
    table.sort(idle, function(a, b) return a > b end)
    local due = k <= last and idle[#idle]
    if due and ms() >= due then
      local i = load.add(connections)
      idle[#idle], run.open[i] = nil, { text = "", at = ms() }
      load.send(connections, i, request(k))
      k = k + 1
    else
      local wait = due and math.min(60000, math.ceil(due - ms())) or 60000
      if not load.poll(connections, on_bytes, math.max(wait, 0)) and not due then
        error("nothing came for 60 s", 0)
      end
      for _ = 1, drop_done(run) do idle[#idle + 1] = ms() + pause(k) end
    end
  end
  table.sort(run.ttft)
  return run.ttft, run.prompt, run.cached
end

-- How long a prompt takes that nobody has read, in ms.
local function cold_ms(model)
  local server = serve(POLICIES[1][2], model)
  local ttft = drive(server, -WARM_UP, -1, 1, function() return 0 end)
  child.stop_all()
  return ttft[math.ceil(#ttft / 2)]
end

local function measure(recipe, model, mean)
  local server = serve(recipe, model)
  local ttft, prompt, cached = drive(server, 1, REQUESTS, CLIENTS, function(k)
    return -mean * math.log(1 - tonumber(C.pl_random_at(8, k, 0) % 2 ^ 40) / 2 ^ 40)
  end)
  child.stop_all()
  local function rank(p) return ttft[math.ceil(#ttft * p)] end
  return { hit_rate = cached / prompt, ttft_p50_ms = rank(0.5), ttft_p99_ms = rank(0.99) }
end

local model = arg[1] or os.getenv "PERILUNE_MODEL"
if not model then error("bench: no model, wanted a file or $PERILUNE_MODEL", 0) end
local function guarded(fn, ...)
  local ok, r = xpcall(fn, debug.traceback, ...)
  child.stop_all()
  return ok and r or error(r, 0)
end

local mean = guarded(cold_ms, model)
local report = { cold_ms = mean }
print(("%d workers, each with a cache of %d tokens; %d prefixes of %d; %d requests; "
  .. "%.0f ms for an unknown one"):format(WORKERS, CACHE * BLOCK, SETS, PREFIX, REQUESTS,
  mean))
for _, policy in ipairs(POLICIES) do
  local r = guarded(measure, policy[2], model, mean)
  report[policy[1]] = r
  print(("%-12s hits %5.1f %%   first token p50 %7.1f ms, p99 %7.1f"):format(policy[1],
    100 * r.hit_rate, r.ttft_p50_ms, r.ttft_p99_ms))
end
report.hits_ratio = report.agg_router.hit_rate / report.round_robin.hit_rate
print(("hits: %.2f times as many"):format(report.hits_ratio))
print(json.encode(report))
