-- SPDX-License-Identifier: Apache-2.0
-- recipe/own.lua - what hooks of pl.pick and pl.queue remember, each recipe's apart.
--
--     own.memory("pl.pick.sticky", new)    of the recipe whose hook is asked
--     own.made("pl.pick.sticky", new)      of a hook made while a recipe is loaded
--
-- It is among what the recipe keeps (pl.keep), so it survives a reload; and where several
-- recipes are in one process, as in a simulation of many policies, none sees another's.
-- The pools prefill and decode do not see each other's either.

local M = {}

-- Whose it is where no recipe's hook is asked: in a test of a recipe. And of which pool.
local kept, pool = {}, nil
local n_made                                -- by name, while a recipe is loaded

-- From now on it is among these, of that pool's hooks ("prefill"; nil: any other's);
-- answers both as they were before.
function M.enter(other, of)
  local was, was_of = kept, pool
  kept, pool = other, of
  return was, was_of
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
  local was, was_of = M.enter(its)
  local was_made = n_made
  n_made = {}
  return function()
    M.enter(was, was_of)
    n_made = was_made
  end
end

local function find(among, name, new)
  local key = pool and name .. " of " .. pool or name
  local memory = among[key]
  if memory == nil then
    memory = new()
    among[key] = memory
  end
  return memory
end

-- What is remembered under a name; made by new() when there is nothing.
function M.memory(name, new)
  return find(kept, name, new)
end

-- A function that answers what the next hook of that name remembers: the third that a
-- recipe makes is the third again when it is read anew.
function M.made(name, new)
  local among = n_made and kept or {}
  if n_made then
    n_made[name] = (n_made[name] or 0) + 1
    name = ("%s %d"):format(name, n_made[name])
  end
  return function() return find(among, name, new) end
end

return M
