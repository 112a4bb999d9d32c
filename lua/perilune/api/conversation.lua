-- SPDX-License-Identifier: Apache-2.0
-- api/conversation.lua - the messages and tools of a chat, checked, as templates see
-- them.
--
-- Clients write the same conversation in several ways; templates see one of them: what
-- vLLM and transformers hand over (docs/http.md). A request's own values stay as they
-- are.

local json = require "perilune.json"
local params = require "perilune.api.params"
local refuse, given = params.refuse, params.given

local M = {}

local function refuse_messages(...)
  refuse(string.format(...), "messages")
end

-- A copy without the keys whose value is null: they mean the same as absent ones.
local function without_nulls(object)
  local out = json.object()
  for _, key, v in json.pairs(object) do
    if v ~= json.null then json.set(out, key, v) end
  end
  return out
end

-- ---- content --------------------------------------------------------------------------

-- Where a part has its text, by the part's type.
local TEXT_OF = { text = "text", input_text = "text", output_text = "text",
  refusal = "refusal" }

local function part_text(part, where)
  if type(part) == "string" then return part end
  local kind = json.is_object(part) and part.type
  local field = type(kind) == "string" and TEXT_OF[kind]
  local text = field and given(part, field)
  if not field or text ~= nil and type(text) ~= "string" then
    refuse_messages("%s must be a text part%s.", where,
      type(kind) == "string" and not field and ", got '" .. kind:sub(1, 60) .. "'" or "")
  end
  return text
end

-- The texts of a content, which is a string, a list of parts, or nothing.
local function texts_of(content, where)
  if content == nil then return {} end
  if type(content) == "string" then return { content } end
  if not json.is_array(content) then
    refuse_messages("%s.content must be a string or a list of parts.", where)
  end
  local out = {}
  for i, part in ipairs(content) do
    out[#out + 1] = part_text(part, ("%s.content[%d]"):format(where, i - 1))
  end
  return out
end

local function part_of(text)
  return json.object("type", "text", "text", text)
end

-- In the form that jinja/content.lua names.
local function content_of(message, where, form)
  local content = given(message, "content")
  local texts = texts_of(content, where)
  if form == "string" or form == "sent" and not json.is_array(content) then
    return table.concat(texts, "\n")
  end
  local parts = json.array()
  for i, text in ipairs(texts) do parts[i] = part_of(text) end
  return parts
end

-- ---- tool calls, reasoning ------------------------------------------------------------

-- Arguments come as JSON text; templates see what it means. Of no text at all, which
-- streaming clients put together from no pieces, that is an empty object.
local function arguments_of(f, where)
  local v = given(f, "arguments")
  if type(v) == "string" and v:find "%S" then
    local why
    v, why = json.decode(v)
    if v == nil then refuse_messages("%s.arguments is not JSON: %s", where, why) end
  elseif type(v) == "string" then
    v = nil
  elseif v ~= nil and type(v) ~= "table" then
    refuse_messages("%s.arguments must be a string of JSON or an object.", where)
  end
  return (v == nil or v == json.null) and json.object() or v
end

-- The calls of a message; nil where there are none, however that is written.
local function tool_calls(message, where)
  local calls = given(message, "tool_calls")
  if calls == nil then return nil end
  if not json.is_array(calls) then
    refuse_messages("%s.tool_calls must be a list.", where)
  end
  if #calls == 0 then return nil end
  local out = json.array()
  for i, call in ipairs(calls) do
    local f = json.is_object(call) and call["function"]
    local at = ("%s.tool_calls[%d].function"):format(where, i - 1)
    if not json.is_object(f) then refuse_messages("%s must be an object.", at) end
    out[i] = json.set(without_nulls(call), "function",
      json.set(without_nulls(f), "arguments", arguments_of(f, at)))
  end
  return out
end

-- The names under which clients send a message's reasoning; templates may ask for any.
local REASONING = { "reasoning_content", "thinking", "reasoning" }

local function add_reasoning(message)
  local text
  for _, name in ipairs(REASONING) do text = text or message[name] end
  for _, name in ipairs(text and REASONING or {}) do
    if message[name] == nil then json.set(message, name, text) end
  end
end

-- ---- messages -------------------------------------------------------------------------

local function message_of(m, where, form)
  if not json.is_object(m) or type(m.role) ~= "string" then
    refuse_messages("%s must be an object with a role.", where)
  end
  local out = json.object("role", m.role, "content", content_of(m, where, form))
  for _, key, v in json.pairs(m) do
    if out[key] == nil and v ~= json.null then json.set(out, key, v) end
  end
  json.set(out, "tool_calls", tool_calls(m, where))
  add_reasoning(out)
  return out
end

-- The messages of a request. `form`: of their contents, as jinja/content.lua names it.
function M.messages(req, form)
  local list = given(req, "messages")
  if list == nil then refuse_messages "messages is required." end
  if not json.is_array(list) then refuse_messages "messages must be a list." end
  if #list == 0 then refuse_messages "messages must not be empty." end
  local out = json.array()
  for i, m in ipairs(list) do
    out[i] = message_of(m, ("messages[%d]"):format(i - 1), form)
  end
  return out
end

-- Puts `mark` at the end of the last message's text.
function M.mark(messages, mark)
  local last = messages[#messages]
  local parts = last.content
  if type(parts) == "string" then
    last.content = parts .. mark
  elseif #parts == 0 then
    parts[1] = part_of(mark)
  else
    parts[#parts].text = parts[#parts].text .. mark
  end
end

-- The role and the text of a request's last message.
function M.last(req)
  local m = req.messages[#req.messages]
  return m.role, content_of(m, "messages", "string")
end

-- ---- tools ----------------------------------------------------------------------------

local function check_tool(tool, where)
  local function bad(field, wanted)
    refuse(("%s%s must be %s."):format(where, field, wanted), "tools")
  end
  if not json.is_object(tool) then bad("", "an object") end
  local kind = given(tool, "type")
  if kind ~= nil and kind ~= "function" then bad(".type", '"function"') end
  local f = given(tool, "function")
  if not json.is_object(f) then bad(".function", "an object") end
  if type(f.name) ~= "string" or f.name == "" then bad(".function.name", "a string") end
  local schema = given(f, "parameters")
  if schema ~= nil and not json.is_object(schema) then
    bad(".function.parameters", "an object")
  end
end

-- The tools of a request, in its own words and order; nil where it has none.
function M.tools(req)
  local tools, choice = given(req, "tools"), given(req, "tool_choice")
  if tools ~= nil and not json.is_array(tools) then
    refuse("tools must be a list.", "tools")
  end
  if tools and #tools == 0 then tools = nil end
  for i, tool in ipairs(tools or {}) do
    check_tool(tool, ("tools[%d]"):format(i - 1))
  end
  if choice ~= nil and choice ~= "none" then
    if tools == nil then
      refuse("When using `tool_choice`, `tools` must be set.", "tool_choice")
    end
    if choice ~= "auto" then
      refuse("tool_choice other than \"none\" and \"auto\" is not supported.",
        "tool_choice")
    end
  end
  return tools
end

-- The documents of a request, or nil.
function M.documents(req)
  local list = given(req, "documents")
  if list == nil then return nil end
  if not json.is_array(list) then refuse("documents must be a list.", "documents") end
  for i, document in ipairs(list) do
    if not json.is_object(document) then
      refuse(("documents[%d] must be an object."):format(i - 1), "documents")
    end
  end
  return list
end

return M
