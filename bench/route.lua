-- SPDX-License-Identifier: Apache-2.0
-- route.lua - the index of who holds which blocks: a table, then a line of JSON.
--
--   build/perilune lua bench/route.lua [BLOCKS] [DEPTH]
--
-- Prompts of DEPTH (24) blocks, BLOCKS (a million) different ones, held by one worker of
-- 64 or by all of them; looked up in random order. `chase`: a read that waits for the one
-- before, in as many bytes: what the machine's memory makes of a lookup that fetches
-- nothing ahead. The best of ten rounds, since other programs slow memory down.

local json = require "cjson.safe"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local BLOCKS, DEPTH = tonumber(arg[1] or 1e6), tonumber(arg[2] or 24)
local ROUNDS, WORKERS, LOOKUPS = 10, 64, 100000
local PROMPTS = math.floor(BLOCKS / DEPTH)

local names = ffi.new("uint64_t[?]", PROMPTS * DEPTH)
for i = 0, PROMPTS * DEPTH - 1 do names[i] = C.pl_random_at(1, i, 0) end
local order = ffi.new("int32_t[?]", LOOKUPS)
for i = 0, LOOKUPS - 1 do
  order[i] = tonumber(C.pl_random_at(2, i, 0) % PROMPTS)
end
local depths = ffi.new("int32_t[?]", 8192)

-- The least nanoseconds of fn(i) each, i from 0 to n - 1.
local function time(n, fn)
  local best = math.huge
  for _ = 1, ROUNDS do
    local began = C.pl_now_ns()
    for i = 0, n - 1 do fn(i) end
    best = math.min(best, tonumber(C.pl_now_ns() - began) / n)
  end
  return best
end

local function index_of(holders)
  local x = C.pl_route_open(4 * BLOCKS)
  for _ = 1, WORKERS do C.pl_route_join(x) end
  local began = C.pl_now_ns()
  for p = 0, PROMPTS - 1 do
    for h = 0, holders - 1 do
      C.pl_route_store(x, (p + h) % WORKERS, names + p * DEPTH, DEPTH)
    end
  end
  local ns = tonumber(C.pl_now_ns() - began)
  return x, PROMPTS * DEPTH * holders / ns * 1e3
end

-- A prompt's names were just computed when they are looked up: here they are copied to
-- where they are near, SOME prompts at a time, which is not counted.
local function lookup(x)
  local SOME, best = 50, math.huge
  local near = ffi.new("uint64_t[?]", SOME * DEPTH)
  for _ = 1, ROUNDS do
    local ns = 0
    for first = 0, LOOKUPS - 1, SOME do
      for i = 0, SOME - 1 do
        ffi.copy(near + i * DEPTH, names + order[first + i] * DEPTH, 8 * DEPTH)
      end
      local began = C.pl_now_ns()
      for i = 0, SOME - 1 do C.pl_route_match(x, near + i * DEPTH, DEPTH, depths) end
      ns = ns + tonumber(C.pl_now_ns() - began)
    end
    best = math.min(best, ns / LOOKUPS)
  end
  return best
end

-- Blocks that go and come, as an engine at work reports them: millions a second.
local function churn(x)
  local ns = time(PROMPTS, function(p)
    C.pl_route_remove(x, p % WORKERS, names + p * DEPTH, DEPTH)
    C.pl_route_store(x, p % WORKERS, names + p * DEPTH, DEPTH)
  end)
  return 2 * DEPTH / ns * 1e3
end

local function chase(bytes)
  local n = math.floor(bytes / 64)
  local at = ffi.new("int32_t[?]", n * 16)
  for i = 0, n - 1 do at[i * 16] = i end
  for i = n - 1, 1, -1 do                   -- one cycle through all (Sattolo)
    local j = tonumber(C.pl_random_at(3, i, 0) % i)
    at[i * 16], at[j * 16] = at[j * 16], at[i * 16]
  end
  local where = 0
  return time(1e6, function() where = at[where * 16] end)
end

local report, stats = {}, ffi.new "pl_route_stats"
local function row(name, unit, value)
  report[name] = value
  print(("%-18s %9.1f %s"):format(name, value, unit))
end

local x, stored = index_of(1)
C.pl_route_stats_get(x, stats)
row("lookup_1", "ns, 1 holder", lookup(x))
row("store", "million blocks/s, an empty index that grows", stored)
row("churn", "million blocks/s, removed and stored", churn(x))
row("bytes", "a block", tonumber(stats.bytes) / tonumber(stats.blocks))
row("chase", "ns", chase(tonumber(stats.bytes)))
C.pl_route_close(x)
x = index_of(WORKERS)
C.pl_route_stats_get(x, stats)
row("lookup_64", "ns, 64 holders", lookup(x))
row("bytes_64", "a block, 64 holders", tonumber(stats.bytes) / tonumber(stats.blocks))
C.pl_route_close(x)
print(json.encode(report))
