-- SPDX-License-Identifier: Apache-2.0
-- disagg_bus.lua - what it costs that a prompt is read in one process and continued in
-- another: a table.
--
--   build/perilune lua bench/disagg_bus.lua MODEL
--
-- A frontend and one worker, then a frontend, a prefill and a decode worker, on a
-- nats-server; a thread each, and nothing else to do. For prompts of some lengths, ms as
-- the frontend counts them, the least of several turns: to the first token, and from
-- there to the second.

package.path = "./tests/?.lua;" .. package.path
local deployment = require "support.deployment"
local pl = require "perilune.ffi"
local C = pl.C

local TURNS, LENGTHS = 7, { 64, 512, 2000 }
local FLAGS = { "--threads", "1", "--max-model-len", "4096", "--max-num-batched-tokens",
  "512", "--num-kv-blocks", "2048" }

local path = assert(arg[1], "bench/disagg_bus.lua MODEL")
local n_prompts = 0

local function prompt(n)
  n_prompts = n_prompts + 1
  local ids = {}
  for i = 1, n do ids[i] = tonumber(C.pl_random_at(n_prompts, i, 0) % 40000) end
  return ids
end

-- To the first token, and from there to the second, in ms, as the frontend counts them.
local function times(front, n)
  local function sums()
    return front:metric "vllm:time_to_first_token_seconds_sum" or 0,
      front:metric "vllm:inter_token_latency_seconds_sum" or 0
  end
  local first, second = sums()
  local r = front:post("/v1/completions", { prompt = prompt(n), max_tokens = 2,
    temperature = 0, ignore_eos = true })
  assert(r.status == 200, r.text)
  local a, b = sums()
  return (a - first) * 1e3, (b - second) * 1e3
end

local function least(front, n)
  local first, second = math.huge, math.huge
  for _ = 1, TURNS do
    local a, b = times(front, n)
    first, second = math.min(first, a), math.min(second, b)
  end
  return first, second
end

local function bytes(f)
  local sum = 0
  for _, w in ipairs(f.workers) do
    sum = sum + w:metric "perilune_kv_transfer_bytes_total"
  end
  return sum
end

local function start(o)
  o.model, o.worker = path, FLAGS
  return deployment.start(o)
end

C.pl_log_level(C.PL_LOG_ERROR)
local one = start { workers = 1 }
local rows = {}
for i, n in ipairs(LENGTHS) do rows[i] = { n, least(one.frontends[1], n) } end
one:close()
local two = start { workers = { "prefill", "decode" },
  pools = "prefill = {}, decode = {}," }
print "tokens      MiB | first: one    two   more | second: one    two   more"
for _, row in ipairs(rows) do
  local before = bytes(two)
  local first, second = least(two.frontends[1], row[1])
  print(("%6d %8.1f | %10.2f %6.2f %6.2f | %11.2f %6.2f %6.2f"):format(row[1],
    (bytes(two) - before) / TURNS / 2 ^ 20, row[2], first, first - row[2], row[3], second,
    second - row[3]))
end
two:close()
