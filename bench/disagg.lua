-- SPDX-License-Identifier: Apache-2.0
-- disagg.lua - what it costs that one worker reads a prompt and another goes on: a table.
--
--   build/perilune lua bench/disagg.lua MODEL
--
-- Two engines of a thread each in one process, which do nothing else. For prompts of some
-- lengths, ms, the least of several turns: to the first token, and from there to the
-- second, with one engine and with two, in alternation; and what copying as much memory
-- takes.

package.path = "./tests/?.lua;" .. package.path
local engine = require "support.engine"
local fleet = require "support.fleet"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local TURNS, LENGTHS = 7, { 64, 512, 2000 }

local path = assert(arg[1], "bench/disagg.lua MODEL")
local n_prompts = 0

local function prompt(n, vocab)
  n_prompts = n_prompts + 1
  local ids = {}
  for i = 1, n do ids[i] = tonumber(C.pl_random_at(n_prompts, i, 0) % vocab) end
  return ids
end

local function open(front)
  for i = 1, 2 do
    local e = engine.over(engine.load(path, { threads = 1 }), { max_model_len = 4096,
      n_blocks = 2048, max_num_batched_tokens = 512 })
    assert(C.pl_runtime_attach(front.rt, e.engine) == 0)
    front.engines[i] = e
  end
  return front.engines[1], front.engines[2]
end

-- To the first token, and from there to the second, in ms.
local function times(front, ids, start)
  local st = front:stream(ids, { temperature = 0, max_tokens = 2, ignore_eos = 1 })
  assert(start(st) == 0)
  while st:next() ~= "done" do end
  local _, r = st:close()
  assert(front:idle())
  return tonumber(r.first_ns - r.submitted_ns) / 1e6,
    tonumber(r.last_ns - r.first_ns) / 1e6
end

local function copy_ms(bytes)
  local from, to = ffi.new("char[?]", bytes), ffi.new("char[?]", bytes)
  local least = math.huge
  ffi.fill(from, bytes, 1)
  for _ = 1, TURNS do
    local began = C.pl_now_ns()
    ffi.copy(to, from, bytes)
    least = math.min(least, tonumber(C.pl_now_ns() - began) / 1e6)
  end
  return least
end

local function less(row, key, value)
  row[key] = math.min(row[key] or math.huge, value)
end

C.pl_log_level(C.PL_LOG_ERROR)
fleet.VOCAB = 49152                         -- names for more tokens than a test needs
local f = fleet.open { hub = false }
local front = f:process { bus = false }
local one, two = open(front)
local block = tonumber(C.pl_model_block_bytes(one.loaded.model))
local vocab = one.loaded.desc.options.vocab

print "tokens      MiB   copy |  first: one    two   more | second: one    two   more"
for _, n in ipairs(LENGTHS) do
  local row = {}
  for _ = 1, TURNS do
    local first, second = times(front, prompt(n, vocab), function(st)
      return st:start(one)
    end)
    less(row, "first", first)
    less(row, "second", second)
    first, second = times(front, prompt(n, vocab), function(st)
      return st:split(one, two)
    end)
    less(row, "first_two", first)
    less(row, "second_two", second)
  end
  local bytes = math.ceil(n / 16) * block
  print(("%6d %8.1f %6.2f | %11.2f %6.2f %6.2f | %11.2f %6.2f %6.2f"):format(n,
    bytes / 2 ^ 20, copy_ms(bytes), row.first, row.first_two, row.first_two - row.first,
    row.second, row.second_two, row.second_two - row.second))
end
f:close()
