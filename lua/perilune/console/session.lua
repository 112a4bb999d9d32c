-- SPDX-License-Identifier: Apache-2.0
-- console/session.lua - what a person types into a living process, evaluated.
--
-- The text runs in a small world of its own: plain Lua without files, processes or C, and
-- the console's objects. Each console has its own variables; nothing else lasts. All that
-- is typed is logged, with what it changed.

local change_role = require("perilune.fleet.role").ask_named
local complete = require "perilune.console.complete"
local console_pl = require "perilune.console.pl"
local decisions = require "perilune.console.decisions"
local help = require "perilune.console.help"
local hooks = require "perilune.recipe.hooks"
local live = require "perilune.recipe.live"
local log = require "perilune.log"
local json = require "perilune.json"
local object = require "perilune.console.object"
local objects = require "perilune.console.workers"
local recipe = require "perilune.console.recipe"
local recipe_print = require "perilune.recipe.print"
local requests = require "perilune.console.requests"
local run = require "perilune.console.run"

local M = { workers = objects.all_workers }

local MOST_TEXT = 64 * 1024
local MOST_SESSIONS = 32

local sessions, order = {}, {}              -- name -> session; names, the last used last

-- ---- the world ------------------------------------------------------------------------

-- A library as a view that cannot be changed.
local function sealed(name, library)
  return setmetatable({}, { __index = library, __metatable = false,
    __newindex = function(_, key)
      error(("%s.%s cannot be assigned to"):format(name, tostring(key)), 2)
    end })
end

local function pick(from, names)
  local out = {}
  for name in names:gmatch "%a+" do out[name] = from[name] end
  return out
end

local BASE = pick(_G, [[assert error ipairs next pairs pcall rawequal select setmetatable
  tonumber tostring type unpack xpcall]])
local LIBRARIES = {
  string = run.strings,
  table = pick(table, "insert maxn remove sort"),
  math = pick(math, [[abs ceil cos deg exp floor fmod frexp huge ldexp log max min modf pi
    pow rad random sin sqrt tan]]),
  bit = pick(require "bit", [[tobit tohex bnot band bor bxor lshift rshift arshift rol ror
    bswap]]),
  os = pick(os, "clock date time difftime"),
}

LIBRARIES.table.concat = run.concat

-- From now on the console of that name is told, with what it evaluates next, when the
-- hook it has set fails. By its name: a hook outlives its console.
local function watch(session, path)
  local name = session.name
  if not name then return end
  run.outside(hooks.watch, session.process.recipe, path, function(why)
    local to = sessions[name]
    if not to then return end
    local news = to.news[path] or { n = 0 }
    news.n, news.why, to.news[path] = news.n + 1, why, news
  end)
end

-- A change, announced; recipe/live.lua logs it.
local function set(session, path, value)
  local process = session.process
  local ok, said, hint = run.outside(process.set, process, path, value, "the console")
  if not ok then
    error(hint and ("%s   (%s)"):format(said, hint) or tostring(said), 0)
  end
  if type(value) == "function" then watch(session, path) end
  session.out[#session.out + 1] = said
end

local function keep(session, name, value)
  local said = run.outside(live.keep, session.process, name, value, "the console")
  session.out[#session.out + 1] = said
end

-- What has failed since the last time of the hooks that this console has set.
local function tell_news(session)
  for path, news in pairs(session.news) do
    local out, times = session.out, news.n > 1 and (" %d times"):format(news.n) or ""
    out[#out + 1] = ("the hook %s, set here, failed%s, the default applies: %s"):format(
      path, times, news.why)
  end
  session.news = {}
end

local function words(session)
  local process = session.process
  return {
    recipe = recipe.recipe(process, function(path, v) set(session, path, v) end),
    requests = function() return requests.requests(process) end,
    workers = function() return objects.workers(process) end,
    w = function(number) return objects.w(process, number) end,
    blocks = function() return objects.blocks(process) end,
    options = function(wanted) return recipe.options(process, wanted) end,
    metrics = function(wanted) return objects.metrics(process, wanted) end,
    explain = function(id) return decisions.explain(process, id) end,
    decisions = function(n) return decisions.list(process, n) end,
    replay = function(fn, kind) return decisions.replay(process, fn, kind) end,
    slow = function(n, by) return requests.slow(n, by) end,
    trace = function(key) return requests.trace(key) end,
    help = function(about) return help.about(about) end,
    log_level = function(level) set(session, "log_level", level) end,
    role = function(name, wanted)
      local said, why = run.outside(change_role, process, name, wanted, "the console")
      if not said then error(why, 0) end
      session.out[#session.out + 1] = said
    end,
    reload = function()
      local ok, said = run.outside(process.reload, process)
      if not ok then error(said, 0) end
      session.out[#session.out + 1] = said
    end,
    print = function(...)
      if recipe_print.hook then return recipe_print.print(...) end   -- it is a hook now
      local parts = {}
      for i = 1, select("#", ...) do parts[i] = object.show((select(i, ...))) end
      session.out[#session.out + 1] = table.concat(parts, "\t")
    end,
    pl = console_pl.pl(process, function(name, v) keep(session, name, v) end),
  }
end

local function world(session)
  local fixed = words(session)
  session.words = fixed
  for name, fn in pairs(BASE) do fixed[name] = fn end
  for name, library in pairs(LIBRARIES) do fixed[name] = sealed(name, library) end
  return setmetatable(session.variables, { __metatable = false,
    __index = function(_, name)
      local v = fixed[name]
      if v == nil then error(("'%s' is not defined"):format(tostring(name)), 2) end
      return v
    end,
    __newindex = function(variables, name, value)
      if fixed[name] ~= nil then
        error(("'%s' is the console's own; choose another name"):format(name), 2)
      end
      rawset(variables, name, value)
    end })
end

local function session_of(process, name)
  local session = name and sessions[name]
  if not session then
    session = { process = process, name = name, variables = {}, out = {}, news = {} }
    session.env = world(session)
  end
  if not name then return session end       -- of one use
  for i, other in ipairs(order) do
    if other == name then table.remove(order, i) break end
  end
  sessions[name], order[#order + 1] = session, name
  if #order > MOST_SESSIONS then sessions[table.remove(order, 1)] = nil end
  return session
end

-- ---- evaluating -----------------------------------------------------------------------

local function is_cut(why)
  if why:find("unfinished string", 1, true) then return false end
  return why:find("near '<eof>'", 1, true) ~= nil
    or why:find("unfinished long ", 1, true) ~= nil
end

-- A chunk: of an expression, without its `return`, or of statements. Or nil, why, and
-- whether more lines could make it whole.
local function compile(text, env)
  local chunk, cut = load("return " .. text, "=console", "t", env)
  if chunk then return chunk end
  local why
  chunk, why = load(text, "=console", "t", env)
  if chunk then return chunk end
  if is_cut(cut) then return nil, cut, true end
  return nil, why, is_cut(why)
end

local function collect(session, wants_json, n, ...)
  local texts = {}
  for i = 1, n do texts[i] = object.text((select(i, ...))) end
  local lines = {}
  for _, line in ipairs(session.out) do lines[#lines + 1] = line end
  if n > 0 then lines[#lines + 1] = table.concat(texts, "\t") end
  local result = { text = object.cut(table.concat(lines, "\n")) }
  if wants_json then
    local value = n > 0 and (...) or nil
    if n == 0 and lines[1] then value = result.text end
    result.value = object.plain(value)
    if value == nil then result.value = json.null end
    local ok, why = json.encode(result)
    if not ok then error(why, 0) end
  end
  return result
end

local function evaluate(session, chunk, wants_json)
  return (function(...)
    return collect(session, wants_json, select("#", ...), ...)
  end)(chunk())
end

local function tell(session, text)
  log.info("console: %s: %s", session.by, json.encode(recipe.without_secrets(text)))
end

-- An error's text. Where it happened in perilune's own files is nothing to the person,
-- nor is the line where there is but one.
local function message_of(problem, text)
  local ok, message = pcall(object.show, problem)
  if not ok then return "an error that cannot be shown" end
  message = message:gsub("^[^\n:]*/lua/perilune/[%w_/]+%.lua:%d+: ", "")
  if not text:find("\n", 1, true) then message = message:gsub("^console:1: ", "") end
  return message
end

-- Evaluates request.body.text: { text, value } (value with body.json), or { error } with
-- the text that was printed before, or { more = true }: it is not whole yet.
-- body.console names the console, whose variables last.
function M.eval(process, request)
  local body, text = request.body, request.body.text
  if type(text) ~= "string" or #text > MOST_TEXT then
    return { error = ("the console takes a text of at most %d bytes"):format(MOST_TEXT) }
  end
  local name = type(body.console) == "string" and body.console:sub(1, 64) or nil
  local session = session_of(process, name)
  session.by, session.out = request.by, {}
  local chunk, why, more = compile(text, session.env)
  if not chunk and more and body.interactive == true then return { more = true } end
  if text:find "%S" then tell(session, text) end
  if not chunk then return { error = message_of(why, text) } end
  tell_news(session)
  process:doing("the console")
  recipe_print.console = function(said) session.out[#session.out + 1] = said end
  local ok, result = run.run(request.gone, evaluate, session, chunk, body.json == true)
  recipe_print.console = nil
  process:doing ""
  if ok then return result end
  local message = message_of(result, text)
  log.info("console: %s: error: %s", session.by, json.encode(message))
  local printed = object.cut(table.concat(session.out, "\n"))
  return { error = message, text = printed ~= "" and printed or nil }
end

-- What could stand where body.text ends: { from, candidates }.
function M.complete(process, request)
  local body = request.body
  local text = type(body.text) == "string" and body.text:sub(-1024) or ""
  local session = session_of(process, type(body.console) == "string" and body.console)
  local from, candidates = complete(session, text)
  return { from = from, candidates = json.array(candidates) }
end

return M
