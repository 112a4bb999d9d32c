-- SPDX-License-Identifier: Apache-2.0
-- recipe/memory.lua - what a hook can reach: to forget what is compiled of it, or to put
-- back what it has changed.
--
--     local restore = memory.keep(fn)
--     fn(...)
--     restore()          its upvalues, and all tables that it reaches, are as they were

local M = {}

local MOST = 1e6                            -- values that are kept for a restore

-- Perilune's own, which no hook changes.
local function own()
  local seen = { [_G] = true }
  for _, module in pairs(package.loaded) do seen[module] = true end
  return seen
end

-- Calls on_table(t) and on_function(f) for all that fn, and the table `more`, reach by
-- upvalues, fields and metatables, perilune's own left out, `most` of them at most.
-- Whether that was all.
function M.walk(fn, most, on_table, on_function, more)
  local seen, list, n = own(), { fn, more }, more and 2 or 1
  seen[fn] = true
  if more then seen[more] = true end
  local function add(v)
    local kind = type(v)
    if (kind == "function" or kind == "table") and not seen[v] and n < most then
      seen[v] = true
      n = n + 1
      list[n] = v
    end
  end
  local i = 1
  while i <= n do
    local v = list[i]
    if type(v) == "table" then
      on_table(v)
      for key, item in next, v do
        add(key)
        add(item)
      end
      add(debug.getmetatable(v))
    elseif debug.getinfo(v, "S").what ~= "C" then
      on_function(v)
      local up = 1
      while true do
        local name, item = debug.getupvalue(v, up)
        if not name then break end
        add(item)
        up = up + 1
      end
    end
    i = i + 1
  end
  return n < most
end

local function put_back(t, was)
  for key in next, t do
    if was[key] == nil then rawset(t, key, nil) end
  end
  for key, v in next, was do rawset(t, key, v) end
end

-- Keeps what fn, and the table `more`, reach as it is now; answers a function that puts
-- it back.
function M.keep(fn, more)
  local tables, fns, ups, values, n, room = {}, {}, {}, {}, 0, MOST
  local all = M.walk(fn, MOST, function(t)
    local copy = {}
    for key, v in next, t do
      copy[key] = v
      room = room - 1
    end
    tables[t] = copy
  end, function(f)
    local up = 1
    while debug.getupvalue(f, up) do
      local _, v = debug.getupvalue(f, up)
      n = n + 1
      fns[n], ups[n], values[n] = f, up, v
      up = up + 1
    end
  end, more)
  if not all or room < 0 then error("it remembers too much to be tried", 0) end
  return function()
    for t, was in pairs(tables) do put_back(t, was) end
    for i = 1, n do debug.setupvalue(fns[i], ups[i], values[i]) end
  end
end

return M
