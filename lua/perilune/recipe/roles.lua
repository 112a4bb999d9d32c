-- SPDX-License-Identifier: Apache-2.0
-- recipe/roles.lua - which parts of a recipe a process is: the frontend, and workers of
-- its pools.

local nearest = require "perilune.recipe.nearest"

local M = {}

-- disaggregation_mode says it in vLLM's way.
local function by_mode(resolved, named)
  local mode = resolved.disaggregation_mode
  if mode ~= "agg" and not resolved.bus then
    return nil, ("disaggregation_mode %s needs a bus to find the others"):format(mode),
      "--bus nats://127.0.0.1:4222, or $PERILUNE_BUS"
  end
  if mode == "agg" or resolved.main ~= "decode" then return named end
  if not named[1] then return { mode } end
  return nil, ("disaggregation_mode is %s, and the role is %s: in a recipe with both "
    .. "pools one of the two says enough"):format(mode, table.concat(named, " "))
end

-- The roles named as a set, all of a recipe's where none is; or nil, what is wrong, hint.
function M.set(resolved, words)
  local named, wrong, hint = by_mode(resolved, words)
  if not named then return nil, wrong, hint end
  local set, known = {}, { frontend = true }
  for _, pool in ipairs(resolved.pools) do known[pool] = true end
  for _, role in ipairs(named) do
    if not known[role] then
      local near = nearest(role, { "frontend", unpack(resolved.pools) })
      return nil, ("no role '%s' in %s"):format(role, resolved.file),
        near and ("did you mean '%s'?"):format(near) or "frontend, or the name of a pool"
    end
    set[role] = true
  end
  if not named[1] then return known end
  for role in pairs(known) do
    if not set[role] and not resolved.bus then
      return nil, ("role '%s' alone needs a bus to find the others"):format(named[1]),
        "--bus nats://127.0.0.1:4222, or $PERILUNE_BUS"
    end
  end
  return set
end

-- The pools that a process of these roles has workers of, that which answers first.
function M.pools(recipe, roles)
  local out = {}
  for _, name in ipairs(recipe.pools) do
    if roles[name] then table.insert(out, name == recipe.main and 1 or #out + 1, name) end
  end
  return out
end

-- What such a process is called, with a number.
function M.name(recipe, roles)
  local pools = M.pools(recipe, roles)
  return roles.frontend and "frontend" or #pools == 1 and pools[1] or "worker"
end

return M
