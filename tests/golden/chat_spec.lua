-- SPDX-License-Identifier: Apache-2.0
-- Chat templates against what transformers rendered. $PERILUNE_GOLDEN: a folder for each
-- model, with golden.json and the template beside it.
local golden = require "support.golden"
local json = require "perilune.json"
local messages = require "perilune.api.messages"

local folder = golden.root

local function read(path) return golden.read(folder .. "/" .. path) end

-- What SmolLM2's template does, for smollm2.json.
local smollm2 = [[
{% for message in messages %}
{% if loop.first and message.role != 'system' %}
<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
{% endif %}
<|im_start|>{{ message['role'] + '\n' + message['content'] }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
]]

local function context(source, tokens)
  return { chat_templates = { default = source }, special_tokens = tokens,
    content_format = "auto" }
end

local function load_context(name)
  local config = assert(json.decode(read(name .. "/tokenizer_config.json")))
  return context(read(name .. "/chat_template.jinja") or config.chat_template,
    { bos_token = config.bos_token, eos_token = config.eos_token })
end

describe("chat templates", function()
  for _, name in ipairs(golden.NAMES) do
    it("of " .. name .. " render as in transformers", function()
      local text = read(name .. "/golden.json")
      if not text then return pending("no reference outputs in " .. folder) end
      local ctx = load_context(name)
      local cases = assert(json.decode(text)).chat
      assert.is_true(#cases > 0)
      for _, case in ipairs(cases) do
        local ok, result = pcall(messages.render, ctx, case)
        assert.equal(case.error or case.rendered, ok and result or result.message,
          case.name)
      end
    end)
  end

  it("of SmolLM2 render as in llama.cpp", function()
    local text = read "smollm2.json"
    if not text then return pending("no reference outputs in " .. folder) end
    local ctx, n = context(smollm2, {}), 0
    for _, case in ipairs(assert(json.decode(text)).cases) do
      if case.messages then
        n = n + 1
        assert.equal(case.text, messages.render(ctx, case))
      end
    end
    assert.is_true(n > 0)
  end)
end)
