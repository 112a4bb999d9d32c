-- SPDX-License-Identifier: Apache-2.0
-- dynamo.lua - Dynamo's frontend and mock worker beside perilune's and the null device:
-- the same requests, CPU time of both processes. bench/dynamo.sh installs and runs it.
--
--   build/perilune lua bench/dynamo.lua PYTHON

package.path = "./bench/?.lua;./tests/?.lua;" .. package.path
local child = require "front_child"
local costs = require "front_cost"
local deployment = require "support.deployment"
local scratch = require "scratch"

local PYTHON = assert(arg[1], "wanted: the python that has dynamo")
local SOURCE, VOCAB = "tests/golden/llama", 2048
local PORT = "18473"
local START_SECONDS = 60
local PLANES = { "--discovery-backend", "file", "--request-plane", "tcp", "--event-plane",
  "zmq" }

-- The mock worker draws ids from 1000 to 1999: the small model gets words for them.
local function make_model()
  local folder = scratch.folder()
  local words = {}
  for id = 600, VOCAB - 1 do words[#words + 1] = ('"\196\160w%d":%d,'):format(id, id) end
  local tokenizer = child.read(SOURCE .. "/tokenizer.json")
  folder.write("tokenizer.json", (tokenizer:gsub('"vocab": *{',
    function(start) return start .. table.concat(words) end, 1)))
  folder.write("config.json", (child.read(SOURCE .. "/config.json"):gsub(
    '"vocab_size": *%d+', '"vocab_size": ' .. VOCAB)))
  for _, name in ipairs { "tokenizer_config.json", "generation_config.json" } do
    folder.write(name, child.read(SOURCE .. "/" .. name))
  end
  return folder
end

local function words_of(...)
  local words = { PYTHON, "-m", ... }
  for _, word in ipairs(PLANES) do words[#words + 1] = word end
  return words
end

local function await_model()
  local deadline = os.time() + START_SECONDS
  while os.execute(("curl -sf http://127.0.0.1:%s/v1/models | grep -q '\"id\":\"m\"'")
      :format(PORT)) ~= 0 do
    if os.time() > deadline then error("dynamo does not serve", 0) end
    os.execute "sleep 0.2"
  end
end

-- Dynamo as a server of front_cost.lua. `speed`: how much faster than its model of a
-- worker the mock one is.
local function start_dynamo(model, speed)
  local kv = scratch.folder()
  local env = ("DYN_FILE_KV=%s HF_HUB_OFFLINE=1 DYN_LOG=warn DYN_TCP_RPC_HOST=127.0.0.1 "
    .. "DYN_TCP_RESPONSE_STREAM_HOST=127.0.0.1 DYN_EVENT_PLANE_HOST=127.0.0.1 "
    .. "PYTHONHASHSEED=0"):format(kv.path)
  local front = child.start(words_of("dynamo.frontend", "--http-host", "127.0.0.1",
    "--http-port", PORT, "--router-mode", "round-robin"), env)
  local mock = child.start(words_of("dynamo.mocker", "--model-path", model.path,
    "--model-name", "m", "--speedup-ratio", speed), env)
  await_model()
  return { port = tonumber(PORT), over = "0\r\n\r\n",
    cpu = function() return front:cpu() + mock:cpu() end,
    writes = function() return front:writes() end,
    stop = function()
      child.stop_all()
      kv.remove()
    end }
end

local function start_perilune(model, step_us)
  local f = deployment.start { model = model.path,
    frontend = { "--served-model-name", "m" },
    worker = { "--device", "null", "--num-gpu-blocks-override", "8192",
      "--max-num-seqs", "256", "--served-model-name", "m" },
    env = { PERILUNE_NULL_STEP_US = step_us } }
  local front, worker = f.frontends[1].process, f.workers[1].process
  return { port = f.frontends[1].port, stop = function() f:close() end,
    cpu = function() return child.cpu(front) + child.cpu(worker) end,
    writes = function() return child.writes(front) end }
end

local function show(name, who, result)
  print(("%-10s %-10s %7.1f us, least %7.1f, events a token %.2f, writes %.2f"):format(
    name, who, result.us, result.least_us, result.events or 0, result.writes))
  io.flush()
end

local function measure(name, who, server, cost)
  local ok, result = xpcall(cost, debug.traceback, server)
  server.stop()
  if not ok then error(result, 0) end
  show(name, who, result)
end

local model = make_model()
costs.model = "m"
local MEASURES = {                          -- a step takes some 10 ms, or no time
  { "stream", "1", "10000", function(server) return costs.streams(server, 1) end },
  { "at_once", "1000000", "0", function(server) return costs.streams(server, 4) end },
  { "request", "1000000", "0", costs.requests },
}
for _, m in ipairs(MEASURES) do
  measure(m[1], "dynamo", start_dynamo(model, m[2]), m[4])
  measure(m[1], "perilune", start_perilune(model, m[3]), m[4])
end
model.remove()
