-- SPDX-License-Identifier: Apache-2.0
-- recipe/maker.lua - hooks with options: used as they are, or called with options by name
-- to make another one.
--
--     M.kv = maker.of("pl.cost.kv", { scale = 1 }, function(o)
--       return function(req, w) return o.scale * req.blocks end
--     end)
--     pl.cost.kv(req, w)          pl.cost.kv { scale = 2 }

local nearest = require "perilune.recipe.nearest"
local own = require "perilune.recipe.own"

local M = {}

local known = {}                            -- name -> defaults

-- The options of a hook of that name, with their defaults.
function M.defaults(name)
  return known[name]
end

local function fits(v, default)
  if type(v) ~= type(default) then return false end
  return type(v) ~= "number" or v >= 0 and v < math.huge
end

local function checked(name, defaults, options)
  local out, names = {}, {}
  for key, default in pairs(defaults) do
    out[key], names[#names + 1] = default, key
  end
  for key, v in pairs(options) do
    local default = defaults[key]
    if default == nil then
      local near = nearest(tostring(key), names)
      error(("%s has no option '%s'%s"):format(name, tostring(key),
        near and ("; did you mean '%s'?"):format(near) or ""), 3)
    end
    if not fits(v, default) then
      error(("%s: %s is '%s'; it wants a %s%s"):format(name, key, tostring(v),
        type(default), type(default) == "number" and ", at least 0" or ""), 3)
    end
    out[key] = v
  end
  return out
end

-- One with these options.
local function made(name, make, new, options)
  return make(options, new and own.made(name, function() return new(options) end))
end

-- `make(options, memory)` answers a hook, which is always called with a request and
-- something more. The plain one is made at its first use. `new(options)`, if it remembers
-- anything, makes what that is kept in, and memory() answers it.
function M.of(name, defaults, make, new)
  known[name] = defaults
  local plain
  local function fresh() return new(defaults) end
  local function of_recipe() return own.memory(name, fresh) end
  return function(req, about, more)
    if type(about) ~= "nil" then            -- compared with nil, a `w` must be made
      plain = plain or make(defaults, of_recipe)
      return plain(req, about, more)
    end
    if type(req) ~= "table" then
      error(("%s: wants options by name"):format(name), 2)
    end
    return made(name, make, new, checked(name, defaults, req))
  end
end

return M
