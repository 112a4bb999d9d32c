-- SPDX-License-Identifier: Apache-2.0
-- front_cost.lua - what a streamed token and a short request cost whoever serves them.
--
-- A server is a port and what is counted of it: cpu() in ns and writes() so far. `over`:
-- what its answers end in, where it is not perilune.

local json = require "cjson.safe"
local load = require "front_load"
local mix = require "front_mix"

-- model: the name that requests give, if any.
local M = { ROUNDS = 5, STREAMS = 64, TOKENS = 128, CLIENTS = 32, model = nil }

function M.median(list)
  table.sort(list)
  return list[math.floor(#list / 2) + 1]
end

function M.chat(k, n_tokens)
  return load.post("/v1/chat/completions", json.encode {
    model = M.model, messages = { { role = "user", content = mix.prose(106, k) } },
    stream = true, max_tokens = n_tokens or M.TOKENS, ignore_eos = true,
    temperature = 0 })
end

function M.completion(k)
  return load.post("/v1/completions", json.encode {
    model = M.model, prompt = mix.prose(128, k), max_tokens = 1, temperature = 0 })
end

-- CPU microseconds, writes and events a unit, of `total` requests of `units` units each:
-- the medians of the rounds, and the least CPU time.
local function cost(server, n, total, units, request, over, count)
  local connections, base = load.open(server.port, n), 0
  local us, writes, events = {}, {}, {}
  for round = 0, M.ROUNDS do                -- round 0 warms up
    local texts = {}                        -- made before: the client must keep up
    for k = 1, total do texts[k] = request(base + k) end
    base = base + total
    local cpu, written = server:cpu(), server:writes()
    local seen = load.run(connections, total, function(k) return texts[k] end, over,
      count)
    us[round] = (server:cpu() - cpu) / 1e3 / (total * units)
    writes[round] = (server:writes() - written) / (total * units)
    events[round] = seen / (total * units)
  end
  load.close(connections)
  return { us = M.median(us), least_us = us[1], writes = M.median(writes),
    events = count and M.median(events) or nil }
end

-- Of a streamed token. A server that has answered for a while has its paths compiled, so
-- it does first.
function M.streams(server, requests)
  local connections = load.open(server.port, M.STREAMS)
  load.run(connections, 2000, function(k) return M.chat(-k, 2) end, "0\r\n\r\n")
  load.close(connections)
  return cost(server, M.STREAMS, M.STREAMS * requests, M.TOKENS, M.chat, "0\r\n\r\n",
    "data: {")
end

-- Of a completion of 128 tokens in, 1 out.
function M.requests(server)
  return cost(server, M.CLIENTS, 1500, 1, M.completion,
    server.over or '"kv_transfer_params":null}')
end

return M
