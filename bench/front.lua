-- SPDX-License-Identifier: Apache-2.0
-- front.lua - what the server costs besides the model: a table, then a line of JSON.
--
--   build/perilune lua bench/front.lua [MODEL] [FIGURE...]
--
-- The server runs as a child, mostly over the null device: CPU time is the child's, of
-- all its threads, by the kernel's count. docs/bench.md says what each figure is.

package.path = "./bench/?.lua;" .. package.path
local json = require "cjson.safe"
local child = require "front_child"
local costs = require "front_cost"
local load = require "front_load"
local mix = require "front_mix"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local PROGRAM = os.getenv "PERILUNE" or "build/perilune"
local ROUNDS, STREAMS, TOKENS = costs.ROUNDS, costs.STREAMS, costs.TOKENS
local median = costs.median
local CLIENTS, BLOCKS, STEP_MS = costs.CLIENTS, 8192, 10
local EVENT_BYTES = 245                     -- a chat's event, with its chunk's frame

local function serve(model, device, flags, env)
  local words = { PROGRAM, "run", "recipes/agg.lua", "--log-format", "text",
    "--model", model, "--device", device, "--host", "127.0.0.1", "--port", 0 }
  for _, word in ipairs(flags) do words[#words + 1] = word end
  local server = child.start(words, env)
  server.port = tonumber(server:wait("serving [^\n]*:(%d+)\n", 60))
  return server
end

-- A server that computes nothing; `step_ms`: how long it takes for that.
local function serve_null(model, flags, step_ms)
  local words = { "--num-gpu-blocks-override", BLOCKS }
  for _, word in ipairs(flags) do words[#words + 1] = word end
  return serve(model, "null", words,
    step_ms and "PERILUNE_NULL_STEP_US=" .. step_ms * 1000)
end

local figures = {}

-- One event a write: each step brings each stream a token.
function figures.stream(model)
  return costs.streams(serve_null(model, { "--max-num-seqs", STREAMS }, STEP_MS), 1)
end

-- Four tokens an event.
function figures.stream_interval_4(model)
  return costs.streams(serve_null(model,
    { "--max-num-seqs", STREAMS, "--stream-interval", 4 }, STEP_MS), 1)
end

-- The engine is ahead: what has piled up goes in one write.
function figures.stream_behind(model)
  return costs.streams(serve_null(model, { "--max-num-seqs", STREAMS }), 6)
end

-- Nothing but writes of as many bytes, in the same rhythm.
function figures.bare_write()
  local o = ffi.new "pl_runtime_options"
  C.pl_runtime_options_init(o)
  local rt = C.pl_runtime_open(o)
  local port = C.pl_listen(rt, "127.0.0.1", 0)
  local us = {}
  for i = 1, ROUNDS do
    local writer = child.start { PROGRAM, "lua", "bench/front_writer.lua", port, STREAMS,
      TOKENS, EVENT_BYTES, STEP_MS }
    us[i] = tonumber(writer:wait("([%d.]+) us\n", 60))
  end
  C.pl_runtime_close(rt)
  return { us = median(us), least_us = us[1] }
end

-- A prompt of 128 tokens, an answer of one.
function figures.request(model)
  return costs.requests(serve_null(model, { "--max-num-seqs", CLIENTS }))
end

-- ---- beside big prompts --------------------------------------------------------------

local BIG_WORDS, SMALL_REQUESTS = 60000, 200

-- Times of small requests in ms, one after the other, while n_big connections loop.
local function small_times(server, n_big)
  local connections, times = load.open(server.port, n_big + 1), {}
  local big, over, asked, n_done, k = {}, '"kv_transfer_params":null}', 0, 0, 0
  for i = 0, n_big - 1 do
    big[i] = load.post("/v1/completions", json.encode {
      prompt = mix.prose(BIG_WORDS, i), max_tokens = 1, temperature = 0 })
    load.send(connections, i, big[i])
  end
  local function ask()
    k = k + 1
    asked = C.pl_now_ns()
    load.send(connections, n_big, costs.completion(k))
  end
  ask()
  while #times < SMALL_REQUESTS do
    load.poll(connections, function(i, text)
      if text:sub(-#over) ~= over then return end
      if i < n_big then
        n_done = n_done + 1
        return load.send(connections, i, big[i])
      end
      times[#times + 1] = tonumber(C.pl_now_ns() - asked) / 1e6
      ask()
    end)
  end
  load.close(connections)
  return times, n_done
end

local function ms_of(times)
  local middle = median(times)
  return middle, times[math.floor(0.9 * #times)]
end

-- The model is one that may be given any length; its tokenizer is of the same kind.
function figures.beside_big()
  local server = serve_null("tests/golden/llama", { "--hf-overrides",
    '{"max_position_embeddings":524288}', "--max-model-len", 400000,
    "--num-gpu-blocks-override", 100000 })
  small_times(server, 2)                    -- warms up
  local alone, alone_90 = ms_of((small_times(server, 0)))
  local times, n_done = small_times(server, 2)
  local beside, beside_90 = ms_of(times)
  return { alone_ms = alone, alone_p90_ms = alone_90, beside_ms = beside,
    beside_p90_ms = beside_90, big_done = n_done, ratio = beside / alone }
end

-- ---- start, memory, text -------------------------------------------------------------

-- With the model itself: from the start to the first answer, and what memory it takes.
function figures.start(model)
  local seconds, cpu, pss, loaded = {}, {}, {}, nil
  for i = 1, ROUNDS do
    local server = serve(model, "cpu", {})
    local one = load.open(server.port, 1)
    load.run(one, 1, function()
      return load.post("/v1/completions", '{"prompt":"Once","max_tokens":1}')
    end, '"kv_transfer_params":null}')
    seconds[i] = tonumber(C.pl_now_ns() - server.started) / 1e9
    cpu[i], pss[i] = server:cpu() / 1e9, server:pss()
    load.close(one)
    if i == ROUNDS then
      local many = load.open(server.port, 16)
      load.run(many, 32, costs.completion, '"kv_transfer_params":null}')
      loaded = server:pss()
      load.close(many)
    end
    child.stop_all()
  end
  return { seconds = median(seconds), least_s = seconds[1], cpu_s = median(cpu),
    pss_mib = median(pss), loaded_pss_mib = loaded }
end

-- The tokenizer alone, in MB/s, on pieces of 2,000 and 20,000 bytes.
function figures.encode(model)
  return mix.encode_speed(model, ROUNDS)
end

local ORDER = { "stream", "bare_write", "stream_interval_4", "stream_behind", "request",
  "beside_big", "start", "encode" }

local model = arg[1] or os.getenv "PERILUNE_MODEL"
if not model then error("bench: no model, wanted a file or $PERILUNE_MODEL", 0) end
local report = {}
for _, name in ipairs(arg[2] and { unpack(arg, 2) } or ORDER) do
  local ok, result = xpcall(figures[name], debug.traceback, model)
  child.stop_all()
  if not ok then error(result, 0) end
  report[name] = result
  local keys = {}
  for key in pairs(result) do keys[#keys + 1] = key end
  table.sort(keys)
  for i, key in ipairs(keys) do keys[i] = ("%s %.3f"):format(key, result[key]) end
  print(("%-18s %s"):format(name, table.concat(keys, "  ")))
end
print(json.encode(report))
