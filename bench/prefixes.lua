-- SPDX-License-Identifier: Apache-2.0
-- prefixes.lua - what KV-aware routing gains over round robin: a table, then a line of
-- JSON.
--
--   build/perilune lua bench/prefixes.lua [MODEL]
--
-- One process with four workers and the model itself, a thread each. Prompts begin with
-- one of SETS shared prefixes, drawn evenly, which together are four times what one
-- worker's cache holds: so the fleet can hold all of them, if each is kept at one place,
-- and a worker that gets every prompt a quarter. CLIENTS each send the next request when
-- the last one is answered. Both recipes get the same requests and start empty; what they
-- must read for the first time counts.

package.path = "./bench/?.lua;" .. package.path
local json = require "cjson.safe"
local child = require "front_child"
local load = require "front_load"
local pl = require "perilune.ffi"
local C = pl.C

local PROGRAM = os.getenv "PERILUNE" or "build/perilune"
local WORKERS, BLOCK, CLIENTS = 4, 16, 2
local SETS, PREFIX = 16, 256                -- tokens
local OWN, ANSWER = 16, 4                   -- tokens of a request alone, and of its answer
local CACHE = SETS * PREFIX / BLOCK / WORKERS
local REQUESTS = 160
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

-- Sends all of them; each one's time to its first token in ms, how many tokens of prompts
-- there were, and how many of these were cached.
local function drive(server)
  local connections, ttft = load.open(server.port, CLIENTS), {}
  local sent, prompt, cached, open = 0, 0, 0, {}
  local function next_one(i)
    sent = sent + 1
    open[i] = sent <= REQUESTS and { text = "", at = ms() } or nil
    if open[i] then load.send(connections, i, request(sent)) end
  end
  local function on_bytes(i, text)
    local one = open[i]
    one.text = one.text .. text
    if not one.first and one.text:find('"choices":[{', 1, true) then
      one.first = true
      ttft[#ttft + 1] = ms() - one.at
    end
    if one.text:sub(-5) ~= "0\r\n\r\n" then return end
    local n, of = one.text:match '"cached_tokens":(%d+)',
      one.text:match '"prompt_tokens":(%d+)'
    if not of then error("no usage: " .. one.text:sub(1, 500), 0) end
    prompt, cached = prompt + of, cached + (n or 0)
    next_one(i)
  end
  for i = 0, CLIENTS - 1 do next_one(i) end
  while next(open) do
    if not load.poll(connections, on_bytes, 60000) then
      error("nothing came for 60 s", 0)
    end
  end
  load.close(connections)
  return ttft, prompt, cached
end

local function measure(recipe, model)
  local server = serve(recipe, model)
  local began = ms()
  local ttft, prompt, cached = drive(server)
  local seconds = (ms() - began) / 1e3
  child.stop_all()
  table.sort(ttft)
  local function rank(p) return ttft[math.ceil(#ttft * p)] end
  return { hit_rate = cached / prompt, ttft_p50_ms = rank(0.5), ttft_p99_ms = rank(0.99),
    seconds = seconds }
end

local model = arg[1] or os.getenv "PERILUNE_MODEL"
if not model then error("bench: no model, wanted a file or $PERILUNE_MODEL", 0) end
local report = {}
print(("%d workers, each with a cache of %d tokens; %d prefixes of %d; %d requests"):format(
  WORKERS, CACHE * BLOCK, SETS, PREFIX, REQUESTS))
for _, policy in ipairs(POLICIES) do
  local ok, r = xpcall(measure, debug.traceback, policy[2], model)
  child.stop_all()
  if not ok then error(r, 0) end
  report[policy[1]] = r
  print(("%-12s hits %5.1f %%   first token p50 %7.1f ms, p99 %7.1f   %5.1f s"):format(
    policy[1], 100 * r.hit_rate, r.ttft_p50_ms, r.ttft_p99_ms, r.seconds))
end
report.hits_ratio = report.agg_router.hit_rate / report.round_robin.hit_rate
print(("hits: %.2f times as many"):format(report.hits_ratio))
print(json.encode(report))
