-- SPDX-License-Identifier: Apache-2.0
-- What hostile clients may send to a server: each gets a refusal in OpenAI's words, and
-- nobody else is harmed. After each a well-behaved request is answered; at the end nothing
-- runs and no block is in use.
local client = require "perilune.tools.http_client"
local cjson = require "cjson.safe"
local pl = require "perilune.ffi"
local serving = require "support.serving"
local socket = require "support.socket"

local COMPLETION, CHAT = "/v1/completions", "/v1/chat/completions"

-- Each JSON type, and the extremes of each.
local VALUES = { "null", "true", "false", "0", "-0", "-0.0", "-1", "1", "1.5", "3", "1e308",
  "-1e308", "1e400", "5e-324", "9223372036854775807", "9223372036854775808",
  "-9223372036854775808", "1e30", "4294967296", "2147483647", "2147483648", "-2147483648",
  "16385", '""', '"x"', '"1"', '"\\u0000"', '"\\ud800"', '"\255"', "[]", "[[]]", "[null]",
  "[1]", '["x"]', '[""]', "[-1]", "[1e308]", "[99999999999]", "[600]", "[599,596]",
  "[true]", '[[1],"x"]', "{}", '{"a":1}', '{"1":1e308}', '{"-1":1}', '{"600":1}',
  '{"1e2":1}', '{"":null}', '[{"a":[]}]', '[{"role":"user"}]', '[{"role":1,"content":"x"}]',
  '[{"role":"user","content":[{"type":"image_url"}]}]', '[{"role":"x","content":{}}]',
  '[{"role":"assistant","tool_calls":[{"function":{"arguments":"{"}}]}]', "NaN",
  "-Infinity", "0x10", "01", "+1", ".5", "1.", "'x'", "nul", "" }

local SAMPLING = "n temperature top_p top_k min_p frequency_penalty presence_penalty "
  .. "repetition_penalty seed stop stop_token_ids include_stop_str_in_output ignore_eos "
  .. "min_tokens logit_bias allowed_token_ids skip_special_tokens user length_penalty "
  .. "spaces_between_special_tokens truncate_prompt_tokens prompt_logprobs "
  .. "use_beam_search response_format structured_outputs stream stream_options priority "
  .. "request_id cache_salt return_token_ids return_tokens_as_token_ids bad_words model "
  .. "kv_transfer_params vllm_xargs logits_processors add_special_tokens echo logprobs "
  .. "max_tokens "
local PROMPT, MESSAGES = '"prompt":"x"', '"messages":[{"role":"user","content":"x"}]'

-- Path, the fields tried there, what stands before the field (a later one wins).
local FIELDS = {
  { COMPLETION, SAMPLING .. "prompt prompt_embeds suffix", PROMPT .. ',"max_tokens":1' },
  { CHAT, SAMPLING .. "messages top_logprobs max_completion_tokens tools tool_choice "
    .. "parallel_tool_calls reasoning_effort include_reasoning add_generation_prompt "
    .. "continue_final_message documents chat_template chat_template_kwargs",
    MESSAGES .. ',"max_tokens":1' },
  { "/tokenize", "model prompt add_special_tokens return_token_strs messages "
    .. "add_generation_prompt continue_final_message chat_template tools", PROMPT },
  { "/detokenize", "model tokens", '"tokens":[1]' },
}

-- JSON so deep, around a 1.
local function nested(n, open, close) return open:rep(n) .. "1" .. close:rep(n) end

local function list_of(n, item)
  local t = {}
  for i = 1, n do t[i] = item:gsub("N", tostring(i)) end
  return "[" .. table.concat(t, ",") .. "]"
end

local function body_of(rest, before) return ("{%s,%s}"):format(before or PROMPT, rest) end

local function megabytes(n, word) return word:rep(math.floor(n * 2 ^ 20 / #word)) end

describe("a hostile client", function()
  local s, kept
  setup(function()
    s = serving.start { "--max-model-len", "256", "--trust-request-chat-template" }
    kept = client.connection(s.url, {}, 60000)
  end)
  teardown(function()
    kept:close()
    assert.is_true(s:idle(20))
    s:stop()
  end)

  -- A request on the kept connection: status and body.
  local function post(path, body)
    local parts = {}
    local r, why = kept:request("POST", path, body, function(p) parts[#parts + 1] = p end)
    assert(r, why)
    return r.status, table.concat(parts)
  end

  local function is_refusal(status, text, what)
    assert.is_true(status >= 400 and status < 500, ("%d for %s"):format(status, what))
    local e = cjson.decode(text)
    assert.is_truthy(e and e.error and e.error.message ~= "", text)
    assert.equal(status, e.error.code)
  end

  -- A well-behaved client's request, on a connection of its own.
  local function healthy()
    local r = s:post(COMPLETION, { prompt = "hello", max_tokens = 2, ignore_eos = true })
    assert.equal(200, r.status)
    assert.equal(2, r.json.usage.completion_tokens)
  end

  local function refused(path, body, what)
    local status, text = post(path, body)
    is_refusal(status, text, what or body:sub(1, 100))
    healthy()
  end

  for _, row in ipairs(FIELDS) do
    it("gives every field of " .. row[1] .. " every kind of value", function()
      local path, fields, before = unpack(row)
      local taken, refusals = 0, 0
      for field in fields:gmatch "%S+" do
        for _, value in ipairs(VALUES) do
          for _, more in ipairs { "", ',"stream":true', ',"logprobs":1,"temperature":0' } do
            local body = ('{%s%s,"%s":%s}'):format(before, more, field, value)
            local status, text = post(path, body)
            if status ~= 200 then
              is_refusal(status, text, body)
              refusals = refusals + 1
            else
              taken = taken + 1
              assert.is_nil(text:find('"error"', 1, true), body)
            end
          end
        end
      end
      assert.is_true(refusals > taken)
      healthy()
    end)
  end

  it("sends what is not JSON", function()
    for _, body in ipairs { "", " ", "hello", "[]", "1", '"x"', "null", '{"prompt":"x"',
        '{"prompt":"x"}}', "{'prompt':'x'}", '{"prompt":"a\0b"}', '{"prompt":"\255\254"}',
        '{"prompt":"\237\160\128"}', '{"prompt":"\\ud800"}', '{"prompt":"\\x"}',
        '{"prompt":"x",}', '\239\187\191{"prompt":"x"}', '{"prompt":"x","n":1 2}',
        "{" .. nested(10000, '"a":{', "}") .. "}", nested(10000, "[", "]"),
        '{"prompt":' .. nested(10000, "[", "]") .. "}" } do
      refused(COMPLETION, body)
    end
    -- NUL is a character like others, and half a level below the bound is no offence.
    assert.equal(200, (post(COMPLETION, '{"prompt":"a\\u0000b","max_tokens":1}')))
    assert.equal(200, (post(COMPLETION, body_of('"max_tokens":1,"x":'
      .. nested(500, "[", "]")))))
  end)

  it("asks for more than there is", function()
    refused(COMPLETION, '{"prompt":' .. list_of(1000, "5") .. "}")
    refused(COMPLETION, '{"prompt":[600]}')
    refused(COMPLETION, '{"prompt":[5,-1]}')
    refused(COMPLETION, '{"prompt":[2147483648]}')
    refused(COMPLETION, '{"prompt":' .. list_of(20000, "[5]") .. "}")
    for _, n in ipairs { 16385, 16384, 8193 } do
      refused(COMPLETION, body_of(('"temperature":1,"max_tokens":1,"n":%d'):format(n)))
    end
    refused(COMPLETION, '{"temperature":1,"n":16384,"prompt":' .. list_of(2000, "[5]") .. "}")
    refused(COMPLETION, body_of('"temperature":1,"n":8000,"bad_words":'
      .. list_of(1000, '"wordN wordN wordN"')))
    refused(COMPLETION, body_of('"stop":' .. list_of(100000, '"xN"')))
    refused(COMPLETION, body_of('"stop":' .. list_of(60, '"' .. ("x"):rep(70000) .. '"')))
    refused(COMPLETION, body_of('"stop_token_ids":' .. list_of(700, "5")))
    refused(COMPLETION, body_of('"allowed_token_ids":' .. list_of(700, "5")))
    refused(COMPLETION, body_of('"bad_words":' .. list_of(2000, '"x"')))
    local bias = list_of(20000, '"N":1'):sub(2, -2)
    refused(COMPLETION, body_of('"logit_bias":{' .. bias .. "}"))
    refused(COMPLETION, body_of(('"cache_salt":"%s"'):format(("x"):rep(100000))))
    refused(COMPLETION, body_of(('"model":"%s"'):format(("x"):rep(100000))))
    assert.equal(200, (post(COMPLETION, body_of(
      '"max_tokens":1,"stop":' .. list_of(64, '"' .. ("xN"):rep(9000) .. '"')))))
    local many = s:post(COMPLETION, { prompt = "x", temperature = 1, n = 1000,
      max_tokens = 1 })
    assert.equal(1000, #many.json.choices)
    many = s:post(COMPLETION, { prompt = "x", temperature = 1, n = 300, max_tokens = 2,
      stream = true, ignore_eos = true }):events()
    assert.is_true(#many >= 300)
  end)

  it("sends 20 MB", function()
    local ids = "[" .. megabytes(20, "12,") .. "12]"
    for _, case in ipairs {
      { COMPLETION, '{"prompt":' .. ids .. "}" },
      { COMPLETION, '{"prompt":[' .. megabytes(20, "[12],") .. "[12]]}" },
      { COMPLETION, ('{"prompt":"%s"}'):format(megabytes(20, "hello ")) },
      { COMPLETION, megabytes(20, "\1\2\3zz") },
      { COMPLETION, '{"prompt":[' .. megabytes(20, "1e999,") },
      { CHAT, '{"messages":[' .. megabytes(5, '{"role":"user","content":"x"},')
        .. '{"role":"user","content":"x"}]}' },
    } do
      refused(case[1], case[2])
    end
    local r = s:post("/detokenize", '{"tokens":' .. ids .. "}")
    assert.equal(200, r.status)
    assert.equal(megabytes(20, "12,"):len() / 3 + 1, #r.json.prompt)
    healthy()
  end)

  it("brings templates that never end, or grow", function()
    for _, template in ipairs {
      "{% for i in range(1000000000) %}{% endfor %}",
      "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
      "{{ 'x' * 1000000000 }}",
      "{% set n = namespace(x='xxxxxxxxxx') %}{% for i in range(100) %}"
        .. "{% set n.x = n.x + n.x %}{% endfor %}",
      "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
      ("{% if 1 %}"):rep(5000), ("{{"):rep(20000), "{{ " .. ("("):rep(50000) .. " }}",
      "{{ " .. ("-"):rep(50000) .. "1 }}", "{{ " .. ("not "):rep(50000) .. "1 }}",
      "{{ " .. ("["):rep(50000) .. " }}", "{{ '%1000000000d' % 1 }}",
      "{{ range(1000000000) | list }}", "{{ 10 ** 10 ** 10 }}",
      "{% set a = [] %}{% for i in range(50) %}{% set _ = a.append(a) %}{% endfor %}{{ a }}",
      "{{ raise_exception('no') }}", "{% include 'x' %}", "{{ messages.x.y.z }}",
      "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
      "{{ ('x' * 3000) | replace('x', 'y' * 30000) }}", "{% set x = x %}{{ x() }}",
    } do
      refused(CHAT, cjson.encode { messages = { { role = "user", content = "x" } },
        max_tokens = 1, chat_template = template }, template:sub(1, 60))
    end
  end)

  it("is at work while others are answered", function()
    local loop = "{% for i in range(99999) %}{% for j in range(99) %}{% set x = j %}"
      .. "{% endfor %}{% endfor %}"
    local slow = {}
    for i = 1, 6 do
      slow[i] = s:begin("POST", CHAT, { messages = { { role = "user", content = "x" } },
        chat_template = loop })
    end
    local before = s:metric "vllm:request_success_total"
    for _ = 1, 5 do assert.equal(200, s:get("/health").status) end
    for _, r in ipairs(slow) do is_refusal(r:finish().status, r.text, loop) end
    assert.equal(before, s:metric "vllm:request_success_total")
    healthy()
  end)

  it("sends half of a request, and waits", function()
    local text = ("POST %s HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
      .. "Content-Length: 100\r\n\r\n{\"prompt\":"):format(COMPLETION)
    local open = {}
    for i = 1, 200 do
      open[i] = socket.connect(s.port)
      open[i]:send_all(text:sub(1, i % #text))
    end
    healthy()
    for _, c in ipairs(open) do c:close() end
    healthy()
  end)

  it("comes 500 times at once", function()
    local bodies = {}
    for i = 1, 500 do
      bodies[i] = { prompt = "number " .. i, max_tokens = i % 20 + 1, ignore_eos = true,
        stream = i % 3 == 0 }
    end
    for i, r in ipairs(s:post_all(COMPLETION, bodies)) do
      assert.equal(200, r.status)
      if i % 3 == 0 then
        assert.equal("length", table.remove(r:events()).choices[1].finish_reason)
      else
        assert.equal(i % 20 + 1, r.json.usage.completion_tokens)
      end
    end
    healthy()
  end)

  it("goes away at any moment", function()
    for i = 1, 150 do
      local function roll(lane, n) return tonumber(pl.C.pl_random_at(5, i, lane) % n) end
      local c = s:begin("POST", roll(1, 2) == 0 and CHAT or COMPLETION, {
        prompt = ("w "):rep(1 + roll(2, 100)), max_tokens = 1 + roll(3, 150),
        messages = { { role = "user", content = "x" } }, stream = roll(4, 3) > 0,
        n = 1 + roll(5, 3), ignore_eos = true }).connection
      for _ = 1, roll(6, 4) do c:receive(roll(7, 20)) end
      if roll(8, 2) == 0 then c:reset() else c:close() end
    end
    healthy()
    assert.is_true(s:idle(20))
  end)
end)
