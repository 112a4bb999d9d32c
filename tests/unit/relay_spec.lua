-- SPDX-License-Identifier: Apache-2.0
-- core/relay_event.c: what an event of another server says.
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

ffi.cdef [[
typedef struct t_span { const char *at; size_t len; } t_span;
typedef struct t_relay_event {
    bool has_choice, has_content, is_plain;
    t_span text;
    int finish;
    int32_t n_ids;
    bool has_usage;
    int64_t prompt_tokens, completion_tokens, cached_tokens;
    t_span prompt_digits, completion_digits, total_digits;
    bool has_error;
    t_span error;
    int64_t error_code;
} t_relay_event;
bool pl_relay_read(t_relay_event *e, const char *text, size_t len);
]]

local function read(text)
  local e = ffi.new "t_relay_event"
  return C.pl_relay_read(e, text, #text) and e or nil
end

local function str(span) return span.at ~= nil and ffi.string(span.at, span.len) or nil end

describe("an event of another server", function()
  it("has the text of a completion and of a chat", function()
    local e = read [[{"id":"x","choices":[{"index":0,"text":"a\"b\\","finish_reason":null}]}]]
    assert.equal([[a\"b\\]], str(e.text))
    assert.same({ true, true, true, C.PL_FINISH_NONE, -1 }, { e.has_choice, e.has_content,
      e.is_plain, e.finish, e.n_ids })
    e = read '{ "choices" : [ { "delta" : { "content" : "c" } , "index" : 0 } ] }'
    assert.equal("c", str(e.text))
    assert.is_true(e.is_plain)
  end)

  it("may have no content", function()
    for _, text in ipairs {
      '{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}',
      '{"choices":[{"index":0,"delta":{"content":null,"tool_calls":[],"reasoning":null}}]}',
      '{"choices":[{"index":0,"text":"","finish_reason":"stop"}]}', '{"choices":[]}', '{}',
    } do
      local e = read(text)
      assert.is_false(e.has_content, text)
      assert.is_true(e.is_plain, text)
    end
  end)

  it("may have content that is no plain text of one choice", function()
    for _, text in ipairs {
      '{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0}]}}]}',
      '{"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}',
      '{"choices":[{"text":"b","index":1}]}',
      '{"choices":[{"index":0,"text":"a"},{"index":0,"text":"b"}]}',
    } do
      local e = read(text)
      assert.is_true(e.has_content, text)
      assert.is_false(e.is_plain, text)
    end
  end)

  it("says how the answer ended, in words of several servers", function()
    for word, want in pairs { stop = C.PL_FINISH_STOP, length = C.PL_FINISH_LENGTH,
        tool_calls = C.PL_FINISH_STOP, abort = C.PL_FINISH_ABORT,
        error = C.PL_FINISH_ERROR } do
      local e = read(('{"choices":[{"index":0,"finish_reason":"%s"}]}'):format(word))
      assert.equal(want, e.finish)
    end
  end)

  it("counts token ids and usage", function()
    local e = read '{"choices":[{"index":0,"text":"a","token_ids":[ 5, 6 ,7]}]}'
    assert.equal(3, e.n_ids)
    assert.equal(0, read('{"choices":[{"index":0,"token_ids":[]}]}').n_ids)
    local text = '{"choices":[],"usage":{"prompt_tokens":7,"total_tokens":12,'
      .. '"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":4}}}'
    e = read(text)
    assert.same({ 7, 5, 4 }, { tonumber(e.prompt_tokens), tonumber(e.completion_tokens),
      tonumber(e.cached_tokens) })
    assert.same({ "7", "12", "5" }, { str(e.prompt_digits), str(e.total_digits),
      str(e.completion_digits) })
    assert.is_false(e.has_choice)
    assert.is_false(read('{"usage":null,"choices":[]}').has_usage)
  end)

  it("may be an error", function()
    local e = read '{"error":{"message":"it \\n broke","type":"x","code":500}}'
    assert.is_true(e.has_error)
    assert.equal("it \\n broke", str(e.error))
    assert.equal(500, tonumber(e.error_code))
    assert.equal("so", str(read('{"error":"so"}').error))
    assert.is_false(read('{"error":null}').has_error)
  end)

  it("passes over what it does not know, however deep", function()
    local deep = ("["):rep(100000) .. ("]"):rep(100000)
    local e = read('{"a":{"b":[1,{"choices":"}]"},-2.5e3,true]},"d":' .. deep
      .. ',"choices":[{"index":0,"x":' .. deep .. ',"text":"t"}]}')
    assert.equal("t", str(e.text))
  end)

  it("is refused if it is no object", function()
    for _, text in ipairs { "", "{", "[]", "null", '"x"', "{x}", '{"a"}', '{"a":}', '{"a":1',
        '{"a":1}}', '{"a":1} x', '{"choices":[{"text":"a]}', '{"choices":[{]}',
        '{"choices":[{"index":0}', '{"a":]}', '{"a":"\n"}', '{"a":"\\' } do
      assert.is_nil(read(text), text)
    end
  end)

  it("may end anywhere", function()
    local text = '{"choices":[{"index":0,"delta":{"content":"a\\u00e4","x":[1]},'
      .. '"token_ids":[1,2],"finish_reason":"stop"}],"usage":{"prompt_tokens":1,'
      .. '"prompt_tokens_details":{"cached_tokens":1}},"error":{"message":"m","code":1}}'
    assert(read(text))
    for n = 0, #text - 1 do
      local cut = ffi.new("char[?]", math.max(n, 1))    -- so that reading past it is seen
      ffi.copy(cut, text, n)
      local e = ffi.new "t_relay_event"
      assert.is_false(C.pl_relay_read(e, cut, n), text:sub(1, n))
    end
  end)
end)
