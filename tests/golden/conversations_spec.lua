-- SPDX-License-Identifier: Apache-2.0
-- Chats as clients send them, against what Jinja makes of them: conversations.py wrote
-- conversations.json.
local json = require "perilune.json"
local messages = require "perilune.api.messages"

local function context(format)
  return { trust_request_chat_template = true, special_tokens = {}, chat_templates = {},
    content_format = format }
end

-- The prompt, or what refused the request.
local function render(request, format)
  local ok, result = pcall(messages.render, context(format or "auto"), request)
  return ok and result or result.message or result
end

describe("a conversation", function()
  local file = assert(io.open("tests/golden/conversations.json", "rb"))
  local cases = assert(json.decode(file:read "*a"))
  file:close()

  for _, case in ipairs(cases) do
    it("with " .. case.name .. " is the prompt that it should be", function()
      assert.equal(case.prompt, render(case.request))
      assert.equal(case.prompt, render(case.request))    -- and is as it was
    end)
  end

  it("has its contents in the form that the server's owner names", function()
    local request = json.decode [[{"messages": [{"role": "user", "content": "a"},
      {"role": "user", "content": [{"type": "text", "text": "b"}, "c"]}],
      "chat_template": "{{ messages[0].content }} {{ messages[1].content }}"}]]
    assert.equal("a b\nc", render(request))
    assert.equal("a b\nc", render(request, "string"))
    assert.equal("[{'type': 'text', 'text': 'a'}] [{'type': 'text', 'text': 'b'}, "
      .. "{'type': 'text', 'text': 'c'}]", render(request, "openai"))
  end)
end)
