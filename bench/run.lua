-- SPDX-License-Identifier: Apache-2.0
-- run.lua - the engine's speed, and llama.cpp's beside it; the front end; many processes;
-- routing by cached prefixes: tables, then a line of JSON.
--
--   build/perilune lua bench/run.lua [--model FILE] [--peer] [--rounds N] [--threads N]
--
-- perilune and its peer are measured in turn, round after round, for a machine's speed
-- may change by the minute: how fast one core copies memory is measured with each.
-- Figures are tokens a second, the median of the rounds.

local json = require "cjson.safe"
local pl = require "perilune.ffi"

local PROGRAM = os.getenv "PERILUNE" or "build/perilune"
local KINDS = { "decode", "prefill_512", "batch_16" }

local function options(words)
  local o = { model = os.getenv "PERILUNE_MODEL", rounds = "3", threads = "2" }
  local i = 1
  while words[i] do
    local name = words[i]:match "^%-%-(%l+)$"
    if name == "peer" then
      o.peer = true
    elseif name and (o[name] or name == "model") and words[i + 1] then
      i = i + 1
      o[name] = words[i]
    else
      error("bench: '" .. words[i] .. "', wanted --model, --peer, --rounds, --threads", 0)
    end
    i = i + 1
  end
  if not o.model then error("bench: no model, wanted --model or $PERILUNE_MODEL", 0) end
  o.rounds, o.threads = assert(tonumber(o.rounds)), assert(tonumber(o.threads))
  return o
end

local function quote(word) return "'" .. word:gsub("'", "'\\''") .. "'" end

-- Runs a command; its last line as JSON. What came before is shown if `show` is true.
local function run(show, ...)
  local words = { ... }
  for i, word in ipairs(words) do words[i] = quote(tostring(word)) end
  local pipe = io.popen(table.concat(words, " "))
  local last
  for line in pipe:lines() do
    if show and last then print(last) end
    last = line
  end
  pipe:close()
  local result, why = json.decode(last or "")
  if not result then error(("bench: %s: %s"):format(table.concat(words, " "), why), 0) end
  return result
end

local size = 256 * 2 ^ 20
local from, to = pl.ffi.new("uint8_t[?]", size, 1), pl.ffi.new("uint8_t[?]", size)

local function copy_speed()
  local best = 0
  for _ = 1, 3 do
    local start = pl.C.pl_now_ns()
    pl.ffi.copy(to, from, size)
    best = math.max(best, size / tonumber(pl.C.pl_now_ns() - start))
  end
  return best
end

local function median(rows, key)
  local all = {}
  for i, row in ipairs(rows) do all[i] = row[key] end
  table.sort(all)
  local half = math.floor(#all / 2)
  return #all % 2 == 1 and all[half + 1] or (all[half] + all[half + 1]) / 2
end

local function measure(o)
  local own, peer = {}, {}
  for i = 1, o.rounds do
    local speed = copy_speed()
    own[i] = run(false, PROGRAM, "lua", "bench/engine.lua", o.model, o.threads)
    own[i].copy = speed
    if o.peer then
      speed = copy_speed()
      peer[i] = run(false, "build/venv-bench/bin/python", "bench/peer.py", o.model,
        "--threads", o.threads, "--rounds", 3)
      peer[i].copy = speed
    end
  end
  return own, peer
end

local function print_row(name, a, b)
  local line = ("%-14s %10.1f"):format(name, a)
  if b then line = ("%s %10.1f %8.2f"):format(line, b, a / b) end
  print(line)
end

local o = options(arg)
local own, peer = measure(o)
local report = { model = o.model, threads = o.threads, rounds = own, peer_rounds = peer }

print(("%-14s %10s"):format("tokens/s", "perilune")
      .. (o.peer and "  llama.cpp    ratio" or ""))
for _, kind in ipairs(KINDS) do
  local a, b = median(own, kind), o.peer and median(peer, kind) or nil
  print_row(kind, a, b)
  report[kind] = { perilune = a, peer = b }
end
print_row("copy, GB/s", median(own, "copy"), o.peer and median(peer, "copy") or nil)
report.front = run(true, PROGRAM, "lua", "bench/front.lua", o.model)
report.bus = run(true, PROGRAM, "lua", "bench/bus.lua", o.model)
report.prefixes = run(true, PROGRAM, "lua", "bench/prefixes.lua", o.model)
print(json.encode(report))
