-- SPDX-License-Identifier: Apache-2.0
-- mutate.lua - faults as replacements of text, and a build's commands changed to take them.

local M = {}

-- `text` with `old`, which must be there once, replaced; or nil and why not.
function M.replace(text, old, new)
  local from, to = text:find(old, 1, true)
  if not from then return nil, "this text is not there any more: " .. old end
  if text:find(old, to + 1, true) then return nil, "this text is there twice: " .. old end
  return text:sub(1, from - 1) .. new .. text:sub(to + 1)
end

-- The text of a row's file with its fault; or nil and why not.
function M.apply(row)
  local f, why = io.open(row.file)
  if not f then return nil, why end
  local text = f:read "*a"
  f:close()
  local changed
  changed, why = M.replace(text, row.old, row.new)
  return changed, why and row.file .. ": " .. why
end

-- A command with each `old` replaced; one at least must be there.
function M.swap(command, old, new)
  local out, n = command:gsub(old:gsub("%p", "%%%0"), (new:gsub("%%", "%%%%")))
  return n > 0 and out or error(("no '%s' in %s"):format(old, command), 0)
end

-- From what `ninja -t commands` says: the command that compiles a file, the last one, which
-- links, and the object that goes from one to the other.
function M.commands(said, source)
  local compile
  for line in said:gmatch "[^\n]+" do
    if line:sub(-#source - 4) == " -c " .. source then compile = line end
  end
  if not compile then error("the build does not compile " .. source, 0) end
  return compile, said:match "([^\n]+)\n*$", compile:match " %-o (%S+)"
end

return M
