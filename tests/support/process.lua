-- SPDX-License-Identifier: Apache-2.0
-- process.lua - this program, or another, as a process: started, signalled, waited for.
--
--   local p = process.start({ "run", "agg", "--port", "0" })
--   p:signal "TERM"
--   local code = p:wait(2)      -- the exit code; nil and why where it has not ended so
--   p:log()                     -- what it wrote to standard error and output so far

local ffi = require "ffi"

ffi.cdef [[
struct t_spawn { char opaque[1024]; };
int posix_spawnp(int *, const char *, const struct t_spawn *, const struct t_spawn *,
                 const char *const *, const char *const *);
int posix_spawn_file_actions_init(struct t_spawn *);
int posix_spawn_file_actions_destroy(struct t_spawn *);
int posix_spawn_file_actions_addopen(struct t_spawn *, int, const char *, int, unsigned);
int posix_spawn_file_actions_adddup2(struct t_spawn *, int, int);
int posix_spawnattr_init(struct t_spawn *);
int posix_spawnattr_destroy(struct t_spawn *);
int posix_spawnattr_setflags(struct t_spawn *, short);
int posix_spawnattr_setsigdefault(struct t_spawn *, const struct t_spawn *);
int sigfillset(struct t_spawn *);
int kill(int, int);
int waitpid(int, int *, int);
int usleep(unsigned);
ssize_t readlink(const char *, char *, size_t);
extern const char *const *environ;
]]
local C = ffi.C
local O_RDONLY, O_CREATE, SETSIGDEF, NOHANG = 0, 0x241, 4, 1
local SIGNALS = { HUP = 1, INT = 2, KILL = 9, TERM = 15, CONT = 18, STOP = 19 }

local M = {}

local Process = {}
Process.__index = Process

-- The program that runs the tests, whichever build that is.
function M.own_path()
  local room = ffi.new "char[4096]"
  local n = C.readlink("/proc/self/exe", room, 4096)
  assert(n > 0, "no /proc/self/exe")
  return ffi.string(room, n)
end

-- Under a sanitizer all of it is slower by far.
M.slow = M.own_path():find "build%-[at]san" ~= nil

local function strings(list)
  local out = ffi.new("const char *[?]", #list + 1)
  for i, s in ipairs(list) do out[i - 1] = s end
  return out
end

-- This process's environment with `changes` (false removes).
local function environment(changes)
  local out, i = {}, 0
  while C.environ[i] ~= nil do
    local entry = ffi.string(C.environ[i])
    if changes[entry:match "^[^=]*"] == nil then out[#out + 1] = entry end
    i = i + 1
  end
  for name, value in pairs(changes) do
    if value then out[#out + 1] = name .. "=" .. value end
  end
  return out
end

-- Runs the program (or another) with these words. Signals ignored here are not ignored
-- there.
function M.start(words, env, program)
  local path, log = program or M.own_path(), os.tmpname()
  local argv, envp = { path, unpack(words) }, environment(env or {})
  local files, attributes, all = ffi.new "struct t_spawn", ffi.new "struct t_spawn",
    ffi.new "struct t_spawn"
  C.posix_spawn_file_actions_init(files)
  C.posix_spawn_file_actions_addopen(files, 0, "/dev/null", O_RDONLY, 0)
  C.posix_spawn_file_actions_addopen(files, 1, log, O_CREATE, 384)
  C.posix_spawn_file_actions_adddup2(files, 1, 2)
  C.posix_spawnattr_init(attributes)
  C.sigfillset(all)
  C.posix_spawnattr_setsigdefault(attributes, all)
  C.posix_spawnattr_setflags(attributes, SETSIGDEF)
  local pid = ffi.new "int[1]"
  local failed = C.posix_spawnp(pid, path, files, attributes, strings(argv), strings(envp))
  C.posix_spawn_file_actions_destroy(files)
  C.posix_spawnattr_destroy(attributes)
  assert(failed == 0, "cannot run " .. path)
  return setmetatable({ pid = pid[0], log_path = log }, Process)
end

function M.sleep(seconds)
  C.usleep(seconds * 1e6)
end

function Process:signal(name)
  assert(not self.ended, "it has ended")
  C.kill(self.pid, SIGNALS[name])
end

-- Whether it runs; once it does not, `code` or `killed_by` are set.
function Process:runs()
  if self.ended then return false end
  local status = ffi.new "int[1]"
  if C.waitpid(self.pid, status, NOHANG) ~= self.pid then return true end
  self.ended = true
  local signal = bit.band(status[0], 127)
  if signal == 0 then
    self.code = bit.band(bit.rshift(status[0], 8), 255)
  else
    self.killed_by = signal
  end
  return false
end

-- Polls until test() is true or the time is up; answers its last value.
function M.wait_for(seconds, test)
  local deadline = os.time() + seconds + 1
  local value = test()
  while not value and os.time() < deadline do
    C.usleep(5000)
    value = test()
  end
  return value
end

-- The exit code, within that time; else nil and why.
function Process:wait(seconds)
  if not M.wait_for(seconds, function() return not self:runs() end) then
    return nil, "it still runs"
  end
  return self.code, self.killed_by and "killed by signal " .. self.killed_by
end

function Process:log()
  local f = assert(io.open(self.log_path))
  local text = f:read "*a"
  f:close()
  return text
end

-- Ends it whatever it does, and forgets its log.
function Process:remove()
  if self:runs() then
    self:signal "KILL"
    self:wait(10)
  end
  os.remove(self.log_path)
end

return M
