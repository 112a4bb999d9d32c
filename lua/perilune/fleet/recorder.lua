-- SPDX-License-Identifier: Apache-2.0
-- fleet/recorder.lua - writes requests to a file as they end, for `perilune sim`.
--
--     local r = recorder.open(path)        nil and why
--     local notes = r:note(job)            before it is sent: its prompts
--     r:write(notes, job)                  it has ended
--
-- A line for each sequence: when the request came, how long prompt and answer were, and a
-- number for each block of the prompt, made of its hash: nothing of the text.

local pl = require "perilune.ffi"
local log = require "perilune.log"
local requests = require "perilune.watch.requests"
local C, ffi = pl.C, pl.ffi

local M = {}
M.__index = M

local seq_ptr = ffi.typeof "pl_seq *"
local LINE = '{"timestamp": %.3f, "input_length": %d, "output_length": %d, '
  .. '"block_size": %d, "priority": %d, "hash_ids": [%s]}\n'

function M.open(path)
  local file, why = io.open(path, "a")
  if not file then return nil, why end
  file:setvbuf "line"
  return setmetatable({ file = file }, M)
end

-- 53 of its bits, which a JSON number can hold.
local function number_of(key)
  return ("%.0f"):format(tonumber(bit.rshift(key, 11)))
end

-- Of one sequence: the numbers of its blocks, the last of which may be cut; nil: it is
-- not known how its workers name blocks.
local function ids_of(served, choice)
  local naming = choice.seq and served.naming
  if not naming then return nil end
  local n, size = choice.prompt.n_tokens, served.terms.block_size
  local keys = ffi.new("uint64_t[?]", math.floor(n / size) + 1)
  local full = C.pl_naming_keys(naming, ffi.cast(seq_ptr, choice.seq), 0, keys, n / size)
  local ids = {}
  for i = 1, full do ids[i] = number_of(keys[i - 1]) end
  -- What is cut has no name: it is taken to be like no other.
  for i = full + 1, math.ceil(n / size) do ids[i] = number_of(C.pl_entropy()) end
  return table.concat(ids, ", ")
end

function M.note(_, job)
  local ids = {}
  for i, choice in ipairs(job.choices) do ids[i] = ids_of(job.served, choice) or false end
  return ids
end

function M:write(ids, job)
  for i, choice in ipairs(job.choices) do
    local so_far = requests.so_far(choice)
    if ids[i] and so_far and so_far.n_tokens > 0 then
      local ok, why = self.file:write(LINE:format(tonumber(job.arrived) / 1e6,
        choice.prompt.n_tokens, so_far.n_tokens, job.served.terms.block_size,
        job.plan.priority, ids[i]))
      if not ok and not self.failed then log.error("record: %s", why) end
      self.failed = not ok
    end
  end
end

function M:close()
  self.file:close()
end

return M
