-- SPDX-License-Identifier: Apache-2.0
-- messages.lua - a chat's messages, checked and given to the model's template.

local json = require "perilune.json"
local params = require "perilune.params"
local template = require "perilune.template"
local refuse, given = params.refuse, params.given

local M = {}

-- Templates are compiled once per text: here there is one or two of them.
local compiled = {}

local function compile(source)
  local t = compiled[source]
  if not t then
    local why
    t, why = template.compile(source)
    if not t then refuse("chat " .. why, "chat_template") end
    compiled[source] = t
  end
  return t
end

-- A template that a request brought is not kept.
local function template_of(ctx, req)
  local own = params.string(req, "chat_template")
  if own then
    if not ctx.trust_request_chat_template then
      refuse("Chat template is passed with request, but --trust-request-chat-template is "
        .. "not set. Refused request with untrusted chat template.", "chat_template")
    end
    local t, why = template.compile(own)
    if not t then refuse("chat " .. why, "chat_template") end
    return t
  end
  local source = given(req, "tools") and ctx.tool_template or ctx.chat_template
  if not source then
    refuse("The model has no chat template; give one with --chat-template or use "
      .. "/v1/completions.", "messages")
  end
  return compile(source)
end

-- Content in parts becomes text.
local function plain_content(content, i)
  if type(content) ~= "table" or not json.is_array(content) then return content end
  local texts = {}
  for k, part in ipairs(content) do
    local text = type(part) == "table" and part.type == "text" and part.text
    if type(text) ~= "string" then
      refuse(("messages[%d].content[%d] must be a text part."):format(i - 1, k - 1),
        "messages")
    end
    texts[k] = text
  end
  return table.concat(texts, "\n")
end

-- Arguments come as JSON text; templates see what they mean.
local function tool_calls(message, i)
  local calls = given(message, "tool_calls")
  if calls == nil then return end
  if not json.is_array(calls) then
    refuse(("messages[%d].tool_calls must be a list."):format(i - 1), "messages")
  end
  for _, call in ipairs(calls) do
    local f = type(call) == "table" and call["function"]
    if type(f) ~= "table" then
      refuse(("messages[%d].tool_calls must hold functions."):format(i - 1), "messages")
    end
    if type(f.arguments) == "string" then
      local value, why = json.decode(f.arguments)
      if value == nil then
        refuse(("messages[%d]: tool call arguments are no JSON: %s"):format(i - 1, why),
          "messages")
      end
      f.arguments = value
    end
  end
end

local function checked_messages(req)
  local list = given(req, "messages")
  if list == nil then refuse("messages is required.", "messages") end
  if not json.is_array(list) then refuse("messages must be a list.", "messages") end
  if #list == 0 then refuse("messages must not be empty.", "messages") end
  for i, m in ipairs(list) do
    if not json.is_object(m) or type(m.role) ~= "string" then
      refuse(("messages[%d] must be an object with a role."):format(i - 1), "messages")
    end
    local content = given(m, "content")
    if content ~= nil and type(content) ~= "string" and not json.is_array(content) then
      refuse(("messages[%d].content must be a string or a list of parts.")
        :format(i - 1), "messages")
    end
    if content ~= nil then m.content = plain_content(content, i) end
    tool_calls(m, i)
  end
  return list
end

local function check_tools(req)
  local tools, choice = given(req, "tools"), given(req, "tool_choice")
  if tools ~= nil and not json.is_array(tools) then
    refuse("tools must be a list.", "tools")
  end
  if choice == nil or choice == "none" then return end
  if tools == nil then
    refuse("When using `tool_choice`, `tools` must be set.", "tool_choice")
  end
  if choice ~= "auto" then
    refuse("tool_choice other than \"none\" and \"auto\" is not supported.",
      "tool_choice")
  end
end

local function variables(ctx, req)
  local vars = { bos_token = ctx.bos_token, eos_token = ctx.eos_token,
    messages = checked_messages(req), tools = given(req, "tools"),
    documents = given(req, "documents") }
  local more = given(req, "chat_template_kwargs")
  if more ~= nil then
    if not json.is_object(more) then
      refuse("chat_template_kwargs must be an object.", "chat_template_kwargs")
    end
    for _, key in ipairs(json.keys(more)) do vars[key] = more[key] end
  end
  vars.add_generation_prompt = params.boolean(req, "add_generation_prompt", true)
  return vars
end

-- The prompt's text.
function M.render(ctx, req)
  local t = template_of(ctx, req)
  check_tools(req)
  local vars = variables(ctx, req)
  local continued = params.boolean(req, "continue_final_message")
  if continued and vars.add_generation_prompt then
    refuse("Cannot set both `continue_final_message` and `add_generation_prompt` to "
      .. "True.", "continue_final_message")
  end
  local text, why = t:render(vars)
  if not text then refuse(why, "messages") end
  if continued then return M.cut_after_last(text, vars.messages) end
  return text
end

-- The last message is to be continued: what the template puts after it goes.
function M.cut_after_last(text, list)
  local content = list[#list].content
  if type(content) ~= "string" then
    refuse("continue_final_message needs a last message with text.", "messages")
  end
  content = content:gsub("^%s+", ""):gsub("%s+$", "")
  local at, stop = 0, nil
  while content ~= "" do
    local from, to = text:find(content, at + 1, true)
    if not from then break end
    at, stop = from, to
  end
  if not stop then
    refuse("continue_final_message is set but the final message does not appear in the "
      .. "chat after applying the chat template.", "messages")
  end
  return text:sub(1, stop)
end

function M.last_role(req)
  return req.messages[#req.messages].role
end

function M.last_content(req)
  local content = req.messages[#req.messages].content
  return type(content) == "string" and content or ""
end

return M
