-- SPDX-License-Identifier: Apache-2.0
-- recipe/machine.lua - what this machine has, where a default depends on it.

local M = {}

local GIB = 2 ^ 30

local function first_number(path, pattern)
  local file = io.open(path)
  if not file then return nil end
  local text = file:read "*a"
  file:close()
  return tonumber(text and text:match(pattern))
end

-- Bytes of memory that this process may use, or nil where the system does not say: the
-- machine's, or its control group's where that is less.
function M.memory()
  local kib = first_number("/proc/meminfo", "MemTotal:%s*(%d+) kB")
  local group = first_number("/sys/fs/cgroup/memory.max", "^(%d+)")
  local all = kib and kib * 1024
  return all and group and math.min(all, group) or all or group
end

-- Bytes for the KV cache unless told otherwise, in whole MiB.
function M.kv_bytes()
  local quarter = (M.memory() or 4 * GIB) / 4
  return math.floor(math.min(4 * GIB, quarter) / 2 ^ 20) * 2 ^ 20
end

-- Of a line of /proc/net/tcp in state 0A, LISTEN: the port and the socket's inode.
local LISTENS = "^%s*%d+: %x+:(%x+) %x+:%x+ 0A %S+ %S+ %x+%s+%d+%s+%d+ (%d+)"

local function listening_inode(port)
  for _, path in ipairs { "/proc/net/tcp", "/proc/net/tcp6" } do
    local file = io.open(path)
    for line in file and file:lines() or function() end do
      local at, inode = line:match(LISTENS)
      if at and tonumber(at, 16) == port then
        file:close()
        return inode
      end
    end
    if file then file:close() end
  end
end

-- Who listens at a TCP port here: "nginx (process 812)"; nil where that cannot be seen.
function M.listener(port)
  local inode = listening_inode(port)
  if not inode then return nil end
  local find = "find /proc/[0-9]*/fd -lname 'socket:\\[%s\\]' 2>/dev/null"
  local pipe = io.popen(find:format(inode))
  local pid = pipe:read "*a":match "^/proc/(%d+)/"
  pipe:close()
  local file = pid and io.open("/proc/" .. pid .. "/comm")
  if not file then return nil end
  local name = file:read "*l"
  file:close()
  return name and ("%s (process %s)"):format((name:gsub("[^%w._-]", "?")), pid)
end

function M.host_name()
  local file = io.open "/proc/sys/kernel/hostname"
  local name = file and file:read "*l"
  if file then file:close() end
  return name or "?"
end

-- The folder for what is fetched once.
function M.cache_folder(getenv)
  local cache = getenv "XDG_CACHE_HOME"
  if not cache or cache == "" then cache = (getenv "HOME" or "") .. "/.cache" end
  return cache .. "/perilune"
end

-- The model that ./dev run fetches, or nil where it did not.
function M.fetched_model()
  local path = M.cache_folder(os.getenv) .. "/SmolLM2-135M-Instruct.Q4_1.gguf"
  local file = io.open(path)
  if not file then return nil end
  file:close()
  return path
end

return M
