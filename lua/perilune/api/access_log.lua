-- SPDX-License-Identifier: Apache-2.0
-- api/access_log.lua - what a request's line in the log says besides its status: why it
-- was refused; or how many tokens it had, and at which worker.

local pl = require "perilune.ffi"
local C = pl.C

local M = {}

-- Bytes of a reason, which may quote what a stranger sent, and workers that are named.
local MAX_REASON, MAX_WORKERS = 300, 4

local function add(x, fields)
  C.pl_exchange_label(x, fields, #fields)
end

-- It is answered with an error.
function M.refused(x, why)
  add(x, "reason\0" .. why:sub(1, MAX_REASON):gsub("%z", " ") .. "\0")
end

local function workers_of(choices)
  if #choices == 1 then return choices[1].worker_name or "" end
  local names, seen = {}, {}
  for _, c in ipairs(choices) do
    local name = c.worker_name
    if name and not seen[name] and #names < MAX_WORKERS then
      seen[name] = true
      names[#names + 1] = name
    end
  end
  return table.concat(names, ",")
end

-- Its choices have ended, with so many tokens of prompts and of answers.
function M.served(x, choices, n_prompt, n_out)
  add(x, ("#prompt_tokens\0%d\0#completion_tokens\0%d\0worker\0%s\0"):format(n_prompt,
    n_out, workers_of(choices)))
end

return M
