-- SPDX-License-Identifier: Apache-2.0
-- api/messages.lua - a chat as the prompt that its model's template makes of it.

local conversation = require "perilune.api.conversation"
local json = require "perilune.json"
local params = require "perilune.api.params"
local pl = require "perilune.ffi"
local template = require "perilune.jinja.template"
local text = require "perilune.jinja.text"
local refuse, given = params.refuse, params.given

local M = {}

-- ---- which template -------------------------------------------------------------------

local function compile(source)
  local t, why = template.compile(source)
  if not t then refuse("chat " .. why, "chat_template") end
  return t
end

-- The model's templates are compiled once per text: there are few of them.
local compiled = {}

local function kept(source)
  compiled[source] = compiled[source] or compile(source)
  return compiled[source]
end

-- A template that a request brought is not kept; it may also name one of the model's.
local function own_template(ctx, source)
  if not ctx.trust_request_chat_template then
    refuse("Chat template is passed with request, but --trust-request-chat-template is "
      .. "not set. Refused request with untrusted chat template.", "chat_template")
  end
  local named = ctx.chat_templates[source]
  return named and kept(named) or compile(source)
end

-- As transformers chooses among a model's templates.
local function template_of(ctx, req, tools)
  local own = params.string(req, "chat_template")
  if own then return own_template(ctx, own) end
  local list = ctx.chat_templates
  local source = tools and list.tool_use or list.default
  if source then return kept(source) end
  local names = {}
  for name in pairs(list) do names[#names + 1] = name end
  table.sort(names)
  if names[1] then
    refuse("The model has several chat templates and no default; give chat_template: "
      .. table.concat(names, ", ") .. ".", "chat_template")
  end
  refuse("The model has no chat template; give one with --chat-template or use "
    .. "/v1/completions.", "messages")
end

-- ---- rendering ------------------------------------------------------------------------

local function variables(ctx, req, messages, tools)
  local vars = {}
  for name, token in pairs(ctx.special_tokens) do vars[name] = token end
  vars.messages, vars.tools = messages, tools or json.null
  vars.documents = conversation.documents(req) or json.null
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

-- The end of the message that is to be continued is marked before the template runs, and
-- the prompt ends at the mark. The mark ends with a blank: where that is gone, the
-- template has trimmed the message and would have trimmed what stands before the mark.
local function new_mark()
  return ("mark%s "):format(bit.tohex(pl.C.pl_entropy(), 16))
end

local function cut_at(prompt, mark)
  local word = mark:sub(1, -2)
  local at, after = nil, 0
  repeat
    local from, to = prompt:find(word, after + 1, true)
    at, after = from or at, to
  until not from
  if not at then
    refuse("continue_final_message is set but the final message does not appear in the "
      .. "chat after applying the chat template.", "messages")
  end
  local head = prompt:sub(1, at - 1)
  if prompt:sub(at, at + #mark - 1) ~= mark then head = text.rstrip(head) end
  return (head:gsub(mark, ""):gsub(word, ""))    -- where the message is shown twice
end

-- Of the option chat_template_content_format; auto is as the template reads them.
local FORM = { string = "string", openai = "parts" }

-- The prompt's text.
function M.render(ctx, req)
  local tools = conversation.tools(req)
  local t = template_of(ctx, req, tools)
  local messages = conversation.messages(req, FORM[ctx.content_format] or t.content_form)
  local vars = variables(ctx, req, messages, tools)
  local mark = params.boolean(req, "continue_final_message") and new_mark()
  if mark then
    if vars.add_generation_prompt then
      refuse("Cannot set both `continue_final_message` and `add_generation_prompt` to "
        .. "True.", "continue_final_message")
    end
    conversation.mark(messages, mark)
  end
  local prompt, why = t:render(vars)
  if not prompt then refuse(why, "messages") end
  return mark and cut_at(prompt, mark) or prompt
end

return M
