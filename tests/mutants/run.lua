-- SPDX-License-Identifier: Apache-2.0
-- Puts faults into the program, one at a time, and sees whether its tests find them:
--
--   build/perilune lua tests/mutants/run.lua [N]
--
-- All rows of list.lua, or N of them, drawn by PERILUNE_SEED (else the date). The working
-- tree stays as it is: build-mutants/ holds links to its files, of which one is replaced,
-- and a program linked from the release build's objects, of which one is replaced. A fault
-- is found where a spec of its row fails, or runs for more than a minute. Without a fault
-- all these specs must pass there.

package.path = "./tests/?.lua;" .. package.path
local list = require "mutants.list"
local mutate = require "mutants.mutate"
local scratch = require "scratch"

local SECONDS_A_SPEC = 60
local ROOT = os.getenv "PWD"
local TREE = ROOT .. "/build-mutants"

local function must(command, ...)
  command = command:format(...)
  local code, out, err = scratch.sh(command)
  if code ~= 0 then error(command .. "\n" .. out .. err, 0) end
  return out
end

local function write(path, text)
  local f = assert(io.open(path, "w"))
  f:write(text)
  f:close()
end

-- The tree of links, with the program as it is.
local function plant()
  must("rm -rf '%s' && mkdir -p '%s/build'", TREE, TREE)
  for entry in must("ls '%s'", ROOT):gmatch "[^\n]+" do
    if entry == "lua" then
      must("cp -rs '%s/lua' '%s/lua'", ROOT, TREE)
    elseif not entry:find "^build" then
      must("ln -s '%s/%s' '%s/%s'", ROOT, entry, TREE, entry)
    end
  end
  for entry in must("ls '%s/build'", ROOT):gmatch "[^\n]+" do
    if entry ~= "perilune" then must("ln -s '%s/build/%s' '%s/build'", ROOT, entry, TREE) end
  end
  must("cp '%s/build/perilune' '%s/build/perilune'", ROOT, TREE)
end

-- ---- one fault ------------------------------------------------------------------------

-- Compiles a changed C file and links it with the objects of the release build. Answers
-- how to take it back.
local function build(file, text, program)
  local source, changed = ROOT .. "/" .. file, TREE .. "/" .. file:match "[^/]+$"
  local there = ("%s/build/%s"):format(TREE, program)
  local compile, link, object = mutate.commands(
    must("ninja -C '%s/build' -t commands %s", ROOT, program), source)
  must("rm -f '%s'", there)
  write(changed, text)
  must("cd '%s/build' && %s -w && %s", ROOT,     -- something may be unused now
    mutate.swap(mutate.swap(compile, source, changed), object, changed .. ".o"),
    mutate.swap(mutate.swap(link, object, changed .. ".o"), ("-o %s "):format(program),
      ("-o '%s' "):format(there)))
  return function()
    must("rm -f '%s' && cp '%s/build/%s' '%s'", there, ROOT, program, there)
  end
end

local function replace(file, text)
  local path = TREE .. "/" .. file
  os.remove(path)
  write(path, text)
  return function() must("ln -sf '%s/%s' '%s'", ROOT, file, path) end
end

-- Whether all of these specs pass in the tree, and what they said.
local function pass(specs)
  local code, out, err = scratch.sh(("cd '%s' && PERILUNE=$PWD/build/perilune "
    .. "PERILUNE_SPEC_SECONDS=%d build/perilune lua tests/run.lua 2 %s"):format(TREE,
    SECONDS_A_SPEC, table.concat(specs, " ")))
  return code == 0, out .. err
end

local function try(row)
  local change = row.file:find "%.c$" and build or replace
  local take_back = change(row.file, assert(mutate.apply(row)), row.program or "perilune")
  local found = not pass(row.specs)
  take_back()
  print(("%s %s: %s"):format(found and "found   " or "SURVIVED", row.file, row.fault))
  return found
end

-- ---- all ------------------------------------------------------------------------------

local function draw(n, seed)
  local rows = { unpack(list) }
  math.randomseed(seed)
  for i = #rows, 2, -1 do
    local k = math.random(i)
    rows[i], rows[k] = rows[k], rows[i]
  end
  return { unpack(rows, 1, math.min(n, #rows)) }
end

local function specs_of(rows)
  local seen, specs = {}, {}
  for _, row in ipairs(rows) do
    for _, spec in ipairs(row.specs) do
      if not seen[spec] then specs[#specs + 1] = spec end
      seen[spec] = true
    end
  end
  return specs
end

local n = tonumber(arg[1]) or #list
local seed = tonumber(os.getenv "PERILUNE_SEED") or tonumber(os.date "%Y%m%d")
local rows, found = draw(n, seed), 0
print(("mutants: %d of %d, drawn by seed %d"):format(#rows, #list, seed))
plant()
local well, said = pass(specs_of(rows))
if not well then error("without any fault the specs fail:\n" .. said, 0) end
for _, row in ipairs(rows) do
  if try(row) then found = found + 1 end
end
print(("mutants: %d passed, %d failed"):format(found, #rows - found))
return found == #rows and 0 or 1
