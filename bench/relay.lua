-- SPDX-License-Identifier: Apache-2.0
-- relay.lua - what perilune costs in front of an OpenAI server: a table, then JSON.
--
--   build/perilune lua bench/relay.lua MODEL
--
-- The server behind is a perilune over the null device, whose steps take 10 ms. Of 64
-- streams at once: tokens/s straight from it and through the one in front, in turn; and
-- CPU microseconds a token of the one in front alone, `behind` where the server does not
-- wait and tokens that have piled up share a write. docs/bench.md says more.

package.path = "./bench/?.lua;" .. package.path
local json = require "cjson.safe"
local child = require "front_child"
local costs = require "front_cost"
local load = require "front_load"
local pl = require "perilune.ffi"
local C = pl.C

local PROGRAM = os.getenv "PERILUNE" or "build/perilune"
local TURNS, REQUESTS, STEP_MS = 5, 2, 10

local model = arg[1] or os.getenv "PERILUNE_MODEL"
if not model then error("bench: no model, wanted a file or $PERILUNE_MODEL", 0) end

local function serve(words, env)
  local all = { PROGRAM, "run" }
  for _, word in ipairs(words) do all[#all + 1] = word end
  for _, word in ipairs { "--log-format", "text", "--model", model, "--port", 0 } do
    all[#all + 1] = word
  end
  local server = child.start(all, env)
  server.port = tonumber(server:wait("serving [^\n]*:(%d+)\n", 60))
  return server
end

-- The one behind and the one in front.
local function pair(step_ms)
  local behind = serve({ "recipes/agg.lua", "--device", "null", "--max-num-seqs",
    costs.STREAMS, "--num-gpu-blocks-override", 8192 },
    step_ms and "PERILUNE_NULL_STEP_US=" .. step_ms * 1000)
  return behind, serve { "recipes/in_front_of_vllm.lua", "--upstream",
    "http://127.0.0.1:" .. behind.port }
end

-- Tokens per second of 64 streams.
local function speed(port, k)
  local connections, texts = load.open(port, costs.STREAMS), {}
  local n = costs.STREAMS * REQUESTS
  for i = 1, n do texts[i] = costs.chat(k * n + i) end
  local began = C.pl_now_ns()
  load.run(connections, n, function(i) return texts[i] end, "0\r\n\r\n")
  local seconds = tonumber(C.pl_now_ns() - began) / 1e9
  load.close(connections)
  return n * costs.TOKENS / seconds
end

local function speeds(behind, front)
  local direct, through, ratios = {}, {}, {}
  speed(front.port, 0)                      -- warms up
  for turn = 1, TURNS do
    direct[turn] = speed(behind.port, 2 * turn)
    through[turn] = speed(front.port, 2 * turn + 1)
    ratios[turn] = through[turn] / direct[turn]
  end
  return { direct = costs.median(direct), through = costs.median(through),
    ratio = costs.median(ratios) }
end

local report = {}
local behind, front = pair(STEP_MS)
report.speed = speeds(behind, front)
report.token = costs.streams(front, REQUESTS)
child.stop_all()
report.token_behind = costs.streams(select(2, pair()), 6)
child.stop_all()
for _, name in ipairs { "speed", "token", "token_behind" } do
  local keys = {}
  for key in pairs(report[name]) do keys[#keys + 1] = key end
  table.sort(keys)
  for i, key in ipairs(keys) do keys[i] = ("%s %.3f"):format(key, report[name][key]) end
  print(("%-14s %s"):format(name, table.concat(keys, "  ")))
end
print(json.encode(report))
