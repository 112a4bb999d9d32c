-- SPDX-License-Identifier: Apache-2.0
-- front.lua - what the server costs besides the model: a table, then a line of JSON.
--
--   build/perilune lua bench/front.lua [MODEL] [FIGURE...]
--
-- The server runs as a child, over the null device: CPU time is the child's, of all its
-- threads, by the kernel's count. Medians of ROUNDS. docs/bench.md says what each figure is.

package.path = "./bench/?.lua;" .. package.path
local json = require "cjson.safe"
local child = require "front_child"
local load = require "front_load"
local pl = require "perilune.ffi"
local C = pl.C

local PROGRAM = os.getenv "PERILUNE" or "build/perilune"
local ROUNDS = 3
local STREAMS, TOKENS, CLIENTS, BLOCKS = 64, 128, 32, 8192

local WORDS = {}
for word in ([[the server reads a prompt in pieces and answers each client as its tokens
  come so nobody waits for a neighbour whose question is longer while memory is found by
  prefix and given back once an answer ends which keeps many streams going at the same
  time over one small machine and leaves most of it to the model itself]]):gmatch "%a+" do
  WORDS[#WORDS + 1] = word
end

-- About n tokens of text that no other k has.
local function prose(n, k)
  local out = { "Question " .. k .. ":" }
  for i = 1, n - 4 do
    local at = C.pl_random_at(k, i, 0) % #WORDS
    out[#out + 1] = WORDS[tonumber(at) + 1]
  end
  return table.concat(out, " ")
end

local function serve(model, device, flags, env)
  local words = { PROGRAM, "run", "recipes/agg.lua", "--model", model, "--device", device,
    "--host", "127.0.0.1", "--port", 0, "--num-gpu-blocks-override", BLOCKS }
  for _, word in ipairs(flags or {}) do words[#words + 1] = word end
  local server = child.start(words, env)
  server.port = tonumber(server:wait("serving [^\n]*:(%d+)\n", 60))
  return server
end

local function median(list)
  table.sort(list)
  return list[math.floor(#list / 2) + 1]
end

local function chat(k)
  return load.post("/v1/chat/completions", json.encode {
    messages = { { role = "user", content = prose(106, k) } }, max_tokens = TOKENS,
    stream = true, ignore_eos = true, temperature = 0 })
end

local function completion(k)
  return load.post("/v1/completions", json.encode {
    prompt = prose(128, k), max_tokens = 1, temperature = 0 })
end

-- CPU microseconds, writes and events a unit, of `total` requests of `units` units each.
local function cost(server, n, total, units, request, over, count)
  local connections = load.open(server.port, n)
  local base = 0
  local function round(size)
    base = base + size
    local from = base - size
    local cpu, writes = server:cpu(), server:writes()
    local seen = load.run(connections, size, function(k) return request(from + k) end, over,
      count)
    return { us = (server:cpu() - cpu) / 1e3 / (size * units),
      writes = (server:writes() - writes) / (size * units), seen = seen / (size * units) }
  end
  round(total)                              -- warm
  local rounds, us, writes, seen = {}, {}, {}, {}
  for i = 1, ROUNDS do
    rounds[i] = round(total)
    us[i], writes[i], seen[i] = rounds[i].us, rounds[i].writes, rounds[i].seen
  end
  load.close(connections)
  return { us = median(us), writes = median(writes), events = median(seen), least = us[1] }
end

local figures = {}

-- One event a write: a step every 10 ms brings each stream a token.
function figures.stream_paced(model)
  local server = serve(model, "null", { "--max-num-seqs", STREAMS },
    "PERILUNE_NULL_STEP_US=10000")
  local r = cost(server, STREAMS, STREAMS * 2, TOKENS, chat, "0\r\n\r\n", "data: {")
  return r
end

-- Several tokens an event.
function figures.stream_interval_4(model)
  local server = serve(model, "null", { "--max-num-seqs", STREAMS, "--stream-interval", 4 },
    "PERILUNE_NULL_STEP_US=10000")
  local r = cost(server, STREAMS, STREAMS * 2, TOKENS, chat, "0\r\n\r\n", "data: {")
  return r
end

-- The engine is ahead: what piled up goes in one write.
function figures.stream_behind(model)
  local server = serve(model, "null", { "--max-num-seqs", STREAMS })
  local r = cost(server, STREAMS, STREAMS * 6, TOKENS, chat, "0\r\n\r\n", "data: {")
  return r
end

-- A prompt of 128 tokens, an answer of one.
function figures.request(model)
  local server = serve(model, "null", { "--max-num-seqs", CLIENTS })
  local r = cost(server, CLIENTS, 3000, 1, completion, '"kv_transfer_params":null}')
  return r
end

local model = arg[1] or os.getenv "PERILUNE_MODEL"
local report = {}
local wanted = { select(2, unpack(arg)) }
if #wanted == 0 then wanted = { "stream_paced", "stream_interval_4", "stream_behind", "request" } end
for _, name in ipairs(wanted) do
  local ok, result = xpcall(figures[name], debug.traceback, model)
  child.stop_all()
  if not ok then error(result, 0) end
  report[name] = result
  print(name, json.encode(report[name]))
end
print(json.encode(report))
