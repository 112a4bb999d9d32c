-- SPDX-License-Identifier: Apache-2.0
-- What the target and the body of a request may be, before anyone looks at its fields.
local serving = require "support.serving"

local COMPLETION, CHAT = "/v1/completions", "/v1/chat/completions"
local BODY = { prompt = "Once", max_tokens = 1 }

describe("a request", function()
  local s
  setup(function() s = serving.start() end)
  teardown(function() s:stop() end)

  local function error_of(status, r)
    assert.equal(status, r.status, r.text)
    return r.json.error
  end

  local function refused(path, body, words, param)
    local e = error_of(400, s:post(path, body))
    assert.is_truthy(e.message:find(words, 1, true), e.message)
    if param then assert.equal(param, e.param) end
  end

  it("knows an escaped letter of a path, and refuses packed bodies", function()
    local encoding = { ["Content-Type"] = "application/json" }
    local function packed(coding)
      encoding["Content-Encoding"] = coding
      return s:post(COMPLETION, BODY, encoding)
    end
    assert.equal(200, s:get("/v1/%6Dodels").status)
    assert.equal(200, s:post("/v1/c%6fmpletions", BODY).status)
    assert.equal(404, s:get("/v1/%256Dodels").status)
    for _, coding in ipairs { "gzip", "br, identity", "x" } do
      local r = packed(coding)
      error_of(415, r)
      assert.equal("identity", r.headers["accept-encoding"])
    end
    for _, coding in ipairs { "identity", "Identity", "" } do
      assert.equal(200, packed(coding).status)
    end
    encoding["Content-Encoding"] = "gzip"
    assert.equal(200, s:get("/v1/models", encoding).status)    -- no body
  end)

  it("refuses numbers beyond 64 bits by the field that they stand in", function()
    local long = ("1"):rep(30)
    for name, message in pairs { temperature = "temperature is out of range, got ",
      max_tokens = "max_tokens is out of range, got ", stop = "stop must be a list",
      seed = "seed must be an integer of 64 bits, got ", n = "n is out of range, got ",
      logprobs = "logprobs is out of range, got ",
      stop_token_ids = "stop_token_ids must be a list, got " } do
      local body = '{"prompt":"x","' .. name .. '":' .. long .. "}"
      refused(COMPLETION, body, message, name)
    end
    refused(COMPLETION, '{"prompt":"x","stop_token_ids":[' .. long .. "]}",
      "out of range, got " .. long, "stop_token_ids")
    refused(COMPLETION, '{"prompt":"x","logit_bias":{"5":' .. long .. "}}",
      "out of range, got " .. long, "logit_bias")
    refused(COMPLETION, '{"prompt":[1,' .. long .. "]}", "beyond 32 bits: " .. long)
    refused(COMPLETION, '{"prompt":' .. long .. "}", "prompt")
    refused(CHAT, '{"messages":[{"role":"user","content":' .. long .. "}]}",
      "messages[0].content must be a string")
    assert.equal(200, s:post(COMPLETION, '{"prompt":"x","max_tokens":1,"seed":'
      .. '-9223372036854775808,"metadata":{"n":' .. long .. "}}").status)
  end)
end)
