-- SPDX-License-Identifier: Apache-2.0
-- recipe/load.lua - runs a recipe's file in a small world, and knows what it said where.
--
-- A recipe is a value: loading it starts nothing and reaches nothing. It sees the plain
-- functions of Lua, `require "perilune"` and the files of its own folder. A global that
-- is not there is an error at its line, read or written: it is always a slip.

local flags = require "perilune.recipe.command_line"
local lines = require "perilune.recipe.lines"
local own = require "perilune.recipe.own"
local recipe_print = require "perilune.recipe.print"
local schema = require "perilune.recipe.schema"

local M = {}

-- Tables come from recipes; who gave each of their fields its value is kept beside them.
local origins = setmetatable({}, { __mode = "k" })

local HEAD = 4096

local loading = {}                          -- loads under way, the innermost last

-- What this file raises where it knows better than Lua's position: text that is whole.
local problem = { __tostring = function(self) return self.text end }

-- `usage`: the command line is to blame, not the recipe; `no_recipe`: for what it names
-- is none.
function M.fail(text, usage, no_recipe)
  error(setmetatable({ text = text, usage = usage, no_recipe = no_recipe }, problem), 0)
end

local function pick(from, names)
  local out = {}
  for name in names:gmatch "%a+" do out[name] = from[name] end
  return out
end

local safe = pick(_G, [[assert error ipairs next pairs pcall rawequal rawget rawset
  select setmetatable tonumber tostring type unpack xpcall]])
safe.print = recipe_print.print
local libraries = {
  string = pick(string, [[byte char find format gmatch gsub len lower match rep
    reverse sub upper]]),
  table = pick(table, "concat insert maxn remove sort"),
  math = pick(math, [[abs ceil cos deg exp floor fmod frexp huge ldexp log max min modf pi
    pow rad sin sqrt tan]]),
  bit = pick(require "bit", [[tobit tohex bnot band bor bxor lshift rshift arshift rol ror
    bswap]]),
  os = pick(os, "getenv"),
}

local function environment(load)
  local env = {}
  for name, value in pairs(safe) do env[name] = value end
  for name, library in pairs(libraries) do
    env[name] = setmetatable({}, { __index = library, __newindex = function(_, key)
      error(("%s.%s assigned; a recipe cannot change it"):format(name, key), 2)
    end })
  end
  env.require = function(name)
    local value = M.require(load, name)     -- no tail call: errors name this one's caller
    return value
  end
  return setmetatable(env, {
    __index = function(_, name)
      local there = rawget(_G, name) ~= nil and "is not for recipes" or "is not defined"
      error(("global '%s' %s"):format(tostring(name), there), 2)
    end,
    __newindex = function(_, name)
      error(("global '%s' assigned; say 'local %s'"):format(name, name), 2)
    end,
  })
end

local function is_binary(text) return text:find "%z" or text:sub(1, 1) == "\27" end

-- A file's text; of a binary one the head alone, for models are named here by mistake.
local function read(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local text, _, failed = file:read(HEAD)
  if not failed then
    text = text or ""
    if not is_binary(text) then text = text .. file:read "*a" end
  end
  file:close()
  return text                               -- nil: a folder
end

-- What is in a file now, as it is loaded; nil: there is none.
M.text = read

local function run(load, path, text)
  if is_binary(text) then
    local named = #loading == 1 and path == load.file
    M.fail(path .. ": is binary; a recipe is Lua source", named, named)
  end
  local chunk, why = loadstring(text, "@" .. path)
  if not chunk then M.fail(why) end
  load.files[#load.files + 1] = { path = path, line = lines(text) }
  local ok, value = pcall(setfenv(chunk, load.env))
  if ok then return value end
  if getmetatable(value) == problem then error(value, 0) end
  value = tostring(value)
  -- A tail call, such as `return pl.extend(...)`, has lost its line.
  M.fail(value:match "^[^\n]-:%d+: " and value or path .. ": " .. value)
end

-- `require` inside a recipe.
function M.require(load, name)
  if name == "perilune" then return require "perilune" end
  local plain = type(name) == "string" and name:match "^[%w_][%w_.-]*$"
  if not plain or name:find("..", 1, true) then
    error("a recipe may require \"perilune\" and names of files beside it", 3)
  end
  local seen = load.modules[name]
  if seen == load then error(("'%s' requires itself"):format(name), 3) end
  if seen ~= nil then return seen end
  local path = load.folder .. name:gsub("%.", "/") .. ".lua"
  local text = read(path)
  load.read[path] = text or false
  if not text then error(("no '%s': looked for '%s'"):format(name, path), 3) end
  load.modules[name] = load
  local value = run(load, path, text)
  load.modules[name] = value == nil and true or value
  return load.modules[name]
end

-- The file that a name means: as it is, with .lua, beside the recipe that names it,
-- beside the program.
local function find(name, from, files)
  local places = { "" }
  if from then places[2] = from.folder end
  places[#places + 1] = require("perilune.host").root .. "/recipes/"
  for _, place in ipairs(places) do
    if place == "" or name:sub(1, 1) ~= "/" then
      for _, ending in ipairs { "", ".lua" } do
        local path = place .. name .. ending
        local text = read(path)
        files[path] = text or false
        if text then return path, text end
      end
    end
  end
  local text = ("no recipe '%s': looked here and in '%s'"):format(name, places[#places])
  M.fail(from and from.file .. ": " .. text or text, not from, not from)
end

-- Where a load says a path was set: its own file first, then those it required.
local function place(load, path)
  for _, file in ipairs(load.files) do
    local line = file.line(path)
    if line then return file.path .. ":" .. line end
  end
  return load.files[1].path
end

local function mark(of, key, where)
  local marks = origins[of] or {}
  origins[of] = marks
  if not marks[key] then marks[key] = where end
end

local function where_is(load, path, value)
  if type(value) == "function" then
    local info = debug.getinfo(value, "S")
    if info.source:sub(1, 1) == "@" then
      return info.source:sub(2) .. ":" .. info.linedefined
    end
  end
  return place(load, path)
end

-- Notes who set what in a recipe's value, where that is not known yet.
local function stamp(load, value)
  for key, v in pairs(value) do
    mark(value, key, where_is(load, tostring(key), v))
    if schema.section_of(key) and type(v) == "table" then
      for name, item in pairs(v) do
        mark(v, name, where_is(load, key .. "." .. tostring(name), item))
      end
    end
  end
end

-- Who gave `of`, a table of a recipe, its field `key`: "recipes/agg.lua:5".
function M.origin(of, key)
  return origins[of] and origins[of][key]
end

-- The innermost load under way, or nil.
function M.current()
  return loading[#loading]
end

-- The comment that a file begins with, without its dashes and its licence.
local function head_of(text)
  local out = {}
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do
    local said = line:match "^%-%- ?(.*)$"
    if not said then break end
    if not said:match "^SPDX" then out[#out + 1] = said end
  end
  return table.concat(out, "\n")
end

local function copied(t)
  local out = {}
  for key, value in pairs(t) do out[key] = value end
  return out
end

-- Loads a recipe: the table that it returns, and the load: file, head, kept, and args and
-- options, the rows of pl.args. Raises { text, usage } where it cannot. `words`: the
-- flags that pl.args may claim from; `getenv`: reads the environment; `kept`: what
-- pl.keep finds again, which stays as it is if this fails; `files`: gets path -> text of
-- every file that was looked for (false: it is not there), whatever comes of it.
function M.load(name, words, getenv, kept, files)
  local outer = M.current()
  files = files or (outer and outer.read) or {}
  local path, text = find(name, outer, files)
  for _, other in ipairs(loading) do
    if other.file == path then M.fail(path .. ": extends itself") end
  end
  local load = {
    file = path, folder = path:match "^.*/" or "", files = {}, modules = {},
    head = head_of(text),
    words = words or (outer and outer.words) or flags.parse {},
    args = outer and outer.args or {}, options = outer and outer.options or {},
    getenv = getenv or (outer and outer.getenv) or os.getenv,
    kept = outer and outer.kept or copied(kept or {}),
    metrics = outer and outer.metrics or {}, read = files,
  }
  load.env = environment(load)
  loading[#loading + 1] = load
  local done = not outer and own.load(load.kept)
  local ok, value = pcall(run, load, path, text)
  loading[#loading] = nil
  if done then done() end
  if not ok then error(value, 0) end
  if type(value) ~= "table" then
    M.fail(("%s: returns %s; a recipe returns a table"):format(path, type(value)))
  end
  stamp(load, value)
  return value, load
end

local function merged(base, changes)
  local out, marks = {}, {}
  for key, v in pairs(base) do out[key], marks[key] = v, M.origin(base, key) end
  for key, v in pairs(changes) do out[key], marks[key] = v, M.origin(changes, key) end
  origins[out] = marks
  return out
end

-- A recipe with some of its values changed: sections are laid over each other, all else
-- is replaced.
function M.extend(base, changes)
  local out = merged(base, changes)
  for key, v in pairs(changes) do
    if schema.section_of(key) and type(v) == "table" and type(base[key]) == "table" then
      out[key] = merged(base[key], v)
    end
  end
  return out
end

return M
