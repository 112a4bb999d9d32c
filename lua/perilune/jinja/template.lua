-- SPDX-License-Identifier: Apache-2.0
-- jinja/template.lua - chat templates: the Jinja that models use, as transformers renders
-- it.
--
--   local t = template.compile(source)           nil, message: it is no template
--   local s = t:render(vars, { now = seconds })  nil, message, "raised" | "error"
--
-- "raised" is raise_exception(message): the template refuses the messages. Variables are
-- values of json.lua, None is json.null; api/messages.lua makes them from a request.
-- A template reaches nothing but its variables. It has a budget of steps, of bytes and of
-- depth: what takes more is an error, so a hostile one does no harm.
--
-- t.content_form says how it wants the contents of messages (jinja/content.lua).
--
-- lex -> parse, expr -> exec, eval (closures) over value, methods, filters, tests, text.

local content = require "perilune.jinja.content"
local exec = require "perilune.jinja.exec"
local parse = require "perilune.jinja.parse"

local M = {}

local max_source = 2 ^ 20
local max_steps = 4e6
local max_bytes = 2 ^ 26

local Template = {}
Template.__index = Template

-- What an error says, with its line. Other errors than our own are limits of Lua's, or a
-- defect here: not worth more than the request.
local function explain(why, line)
  if type(why) ~= "table" then
    local text = tostring(why)
    local deep = text:find "stack overflow" or text:find "in error handling"
    why = { message = deep and "nested too deep" or "internal: " .. text }
  end
  return string.format("line %d: %s", why.line or line or 1, why.message)
end

local function build(source)
  local tree = parse.parse(source)
  return { run = exec.compile(tree), content_form = content.form(tree) }
end

-- A template, or nil, message.
function M.compile(source)
  if type(source) ~= "string" then error("a template is a string", 2) end
  if #source > max_source then
    return nil, string.format("template: longer than %d bytes", max_source)
  end
  local ok, built = pcall(build, source)
  if not ok then return nil, "template: " .. explain(built) end
  return setmetatable(built, Template)
end

-- The text, or nil, message, "raised" or "error". `now` is for strftime_now.
function Template:render(vars, options)
  local c = { out = {}, n = 0, bytes = 0, max_bytes = max_bytes, steps = max_steps,
    depth = 0, vars = vars, now = options and options.now or os.time() }
  local ok, why = pcall(self.run, c)
  if ok then return table.concat(c.out) end
  if type(why) == "table" and why.raised then return nil, why.raised, "raised" end
  return nil, "template: " .. explain(why, c.line), "error"
end

return M
