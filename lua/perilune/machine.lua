-- SPDX-License-Identifier: Apache-2.0
-- machine.lua - what this machine has, where a default depends on it.

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

-- The model that ./dev run fetches, or nil where it did not.
function M.fetched_model()
  local cache = os.getenv "XDG_CACHE_HOME"
  if not cache or cache == "" then cache = (os.getenv "HOME" or "") .. "/.cache" end
  local path = cache .. "/perilune/SmolLM2-135M-Instruct.Q4_1.gguf"
  local file = io.open(path)
  if not file then return nil end
  file:close()
  return path
end

return M
