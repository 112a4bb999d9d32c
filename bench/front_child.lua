-- SPDX-License-Identifier: Apache-2.0
-- front_child.lua - a program started to be measured: its CPU time, memory and writes.

local pl = require "perilune.ffi"
local C = pl.C

local M = {}
M.__index = M

local running = {}

local function read(path)
  local f = io.open(path, "rb")
  if not f then return "" end
  local text = f:read "*a" or ""
  f:close()
  return text
end
M.read = read

local function quote(word) return "'" .. tostring(word):gsub("'", "'\\''") .. "'" end

-- Runs words[1] with the rest as its arguments. `env`: "NAME=value" before them.
function M.start(words, env)
  local quoted = {}
  for i, word in ipairs(words) do quoted[i] = quote(word) end
  local log = os.tmpname()
  local self = setmetatable({ log = log, started = C.pl_now_ns() }, M)
  self.pipe = io.popen(("echo $$; exec env %s %s >%s 2>&1"):format(env or "",
    table.concat(quoted, " "), log))
  self.pid = assert(self.pipe:read "*n", "no process")
  running[#running + 1] = self
  return self
end

-- Waits until the log says it: what the pattern captures.
function M:wait(pattern, seconds)
  local until_ = C.pl_now_ns() + seconds * 1000000000LL
  while C.pl_now_ns() < until_ do
    local text = read(self.log)
    local found = text:match(pattern)
    if found then return found end
    if read(("/proc/%d/stat"):format(self.pid)) == "" then error(text, 0) end
    os.execute "sleep 0.01"
  end
  error("no '" .. pattern .. "' in time:\n" .. read(self.log), 0)
end

-- CPU time so far in ns, of all its threads.
function M:cpu()
  local sum = 0
  local list = io.popen(("ls /proc/%d/task"):format(self.pid))
  for task in list:lines() do
    local text = read(("/proc/%d/task/%s/schedstat"):format(self.pid, task))
    sum = sum + (tonumber(text:match "^%d+") or 0)
  end
  list:close()
  return sum
end

-- Calls of write so far: to sockets, but for a line of log here and there.
function M:writes()
  return tonumber(read(("/proc/%d/io"):format(self.pid)):match "syscw: (%d+)")
end

-- Its share of memory, in MiB.
function M:pss()
  local text = read(("/proc/%d/smaps_rollup"):format(self.pid))
  return tonumber(text:match "\nPss: +(%d+)") / 1024
end

function M.stop_all()
  for _, self in ipairs(running) do
    os.execute(("kill -INT %d"):format(self.pid))
    self.pipe:close()
    os.remove(self.log)
  end
  running = {}
end

return M
