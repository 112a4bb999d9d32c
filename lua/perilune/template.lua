-- SPDX-License-Identifier: Apache-2.0
-- template.lua - chat templates: the Jinja that models use, as transformers renders it.
--
--   local t = template.compile(source)           nil, message: it is no template
--   local s = t:render(vars, { now = seconds })  nil, message, "raised" | "error"
--
-- "raised" is raise_exception(message): the template refuses the messages. Variables are
-- values of json.lua, None is json.null; template.variables makes them from a request.
-- A template reaches nothing but its variables. It has a budget of steps, of bytes and of
-- depth: what takes more is an error, so a hostile one does no harm.
--
-- lex -> parse, expr -> exec, eval (closures) over value, methods, filters, tests, text.

local exec = require "perilune.template_exec"
local json = require "perilune.json"
local parse = require "perilune.template_parse"

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
  return exec.compile(parse.parse(source))
end

-- A template, or nil, message.
function M.compile(source)
  if type(source) ~= "string" then error("a template is a string", 2) end
  if #source > max_source then
    return nil, string.format("template: longer than %d bytes", max_source)
  end
  local ok, run = pcall(build, source)
  if not ok then return nil, "template: " .. explain(run) end
  return setmetatable({ run = run }, Template)
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

-- ---- requests -----------------------------------------------------------------------

local function copy(object)
  local out = json.object()
  for _, key, v in json.pairs(object) do json.set(out, key, v) end
  return out
end

-- A tool call whose arguments are an object, not its text.
local function parsed_call(call)
  local f = json.is_object(call) and call["function"]
  if not json.is_object(f) or type(f.arguments) ~= "string" then return call end
  local arguments, why = json.decode(f.arguments)
  if arguments == nil then return nil, why end
  return json.set(copy(call), "function", json.set(copy(f), "arguments", arguments))
end

local function parsed_message(message)
  local calls = json.is_object(message) and message.tool_calls
  if not json.is_array(calls) then return message end
  local out = json.array()
  for i, call in ipairs(calls) do
    local parsed, why = parsed_call(call)
    if not parsed then return nil, string.format("tool_calls[%d]: %s", i - 1, why) end
    out[i] = parsed
  end
  return json.set(copy(message), "tool_calls", out)
end

-- The messages with every tool call's arguments parsed, or nil, message, name.
function M.arguments(messages)
  local out = json.array()
  for i, message in ipairs(messages) do
    local parsed, why = parsed_message(message)
    if not parsed then
      return nil, string.format("messages[%d].%s", i - 1, why), "PL_EINVAL"
    end
    out[i] = parsed
  end
  return out
end

-- The variables that transformers gives a template, from a chat request: what is absent
-- is None. `tokens`: bos_token and such, by name. Or nil, message, name.
function M.variables(request, tokens)
  local messages, why, name = M.arguments(request.messages)
  if not messages then return nil, why, name end
  local vars = { messages = messages, tools = request.tools or json.null,
    documents = request.documents or json.null,
    add_generation_prompt = request.add_generation_prompt ~= false }
  for key, token in pairs(tokens or {}) do vars[key] = token end
  local more = request.chat_template_kwargs
  if json.is_object(more) then
    for _, key, v in json.pairs(more) do vars[key] = v end
  end
  return vars
end

return M
