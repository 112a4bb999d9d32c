-- SPDX-License-Identifier: Apache-2.0
-- recipe/roles.lua - which parts of a recipe a process is: the frontend, and workers of
-- its pools.

local nearest = require "perilune.recipe.nearest"

local M = {}

-- The roles named as a set, all of a recipe's where none is; or nil, what is wrong, hint.
function M.set(resolved, named)
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
