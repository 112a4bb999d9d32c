-- SPDX-License-Identifier: Apache-2.0
-- What a chat's fields may be, and what is said of those that are something else. What
-- becomes of good ones: tests/golden/conversations_spec.lua.
local json = require "perilune.json"
local messages = require "perilune.api.messages"

local USER = '"messages": [{"role": "user", "content": "a"}]'

local function context(more)
  local ctx = { chat_templates = { default = "{{ messages[-1].content }}" },
    special_tokens = {}, content_format = "auto" }
  for key, v in pairs(more or {}) do ctx[key] = v end
  return ctx
end

local function render(fields, more)
  return messages.render(context(more), assert(json.decode("{" .. fields .. "}")))
end

local function refused(fields, message, param, more)
  local ok, why = pcall(render, fields, more)
  assert.is_false(ok, fields)
  assert.equal("table", type(why), tostring(why))
  assert.same({ 400, message, param }, { why.status, why.message, why.param })
end

local function refused_message(m, message)
  refused('"messages": [{"role": "user", "content": "a"}, ' .. m .. "]", message,
    "messages")
end

describe("a chat", function()
  it("names the field of a tool that is none", function()
    for tools, wanted in pairs {
      ['"f"'] = "tools must be a list.", ["{}"] = "tools must be a list.",
      ["[5]"] = "tools[0] must be an object.", ["[null]"] = "tools[0] must be an object.",
      ["[{}]"] = "tools[0].function must be an object.",
      ['[{"function": "f"}]'] = "tools[0].function must be an object.",
      ['[{"type": "function", "function": {}}]'] =
        "tools[0].function.name must be a string.",
      ['[{"function": {"name": null}}]'] = "tools[0].function.name must be a string.",
      ['[{"function": {"name": ""}}]'] = "tools[0].function.name must be a string.",
      ['[{"function": {"name": "f"}}, {"function": {"name": 5}}]'] =
        "tools[1].function.name must be a string.",
      ['[{"type": "sort", "function": {"name": "f"}}]'] =
        'tools[0].type must be "function".',
      ['[{"function": {"name": "f", "parameters": "x"}}]'] =
        "tools[0].function.parameters must be an object.",
    } do
      refused(USER .. ', "tools": ' .. tools, wanted, "tools")
    end
    for _, tools in ipairs { "null", "[]", '[{"function": {"name": "f"}}]',
      '[{"type": null, "function": {"name": "f", "parameters": null}}]' } do
      assert.equal("a", render(USER .. ', "tools": ' .. tools))
    end
  end)

  it("names the message that is none, and the part of it", function()
    refused('"tools": null', "messages is required.", "messages")
    refused('"messages": null', "messages is required.", "messages")
    refused('"messages": {}', "messages must be a list.", "messages")
    refused('"messages": []', "messages must not be empty.", "messages")
    for _, m in ipairs { "1", "null", "{}", '{"role": null}', '{"role": 1}' } do
      refused_message(m, "messages[1] must be an object with a role.")
    end
    for content, wanted in pairs {
      ["{}"] = "messages[1].content must be a string or a list of parts.",
      ["5"] = "messages[1].content must be a string or a list of parts.",
      ["[5]"] = "messages[1].content[0] must be a text part.",
      ["[null]"] = "messages[1].content[0] must be a text part.",
      ["[{}]"] = "messages[1].content[0] must be a text part.",
      ['["a", {"type": "image_url"}]'] =
        "messages[1].content[1] must be a text part, got 'image_url'.",
      ['[{"type": "text", "text": 5}]'] = "messages[1].content[0] must be a text part.",
    } do
      refused_message('{"role": "user", "content": ' .. content .. "}", wanted)
    end
  end)

  it("names the call that is none, and the part of it", function()
    local at = "messages[1].tool_calls[0].function"
    for calls, wanted in pairs {
      ["{}"] = "messages[1].tool_calls must be a list.",
      ["5"] = "messages[1].tool_calls must be a list.",
      ["[5]"] = at .. " must be an object.", ["[{}]"] = at .. " must be an object.",
      ['[{"function": null}]'] = at .. " must be an object.",
      ['[{"function": {"arguments": 5}}]'] =
        at .. ".arguments must be a string of JSON or an object.",
      ['[{"function": {"arguments": "{"}}]'] = at .. ".arguments is not JSON: json: line "
        .. "1, column 1: string or '}' expected near end of file",
    } do
      refused_message('{"role": "assistant", "tool_calls": ' .. calls .. "}", wanted)
    end
  end)

  it("names documents and words for the template that are none", function()
    refused(USER .. ', "documents": "x"', "documents must be a list.", "documents")
    refused(USER .. ', "documents": [{}, 5]', "documents[1] must be an object.",
      "documents")
    refused(USER .. ', "chat_template_kwargs": 5',
      "chat_template_kwargs must be an object.", "chat_template_kwargs")
    local source = { chat_templates = { default = "{{ [tools, x, n] }}" } }
    assert.equal("[None, 1, None]",
      render(USER .. ', "chat_template_kwargs": {"x": 1, "n": null}', source))
  end)

  it("sees numbers as the client wrote them", function()
    local source = { chat_templates = { default =
      "{% for n in l %}{{ n }} {{ n is integer }} {% endfor %}{{ l | tojson }}" } }
    assert.equal("9007199254740993 True -18446744073709551616 True 1e+20 False "
      .. "[9007199254740993, -18446744073709551616, 1e+20]", render(USER
      .. ', "chat_template_kwargs": {"l": [9007199254740993, -18446744073709551616, 1e20]}',
      source))
  end)

  it("cannot be continued where the template drops what is to be continued", function()
    local fields = USER .. ', "continue_final_message": true, "add_generation_prompt": '
    local lost = { chat_templates = { default = "hi" } }
    refused(fields .. "false", "continue_final_message is set but the final message does "
      .. "not appear in the chat after applying the chat template.", "messages", lost)
    refused(fields .. "true", "Cannot set both `continue_final_message` and "
      .. "`add_generation_prompt` to True.", "continue_final_message")
  end)
end)

describe("a model's chat templates", function()
  local several = { chat_templates = { default = "D", tool_use = "T", rag = "R" },
    trust_request_chat_template = true }
  local tools = USER .. ', "tools": [{"function": {"name": "f"}}]'

  it("are chosen as in transformers: by the request's tools, or by name", function()
    assert.equal("D", render(USER, several))
    assert.equal("D", render(USER .. ', "tools": []', several))
    assert.equal("T", render(tools, several))
    assert.equal("R", render(tools .. ', "chat_template": "rag"', several))
    assert.equal("other", render(USER .. ', "chat_template": "other"', several))
    assert.equal("D", render(tools, { chat_templates = { default = "D", rag = "R" } }))
  end)

  it("are named where none is the default", function()
    local named = { chat_templates = { tool_use = "T", rag = "R" } }
    assert.equal("T", render(tools, named))
    refused(USER, "The model has several chat templates and no default; give "
      .. "chat_template: rag, tool_use.", "chat_template", named)
    refused(USER, "The model has no chat template; give one with --chat-template or use "
      .. "/v1/completions.", "messages", { chat_templates = {} })
  end)

  it("see the tokens that have a name", function()
    assert.equal("<pad><unk>|", render(USER, {
      chat_templates = { default = "{{ pad_token }}{{ unk_token }}|{{ sep_token }}" },
      special_tokens = { pad_token = "<pad>", unk_token = "<unk>" } }))
  end)
end)
