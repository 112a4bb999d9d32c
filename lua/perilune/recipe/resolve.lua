-- SPDX-License-Identifier: Apache-2.0
-- recipe/resolve.lua - from a recipe's name and a command line to values, each with who
-- set it.
--
--     file --load--> value --check--> settings --flags, defaults--> resolved
--
-- Precedence: default < environment < recipe < flag. What is resolved is read-only, and
-- asking it for an option that does not exist is an error: so a slip in the server's own
-- code is found as one in a recipe is. Only `change` writes it, for recipe/live.lua:
-- whoever reads an option through it reads what holds now.

local check = require "perilune.recipe.check"
local flags = require "perilune.recipe.command_line"
local load = require "perilune.recipe.load"
local recipe_flags = require "perilune.recipe.option_flags"
local schema = require "perilune.recipe.schema"
local values = require "perilune.recipe.option_value"

local M = {}

-- resolved -> { settings, fields = what its views read, kept, and how it came about }
local private = setmetatable({}, { __mode = "k" })

-- A view that cannot be written and has only the keys that it may have.
local function view(fields, allowed, what)
  return setmetatable({}, {
    __index = function(_, key)
      local v = fields[key]
      if v == nil and not allowed(key) then
        error(("%s has no '%s'"):format(what, tostring(key)), 2)
      end
      return v
    end,
    __newindex = function(_, key)
      error(("%s is read-only; '%s' assigned"):format(what, tostring(key)), 2)
    end,
  })
end

local function section_view(settings, name, fields)
  local section = schema.section_of(name)
  local function allowed(key)
    return schema.find(key, section) or schema.hooks[section][key]
  end
  for _, key in ipairs(schema.names(section)) do
    local s = settings[name .. "." .. key]
    fields[key] = s and s.value
  end
  return view(fields, allowed, name)
end

-- The pool that answers requests; the other one, if there is one, reads their prompts.
local function main_of(pools)
  for _, name in ipairs(pools) do
    if name ~= "prefill" then return name end
  end
end

local function resolved_view(settings, pools, file)
  local fields, inner = { file = file, pools = pools, main = main_of(pools) }, {}
  for _, name in ipairs { "http", unpack(pools) } do
    inner[name] = {}
    fields[name] = section_view(settings, name, inner[name])
  end
  for _, key in ipairs(schema.names "top") do
    fields[key] = settings[key] and settings[key].value
  end
  local function allowed(key)
    return schema.find(key, "top") or schema.hooks.top[key] or schema.section_of(key)
  end
  local resolved = view(fields, allowed, "the recipe")
  inner[""] = fields
  private[resolved] = { settings = settings, fields = inner }
  return resolved
end

-- A row's default, `own` if the recipe has another, or what the environment says instead;
-- and which.
local function fallback(row, own, getenv, problems)
  local v, origin = values.from_environment(row, getenv, function(text)
    problems[#problems + 1] = { text = text, usage = true }
  end)
  if v ~= nil then return v, origin end
  if own then return own.default, own.origin end
  return schema.default(row), "default"
end

local function fill(settings, pools, info, getenv, problems)
  local own = {}
  for _, made in ipairs(info.options) do
    if made.default ~= nil then own[made.name] = made end
  end
  local function rows(section, prefix)
    for _, row in ipairs(schema.rows[section]) do
      local path = prefix .. row.name
      if not settings[path] then
        local v, origin = fallback(row, own[row.name], getenv, problems)
        settings[path] = { value = v, origin = origin }
      end
    end
  end
  rows("top", "")
  rows("http", "http.")
  for _, pool in ipairs(pools) do rows("pool", pool .. ".") end
end

local function pools_of(value)
  local out = {}
  for _, name in ipairs { "worker", "prefill", "decode" } do
    if type(value[name]) == "table" then out[#out + 1] = name end
  end
  return out
end

local function finish(value, info, parsed, getenv)
  local settings, problems, pools = {}, {}, pools_of(value)
  check.recipe(value, info.file, settings, problems)
  recipe_flags.apply(parsed, settings, pools, info.args, problems)
  fill(settings, pools, info, getenv, problems)
  if #problems == 0 then check.together(settings, pools, problems) end
  if #problems > 0 then return nil, problems end
  for _, row in ipairs(info.args) do
    settings["args." .. row.name] = { value = row.value, origin = row.origin }
  end
  return resolved_view(settings, pools, info.file)
end

local function by_place(a, b)
  local file_a, line_a = a.text:match "^(.-):(%d+):"
  local file_b, line_b = b.text:match "^(.-):(%d+):"
  if file_a and file_a == file_b and line_a ~= line_b then
    return tonumber(line_a) < tonumber(line_b)
  end
  return a.text < b.text
end

local function resolve(name, words, getenv, kept)
  local parsed = flags.parse(words)
  if parsed.words[1] then
    return nil, { { usage = true,
      text = ("'%s' is not a flag"):format(parsed.words[1]) } }
  end
  local files = {}
  local ok, value, info = pcall(load.load, name, parsed, getenv, kept, files)
  if not ok then
    return nil, { { text = tostring(value), usage = value.usage,
      no_recipe = value.no_recipe } }, files
  end
  local resolved, problems = finish(value, info, parsed, getenv)
  if problems then
    table.sort(problems, by_place)
    return nil, problems, files
  end
  local own = private[resolved]
  own.name, own.words, own.getenv = name, words, getenv
  own.kept, own.args = info.kept, info.args
  own.metrics, own.files = info.metrics, files
  return resolved
end

-- Loads, checks and resolves a recipe. `words`: the command line after its name (flags).
-- What is resolved, or nil and a list of problems { text, hint, usage, no_recipe }, in
-- order of place; `usage`: the command line is wrong, not the recipe; `no_recipe`: what
-- it names is none.
function M.resolve(name, words, getenv)
  return resolve(name, words or {}, getenv or os.getenv, {})
end

-- The same once more, from its file as it is now, by the same flags; what it kept
-- (pl.keep) is there again. `resolved` stays as it is. Problems come with the files that
-- were read, as of M.files.
function M.again(resolved)
  local own = private[resolved]
  return resolve(own.name, own.words, own.getenv, own.kept)
end

-- What a recipe says of itself: { file, head, args, options }, its first comment and the
-- rows of pl.args, its own and perilune's; or nil and its problems.
function M.about(name)
  local ok, value, info = pcall(load.load, name)
  if not ok then
    return nil, { { text = tostring(value), usage = value.usage,
      no_recipe = value.no_recipe } }
  end
  return { file = info.file, head = info.head, args = info.args,
    options = info.options }
end

-- Who set a value: "default", "$PERILUNE_MODEL", "recipes/agg.lua:5", "--port".
function M.origin(resolved, path)
  local s = private[resolved].settings[path]
  return s and s.origin
end

-- The value of a path such as "worker.cost", hooks too; nil where none is set.
function M.get(resolved, path)
  local s = private[resolved].settings[path]
  return s and s.value
end

-- What it keeps over a reload (pl.keep): a table by name, which may be written.
function M.kept(resolved)
  local of = private[resolved]
  return of and of.kept or {}
end

-- Its metrics (pl.metric).
function M.metrics(resolved)
  return private[resolved].metrics
end

-- The files that it was read from: path -> text; false: looked for, but not there.
function M.files(resolved)
  return private[resolved].files
end

-- The row of one of the recipe's own arguments (pl.args), or nil.
local function argument(own, name)
  for _, row in ipairs(own.args) do
    if row.name == name then return row end
  end
end

-- What a path means: its canonical form, its row, or for a hook no row and its doc. Nil,
-- why, hint where the recipe has no such thing.
function M.find(resolved, path)
  local name, key = path:match "^(.-)%.([^.]*)$"
  local own_row = name == "args" and argument(private[resolved], key)
  if own_row then return path, own_row end
  local section = name and schema.section_of(name) or not name and "top"
  if not section or (name and not private[resolved].fields[name]) then
    return nil, ("the recipe has no '%s'"):format(path)
  end
  key = key or path
  local row, hook = schema.find(key, section), schema.hooks[section][key]
  if not row and not hook then
    return nil, ("%s has no option '%s'"):format(name or "recipe", key),
      check.suggest(key, section)
  end
  return (name and name .. "." or "") .. (row and row.name or key), row, hook
end

-- Sets what a canonical path means from now on, unchecked: recipe/live.lua asked before.
function M.change(resolved, path, value, origin)
  local own = private[resolved]
  local name, key = path:match "^(.-)%.([^.]*)$"
  own.settings[path] = { value = value, origin = origin }
  local row = name == "args" and argument(own, key)
  if row then row.value = value end         -- which is what the recipe's hooks read
  local fields = own.fields[name or ""]
  if fields then fields[key or path] = value end
end

-- Takes over what another resolving of it kept, and all that is of its text.
function M.adopt(resolved, other)
  for _, name in ipairs { "kept", "args", "metrics", "files" } do
    private[resolved][name] = private[other][name]
  end
end

-- Every setting in the schema's order: a list of { path, value, origin, row }. Hooks come
-- after the options of their section and have no row; the recipe's own arguments last.
function M.settings(resolved)
  local settings, out = private[resolved].settings, {}
  local function add(path, row)
    local s = settings[path]
    if not s then return end
    out[#out + 1] = { path = path, value = s.value, origin = s.origin, row = row }
  end
  local function section(name, prefix)
    for _, row in ipairs(schema.rows[name]) do add(prefix .. row.name, row) end
    for _, key in ipairs(schema.names(name)) do
      if schema.hooks[name][key] then add(prefix .. key) end
    end
  end
  section("top", "")
  section("http", "http.")
  for _, pool in ipairs(resolved.pools) do section("pool", pool .. ".") end
  local args = {}
  for path in pairs(settings) do
    if path:match "^args%." then args[#args + 1] = path end
  end
  table.sort(args)
  for _, path in ipairs(args) do add(path) end
  return out
end

return M
