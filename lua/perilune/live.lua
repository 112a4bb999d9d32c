-- SPDX-License-Identifier: Apache-2.0
-- live.lua - options that change while a server runs.

local log = require "perilune.log"
local schema = require "perilune.schema"
local values = require "perilune.values"

local M = {}

local APPLY = {
  log_level = function(_, v) log.level(v) end,
  ["http.api_key"] = function(server, v) server.api_keys = v end,
}

-- Sets what a path means from now on: true and what to say of it; nil and why not.
function M.set(server, path, value, by)
  local row, apply = schema.find(path:match "[^.]*$"), APPLY[path]
  if not apply then return nil, path .. " cannot be changed while running" end
  local good, why = values.check(row, value)
  if good == nil then return nil, ("%s %s"):format(path, why) end
  apply(server, good)
  return true, ("%s set to %s by %s"):format(path,
    row.secret and "(secret)" or values.show(good), by)
end

return M
