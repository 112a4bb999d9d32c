-- SPDX-License-Identifier: Apache-2.0
-- The official openai client against a server: $PERILUNE_PYTHON runs it (./dev sets it up).
local machine = require "perilune.recipe.machine"
local scratch = require "scratch"
local serving = require "support.serving"

local python = os.getenv "PERILUNE_PYTHON" or "python3"

local function has_client()
  return scratch.sh(("'%s' -c 'import openai'"):format(python)) == 0
end

describe("the openai client", function()
  local function agrees_with(model, name, flags)
    if not has_client() then return pending "no python with openai" end
    local words = { "--served-model-name", name, "--model", model, "--max-model-len", "2048" }
    for _, flag in ipairs(flags or {}) do words[#words + 1] = flag end
    local s = serving.start(words)
    local code, out, err = scratch.sh(("'%s' tests/system/openai_client.py %s %s")
      :format(python, "http://127.0.0.1:" .. s.port, name))
    local idle = s:idle()
    s:stop()
    assert.equal(0, code, out .. err)
    assert.is_nil(out:find "FAIL")
    assert.is_true(select(2, out:gsub("\nok ", "")) > 10)
    assert.is_true(idle)
  end

  it("agrees with a small model", function()
    agrees_with(serving.MODEL, "small")
  end)

  it("agrees with a real model", function()
    local model = os.getenv "PERILUNE_MODEL" or machine.fetched_model()
    if not model then return pending "no model in the cache" end
    agrees_with(model, "real")
  end)
end)
