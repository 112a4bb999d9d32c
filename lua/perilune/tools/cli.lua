-- SPDX-License-Identifier: Apache-2.0
-- tools/cli.lua - the command line: perilune WORD ...; returns the exit code.
--
-- 0: success. 1: failure, or the recipe is wrong. 2: the command is wrong.

local engine = require "perilune.ffi"
local flags = require "perilune.recipe.command_line"
local help = require "perilune.console.manual"
local model = require "perilune.model.load"
local nearest = require "perilune.recipe.nearest"
local option_flags = require "perilune.recipe.option_flags"
local recipe = require "perilune.recipe.resolve"
local role_words = require "perilune.recipe.roles"
local values = require "perilune.recipe.option_value"

local words = {}

local function complain(text, hint)
  io.stderr:write("perilune: ", text, "\n")
  if hint then io.stderr:write("    ", hint, "\n") end
  return 2
end

-- What went wrong with the recipe of that name; perhaps it is a model.
local function report(name, problems)
  local code = 1
  for _, problem in ipairs(problems) do
    if problem.no_recipe and model.resolve(name) then
      return complain(("'%s' is a model, not a recipe (a Lua file)"):format(name),
        "perilune serve " .. name)
    end
    if problem.usage then code = 2 end
    io.stderr:write(problem.text, "\n")
    if problem.hint then io.stderr:write("    ", problem.hint, "\n") end
  end
  return code
end

-- The recipe's name, the roles after it and then the flags.
local function recipe_words(word, name, ...)
  if not name or name:match "^%-" then
    return nil, complain(("'%s' needs a recipe"):format(word),
                         ("perilune %s agg"):format(word))
  end
  local given, roles = { ... }, {}
  while given[1] and not given[1]:match "^%-" do
    roles[#roles + 1] = table.remove(given, 1)
  end
  return name, given, roles
end

-- perilune run RECIPE --help: what the recipe says, and the flags that are its own.
local function asked_for_help(given)
  for _, word in ipairs(given) do
    if word == "--help" or word == "-h" then return true end
  end
  return false
end

local function describe(name)
  local about, problems = recipe.about(name)
  if not about then return report(name, problems) end
  print(about.head ~= "" and about.head or about.file)
  for _, rows in ipairs { about.args, about.options } do
    if rows[1] then print("\n" .. flags.help(rows)) end
  end
  print("\n" .. help.common())
  return 0
end

local function has_worker(roles)
  return roles.worker or roles.prefill or roles.decode
end

local function start(name, given, named)
  local resolved, problems = recipe.resolve(name, given)
  if not resolved then return report(name, problems) end
  local roles, why, hint = role_words.set(resolved, named)
  if not roles then return complain(why, hint) end
  if not resolved.model and has_worker(roles) then
    return complain("no model: use perilune serve MODEL, --model or $PERILUNE_MODEL",
      "./dev run downloads a small one")
  end
  return require("perilune.tools.process").run(resolved, roles)
end

function words.run(...)
  if asked_for_help { (...) } then
    print(help.run .. help.common())
    return 0
  end
  local name, given, named = recipe_words("run", ...)
  if not name then return given end
  if asked_for_help(given) then return describe(name) end
  return start(name, given, named)
end

-- Takes the model out of the words of `perilune serve`: the first that is neither a flag
-- nor a flag's value.
local function take_model(given)
  local room = 0
  for i, word in ipairs(given) do
    if word:match "^%-" then
      room = option_flags.takes(word, given[i + 1])
    elseif room == 0 then
      return table.remove(given, i)
    else
      room = room - 1
    end
  end
end

-- perilune serve MODEL: the recipe of that name, given the model as its flag.
function words.serve(...)
  local given = { ... }
  if asked_for_help(given) then
    print(help.serve .. help.common())
    return 0
  end
  local name = take_model(given)
  if name then given[#given + 1] = "--model=" .. name end
  return start("serve", given, {})
end

local function shown(setting)
  if setting.value == nil then return "-" end
  local text = values.public(setting.row, setting.value):gsub("%s+", " ")
  return #text > 60 and text:sub(1, 57) .. "..." or text
end

function words.check(...)
  if asked_for_help { (...) } then
    print(help.check)
    return 0
  end
  local name, given, named = recipe_words("check", ...)
  if not name then return given end
  if asked_for_help(given) then return describe(name) end
  local resolved, problems = recipe.resolve(name, given)
  if not resolved then return report(name, problems) end
  local roles, why, hint = role_words.set(resolved, named)
  if not roles then return complain(why, hint) end
  print(resolved.file)
  for _, setting in ipairs(recipe.settings(resolved)) do
    local line = ("  %-38s %-24s %s"):format(setting.path, shown(setting), setting.origin)
    print(line)
  end
  return 0
end

function words.help(about)
  if not about or asked_for_help { about } then
    print(help.usage())
    return 0
  end
  if words[about] then return words[about] "--help" end
  local text, why, hint = help.about(about)
  if not text then return complain(why, hint) end
  print(text)
  return 0
end

function words.version()
  print("perilune " .. engine.ffi.string(engine.C.pl_version()))
  return 0
end

function words.chat(...)
  return require("perilune.tools.chat").run({ ... }, complain)
end

function words.drain(...)
  return require("perilune.tools.drain_resume").run("drain", { ... }, complain)
end

function words.resume(...)
  return require("perilune.tools.drain_resume").run("resume", { ... }, complain)
end

function words.role(...)
  return require("perilune.tools.drain_resume").run("role", { ... }, complain)
end

function words.attach(...)
  return require("perilune.tools.attach").run({ ... }, complain)
end

-- perilune explain ID [NAME]: attach NAME -e 'explain("ID")'.
function words.explain(id, ...)
  if not id or asked_for_help { id } then
    print(help.explain)
    return id and 0 or 2
  end
  local given = { ... }
  given[#given + 1], given[#given + 2] = "-e", ("explain(%q)"):format(id)
  return require("perilune.tools.attach").run(given, complain)
end

function words.ps(...)
  return require("perilune.tools.ps").run({ ... }, complain)
end

function words.top(...)
  return require("perilune.tools.top").run({ ... }, complain)
end

function words.bench(...)
  return require("perilune.tools.bench").run({ ... }, complain)
end

function words.new(...)
  return require("perilune.tools.new").run({ ... }, complain)
end

function words.test(...)
  return require("perilune.tools.test").run({ ... }, complain)
end

function words.sim(...)
  return require("perilune.tools.sim").run { ... }
end

local SAME = { ["--help"] = "help", ["-h"] = "help", ["--version"] = "version" }

return function(word, ...)
  if not word then
    io.stderr:write(help.usage(), "\n")
    return 2
  end
  local command = words[SAME[word] or word]
  if command then return command(...) end
  local known = {}
  for name in pairs(words) do known[#known + 1] = name end
  local near = nearest(word, known)
  return complain(("no command '%s'"):format(word),
                  near and ("did you mean '%s'?"):format(near) or "perilune help")
end
