-- SPDX-License-Identifier: Apache-2.0
-- recipe/own.lua - what hooks of pl.pick and pl.queue remember, each recipe's apart.
--
--     own.memory("pl.pick.sticky", new)    of the recipe whose hook is asked
--     own.made("pl.pick.sticky", new)      of a hook made while a recipe is loaded
--
-- It is among what the recipe keeps (pl.keep), so it survives a reload; and where several
-- recipes are in one process, as in a simulation of many policies, none sees another's.

local M = {}

-- Whose it is where no recipe's hook is asked: in a test of a recipe.
local kept = {}
local n_made                                -- by name, while a recipe is loaded

-- From now on it is among these; answers what it was among before.
function M.enter(other)
  local was = kept
  kept = other
  return was
end

-- What is remembered in this way among what a recipe keeps, as a table of its own.
function M.part(its)
  local out = {}
  for name, memory in pairs(its) do
    if name:find "^pl%." then out[name] = memory end
  end
  return out
end

-- A recipe is loaded that keeps these; over once what it answers is called.
function M.load(its)
  local was_kept, was_made = M.enter(its), n_made
  n_made = {}
  return function() kept, n_made = was_kept, was_made end
end

-- What is remembered under a name; made by new() when there is nothing.
function M.memory(name, new)
  local memory = kept[name]
  if memory == nil then
    memory = new()
    kept[name] = memory
  end
  return memory
end

-- What the next hook of that name remembers: the third that a recipe makes is the third
-- again when it is read anew.
function M.made(name, new)
  if not n_made then return new() end
  n_made[name] = (n_made[name] or 0) + 1
  return M.memory(("%s %d"):format(name, n_made[name]), new)
end

return M
