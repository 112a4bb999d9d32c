-- SPDX-License-Identifier: Apache-2.0
-- Runs spec files, each in a process of its own (tests/spec.lua), several at a time:
--
--   build/perilune lua tests/run.lua JOBS FOLDER|FILE...
--
-- Prints a line for each spec when it ends, and below it what the spec said; at the end the
-- slowest, and "N passed, N failed". A spec that runs for more than PERILUNE_SPEC_SECONDS
-- (600) is ended, and the test named that it was in. The exit code is 1 where one failed.

package.path = "./lua/?.lua;./lua/?/init.lua;./tests/?.lua;" .. package.path
local process = require "support.process"
local report = require "report"
local ffi = require "ffi"

ffi.cdef "struct t_time { long s, ns; }; int clock_gettime(int, struct t_time *);"

local SECONDS = tonumber(os.getenv "PERILUNE_SPEC_SECONDS") or 600

-- These take longest: begun last, they would be waited for alone.
local FIRST = { "tests/golden/exact_spec.lua", "tests/stress/chaos_spec.lua",
  "tests/system/bus_hostile_spec.lua", "tests/system/first_spec.lua",
  "tests/system/drain_resume_spec.lua", "tests/unit/model_walk_spec.lua",
  "tests/unit/remote_spec.lua", "tests/unit/template_spec.lua" }

local function now()
  local t = ffi.new "struct t_time"
  ffi.C.clock_gettime(1, t)
  return tonumber(t.s) + tonumber(t.ns) * 1e-9
end

local function specs_of(words)
  local order, list = {}, {}
  for i, file in ipairs(FIRST) do order[file] = i end
  for _, word in ipairs(words) do
    local pipe = io.popen(("find '%s' -name '*_spec.lua' | LC_ALL=C sort"):format(word))
    for file in pipe:lines() do
      list[#list + 1] = { file = file, word = word, place = #FIRST + #list }
    end
    pipe:close()
  end
  for _, spec in ipairs(list) do spec.place = order[spec.file] or spec.place + 1 end
  table.sort(list, function(a, b) return a.place < b.place end)
  return list
end

-- What it starts is in its process group: timeout ends all of that, and is itself ended
-- with this process.
local function start(spec)
  spec.began = now()
  spec.process = process.start({ "--pdeathsig", "TERM", "timeout", "-k", "10",
    tostring(SECONDS), process.own_path(), "lua", "tests/spec.lua", spec.file,
    "--output=gtest", "--defer-print" }, nil, "setpriv")
end

local function finish(spec)
  spec.seconds = now() - spec.began
  local p = spec.process
  for k, v in pairs(report.read(p:log(), p.code, p.killed_by)) do spec[k] = v end
  p:remove()
  io.write(report.line(spec), spec.said)
  io.flush()
end

local function run_all(specs, jobs)
  local running, next_one = {}, 1
  while next_one <= #specs or running[1] do
    while #running < jobs and specs[next_one] do
      start(specs[next_one])
      running[#running + 1] = specs[next_one]
      next_one = next_one + 1
    end
    process.sleep(0.02)
    for i = #running, 1, -1 do
      if not running[i].process:runs() then finish(table.remove(running, i)) end
    end
  end
end

local jobs, words = tonumber(arg[1]), { unpack(arg, 2) }
local began, specs = now(), specs_of(words)
run_all(specs, jobs)
io.write(report.sum(words, specs, now() - began))
for _, spec in ipairs(specs) do
  if spec.failed > 0 then return 1 end
end
return #specs > 0 and 0 or 1
