-- SPDX-License-Identifier: Apache-2.0
-- Tokenizers of a few tokens, so that each rule can be seen at work.
local pl = require "perilune.ffi"
local tools = require "text_tools"
local C, ffi = pl.C, pl.ffi
local encode, decode = tools.encode, tools.decode

local SPACE = "\226\150\129"
local BROKEN = "\239\191\189"

local function open(options)
  local o = ffi.new("pl_text_options", { vocab_size = 600, unk_id = -1 })
  for key, value in pairs(options) do o[key] = value end
  local text = C.pl_text_open(o)
  if text == nil then return pl.refusal(C.PL_EINVAL) end
  return ffi.gc(text, C.pl_text_close)
end

local function token(text, id, bytes, kind, score)
  return pl.check(C.pl_text_token(text, id, bytes, #bytes, kind or C.PL_TOKEN_NORMAL,
                                  score or 0))
end

local function merge(text, left, right)
  return pl.check(C.pl_text_merge(text, left, #left, right, #right))
end

local function split(text, regex)
  return pl.check(C.pl_text_split(text, regex, #regex))
end

local function ready(text)
  assert(pl.check(C.pl_text_ready(text)))
  return text
end

local function stream(text, ids, primed)
  return tools.stream(text, ids, true, primed)
end

-- The byte alphabet: byte b has the id b, and is written as GPT-2 writes it.
local function add_bytes(text)
  local n = 256
  for b = 0, 255 do
    local c = b
    if not (b >= 33 and b <= 126 or b >= 161 and b <= 172 or b >= 174) then
      c, n = n, n + 1
    end
    local s = c < 128 and string.char(c)
      or string.char(192 + math.floor(c / 64), 128 + c % 64)
    assert(token(text, b, s))
  end
  return text
end

local function bytes_text(options)
  options = options or {}
  options.kind = C.PL_TEXT_BYTES
  return add_bytes(assert(open(options)))
end

-- Pieces: <unk> 0, the 256 byte tokens from 1, then `more` from 300.
local function pieces_text(options, more)
  options.kind, options.byte_fallback, options.unk_id = C.PL_TEXT_PIECES, 1, 0
  local text = assert(open(options))
  token(text, 0, "<unk>")
  for b = 0, 255 do token(text, 1 + b, ("<0x%02X>"):format(b), C.PL_TOKEN_BYTE) end
  for i, piece in ipairs(more) do assert(token(text, 299 + i, piece, nil, -i)) end
  return text
end

describe("byte-level text", function()
  it("merges by rank, the leftmost first", function()
    local text = bytes_text()
    token(text, 256, "ab")
    token(text, 257, "bc")
    token(text, 258, "aa")
    merge(text, "b", "c")
    merge(text, "a", "b")
    merge(text, "a", "a")
    ready(text)
    assert.same({ 97, 257 }, encode(text, "abc"))
    assert.same({ 258, 97 }, encode(text, "aaa"))
    assert.same({ 256, 256 }, encode(text, "abab"))
  end)

  it("gives a long word the ids that a short one has", function()
    local text = bytes_text()
    token(text, 256, "ab")
    token(text, 257, "abab")
    token(text, 258, "ca")
    merge(text, "c", "a")
    merge(text, "a", "b")
    merge(text, "ab", "ab")
    ready(text)
    assert.same({ 258, 98, 257 }, encode(text, "cababab"))
    local ids = encode(text, "cab" .. ("abab"):rep(1000))
    assert.equal(1002, #ids)
    assert.same({ 258, 98, 257 }, { ids[1], ids[2], ids[1002] })
  end)

  it("lets a whole piece win before its merges only when told to", function()
    for flag, want in pairs { [0] = { 97, 98, 99 }, [1] = { 256 } } do
      local text = bytes_text { ignore_merges = flag }
      token(text, 256, "abc")
      assert.same(want, encode(ready(text), "abc"))
    end
  end)

  it("splits by each pre-tokenizer in turn, seeing pieces alone", function()
    local text = bytes_text()
    for i, m in ipairs { { "a", "b" }, { "ab", "1" }, { "1", "2" }, { "Ġ", "Ġ" } } do
      token(text, 255 + i, m[1] .. m[2])
    end
    merge(text, "a", "b")
    merge(text, "ab", "1")
    merge(text, "1", "2")
    merge(text, "Ġ", "Ġ")
    split(text, [[\p{N}]])
    split(text, [[ ?\p{L}+|\s+(?!\S)|\s+]])
    ready(text)
    assert.same({ 256, 49, 50 }, encode(text, "ab12"))
    assert.same({ 259, 49 }, encode(text, "  1"))       -- the digit is not seen
    assert.same({ 32, 32, 256 }, encode(text, "  ab"))
  end)

  it("takes U+180E for no space", function()
    local text = bytes_text()
    token(text, 256, "áł")
    token(text, 257, "ł" .. "İ")
    split(text, [[\s|[^\s]+]])
    ready(text)
    assert.equal(3, #encode(text, "\225\160\142"))
  end)

  it("composes to NFC what needs it", function()
    local text = ready(bytes_text { nfc = 1 })
    assert.same({ 0xc3, 0xa9 }, encode(text, "e\204\129"))
    assert.same({ 0xe2, 0x80, 0x9c, 0xe4, 0xb8, 0xad },
                encode(text, "\226\128\156\228\184\173"))
    assert.same({ 97, 0xc3, 0xa9, 98, 0xea, 0xb0, 0x81 },
                encode(text, "ae\204\129b\234\176\128\225\134\168"))
    assert.same({ 0x65, 0xcc, 0x81 }, encode(ready(bytes_text()), "e\204\129"))
  end)

  it("puts a space before a section that has none", function()
    local text = bytes_text { prefix_space = C.PL_PREFIX_ALWAYS }
    token(text, 300, "<s>", C.PL_TOKEN_SPECIAL)
    ready(text)
    assert.same({ 32, 97, 300, 32, 98 }, encode(text, "a<s> b"))
    assert.same({ 300, 32, 98 }, encode(text, "<s>b"))
  end)

  it("decodes broken UTF-8 as U+FFFD, a piece of a character each", function()
    local text = ready(bytes_text())
    assert.equal("a" .. BROKEN .. "b", decode(text, { 97, 0xe4, 0xbd, 98 }))
    assert.equal(BROKEN .. BROKEN, decode(text, { 0x80, 0xf0 }))
    assert.equal(BROKEN .. BROKEN .. BROKEN, decode(text, { 0xed, 0xa0, 0x80 }))
  end)

  it("holds a character back until it is whole", function()
    local text = ready(bytes_text())
    assert.same({ "a", "", "", "\228\189\160", "b", "" },
                stream(text, { 97, 0xe4, 0xbd, 0xa0, 98 }))
    assert.same({ "", BROKEN .. "b", "" }, stream(text, { 0xe4, 98 }))
    assert.same({ "", "", BROKEN }, stream(text, { 0xe4, 0xbd }))
    assert.same({ "\228\189\160", "" }, stream(text, { 0xa0 }, { 97, 0xe4, 0xbd }))
  end)

  it("gives a token's bytes, whole characters or not", function()
    local text = ready(bytes_text())
    local out = ffi.new "pl_buf"
    assert(pl.check(C.pl_text_bytes(text, 0xe4, out)))
    assert.equal("\228", pl.take(out))
    local _, why, name = pl.check(C.pl_text_bytes(text, 599, out))
    assert.equal("token 599 does not exist", why)
    assert.equal("PL_EINVAL", name)
  end)
end)

describe("added tokens", function()
  local function with(tokens, options)
    local text = bytes_text(options)
    for i, t in ipairs(tokens) do token(text, 299 + i, t[1], t[2]) end
    return ready(text)
  end

  it("are found leftmost, then longest", function()
    local text = with { { "<a>", C.PL_TOKEN_SPECIAL }, { "<a>>", C.PL_TOKEN_ADDED },
                        { "a>>>", C.PL_TOKEN_ADDED } }
    assert.same({ 301, 62 }, encode(text, "<a>>>"))
    assert.same({ 300, 302 }, encode(text, "<a>a>>>"))
  end)

  it("are text where they are special and special is off", function()
    local text = with { { "<a>", C.PL_TOKEN_SPECIAL }, { "<b>", C.PL_TOKEN_ADDED } }
    assert.same({ 60, 97, 62, 301 }, encode(text, "<a><b>", false))
    assert.same({ 300, 301 }, encode(text, "<a><b>"))
    assert.equal("<b>", decode(text, { 300, 301 }, true))
    assert.equal("<a><b>", decode(text, { 300, 301 }, false))
  end)

  it("take the spaces beside them, or only whole words", function()
    local text = with { { "<l>", C.PL_TOKEN_ADDED + C.PL_TOKEN_LSTRIP },
                        { "<r>", C.PL_TOKEN_ADDED + C.PL_TOKEN_RSTRIP },
                        { "ab", C.PL_TOKEN_ADDED + C.PL_TOKEN_SINGLE_WORD } }
    assert.same({ 97, 300, 32 }, encode(text, "a \n<l> "))
    assert.same({ 97, 32, 301, 97 }, encode(text, "a <r> \227\128\128a"))
    assert.same({ 302, 46 }, encode(text, "ab."))
    assert.same({ 97, 98, 99 }, encode(text, "abc"))
    assert.same({ 0xc3, 0xa9, 97, 98 }, encode(text, "\195\169ab"))
  end)

  -- As tokenizers does: a token goes on being looked for where the one before ends, among
  -- the spaces that that one has taken.
  it("count among the spaces that another one takes", function()
    local text = with { { "<r>", C.PL_TOKEN_ADDED + C.PL_TOKEN_RSTRIP },
                        { "  ", C.PL_TOKEN_ADDED },
                        { "\t", C.PL_TOKEN_ADDED + C.PL_TOKEN_LSTRIP } }
    assert.same({ 300, 301, 97 }, encode(text, "<r>  a"))
    assert.same({ 300, 301, 32, 97 }, encode(text, "<r>   a"))
    assert.same({ 300, 97 }, encode(text, "<r>\ta"))    -- nothing is left of it
    assert.same({ 97, 302, 300 }, encode(text, "a \t<r> "))
  end)

  it("are found in the normalized text where they say so", function()
    for flag, want in pairs { [C.PL_TOKEN_NORMALIZED] = { 300 }, [0] = { 0xc3, 0xa9 } } do
      local text = with({ { "\195\169", C.PL_TOKEN_ADDED + flag } }, { nfc = 1 })
      assert.same(want, encode(text, "e\204\129"))
    end
  end)

  it("are known by name and kind", function()
    local text = with { { "<a>", C.PL_TOKEN_SPECIAL + C.PL_TOKEN_LSTRIP } }
    assert.equal(300, C.pl_text_find(text, "<a>", 3))
    assert.equal(32, C.pl_text_find(text, " ", 1))
    assert.equal(-1, C.pl_text_find(text, "<b>", 3))
    assert.equal(C.PL_TOKEN_SPECIAL + C.PL_TOKEN_LSTRIP, C.pl_text_token_kind(text, 300))
    assert.equal(C.PL_TOKEN_NORMAL, C.pl_text_token_kind(text, 97))
    assert.equal(-1, C.pl_text_token_kind(text, 599))
    assert.equal(600, C.pl_text_size(text))
  end)
end)

describe("pieces", function()
  local function sections(options, metaspace)
    options.metaspace = metaspace
    local text = pieces_text(options, { SPACE, "a", "b" })
    token(text, 400, "<s>", C.PL_TOKEN_SPECIAL)
    return ready(text)
  end

  it("start with a space always, where they have none, first, or never", function()
    local text = sections({ prefix_space = C.PL_PREFIX_ALWAYS }, 0)
    assert.same({ 300, 300, 301, 400, 300, 302 }, encode(text, " a<s>b"))
    text = sections({ prefix_space = C.PL_PREFIX_ALWAYS }, 1)
    assert.same({ 300, 301, 400, 300, 302 }, encode(text, " a<s>b"))
    text = sections({ prefix_space = C.PL_PREFIX_FIRST }, 1)
    assert.same({ 300, 301, 400, 302 }, encode(text, "a<s>b"))
    assert.same({ 400, 302 }, encode(text, "<s>b"))
    text = sections({ prefix_space = C.PL_PREFIX_NEVER }, 1)
    assert.same({ 301, 400, 302 }, encode(text, "a<s>b"))
  end)

  it("fall back to bytes, then to the unknown token", function()
    local text = ready(pieces_text({}, { "a" }))
    assert.same({ 1 + 0xc3, 1 + 0xa9, 300 }, encode(text, "\195\169a"))
    for fuse, want in pairs { [0] = { 0, 0, 5, 0 }, [1] = { 0, 5, 0 } } do
      text = assert(open { kind = C.PL_TEXT_PIECES, unk_id = 0, fuse_unk = fuse })
      token(text, 0, "<unk>")
      token(text, 5, "a")
      assert.same(want, encode(ready(text), "xyaz"))
    end
  end)

  it("merge by score, equal ones leftmost first", function()
    local text = assert(open { kind = C.PL_TEXT_PIECES, by_score = 1 })
    for id, piece in ipairs { "a", "b", "c" } do token(text, id, piece, nil, -10) end
    token(text, 4, "ab", nil, -2)
    token(text, 5, "bc", nil, -1)
    token(text, 6, "ca", nil, -2)
    token(text, 7, "bcab", nil, -3)
    ready(text)
    assert.same({ 1, 5 }, encode(text, "abc"))
    assert.same({ 7 }, encode(text, "bcab"))
    assert.same({ 6, 2 }, encode(text, "cab"))
  end)

  it("may be cut at spaces, or not, with the same ids", function()
    local more = { SPACE, "a", "b", SPACE .. "a", SPACE .. SPACE, "b" .. SPACE }
    for _, crossing in ipairs { false, true } do
      local text = pieces_text({}, more)
      merge(text, SPACE, SPACE)
      merge(text, SPACE, "a")
      if crossing then merge(text, "b", SPACE) end
      ready(text)
      assert.same({ 301, 303, 304, 301, 303 }, encode(text, "a a  a a"))
      assert.same(crossing and { 305, 302 } or { 302, 300, 302 }, encode(text, "b b"))
    end
  end)

  it("lose the space at the start, unless the text has begun", function()
    local text = ready(pieces_text({ strip_left = 1 }, { SPACE .. "a", SPACE .. SPACE }))
    assert.equal("a a", decode(text, { 300, 300 }))
    assert.equal(" a", decode(text, { 301, 1 + 97 }))
    assert.same({ " a", "" }, stream(text, { 300 }, { 300 }))
    assert.same({ "a", "" }, stream(text, { 300 }))
  end)

  it("lose all spaces of the first token to a Metaspace decoder", function()
    local text = ready(pieces_text({ strip_left = -1 }, { SPACE .. SPACE .. "a" }))
    assert.equal("a  a", decode(text, { 300, 300 }))
  end)

  it("decode a run of bytes as a whole, or as U+FFFD each", function()
    local text = ready(pieces_text({}, { "a" }))
    local whole, broken = { 1 + 0xc3, 1 + 0xa9, 300 }, { 1 + 97, 1 + 0xc3, 300 }
    assert.equal("\195\169a", decode(text, whole))
    assert.equal(BROKEN .. BROKEN .. "a", decode(text, broken))
    assert.same({ "", "", "\195\169a", "" }, stream(text, whole))
    assert.same({ "", "", BROKEN .. BROKEN .. "a", "" }, stream(text, broken))
    assert.same({ "", "\195\169" }, stream(text, { 1 + 0xa9 }, { 1 + 97, 1 + 0xc3 }))
    assert.same({ "a", "" }, stream(text, { 300 }, { 1 + 97 }))
  end)
end)

describe("text refuses", function()
  local function refused(name, pattern, ok, why, code)
    assert.is_nil(ok)
    assert.matches(pattern, why)
    assert.equal(name, code)
  end

  it("what is no UTF-8, or comes too soon", function()
    local text = bytes_text()
    refused("PL_EINVAL", "not ready", encode(text, "a"))
    ready(text)
    refused("PL_EINVAL", "not UTF%-8", encode(text, "a\255"))
    refused("PL_EINVAL", "not UTF%-8", encode(text, "\237\160\128"))
    assert.same({}, encode(text, ""))
    refused("PL_EINVAL", "frozen", token(text, 300, "x"))
  end)

  it("options out of range", function()
    refused("PL_EINVAL", "kind 7", open { kind = 7 })
    refused("PL_EINVAL", "vocab_size 0", open { vocab_size = 0 })
    refused("PL_EINVAL", "unk_id 600", open { unk_id = 600 })
    refused("PL_EINVAL", "for pieces only", open { kind = C.PL_TEXT_BYTES, by_score = 1 })
    refused("PL_EINVAL", "needs metaspace",
            open { kind = C.PL_TEXT_PIECES, prefix_space = C.PL_PREFIX_FIRST })
  end)

  it("tokens and merges that do not fit", function()
    local text = bytes_text()
    refused("PL_EFORMAT", "id 600 is not in 0..599", token(text, 600, "x"))
    refused("PL_EFORMAT", "id 97 is given twice", token(text, 97, "x"))
    refused("PL_EFORMAT", "token 300 is not UTF%-8", token(text, 300, "\255"))
    refused("PL_ELIMIT", "5000 bytes", token(text, 300, ("x"):rep(5000)))
    refused("PL_EFORMAT", "merge 0 names 'a' 'b'", merge(text, "a", "b"))
    local pieces = pieces_text({ by_score = 1 }, {})
    refused("PL_EFORMAT", "not <0xHH>", token(pieces, 300, "x", C.PL_TOKEN_BYTE))
    refused("PL_EFORMAT", "no finite score", token(pieces, 300, "x", nil, 0 / 0))
    refused("PL_EINVAL", "takes no merges", merge(pieces, "a", "b"))
  end)

  it("regular expressions that it would read differently", function()
    local text = bytes_text()
    refused("PL_EUNSUPPORTED", "%[ in a class", split(text, "[a[b]]"))
    refused("PL_EUNSUPPORTED", "&& in a class", split(text, "[a&&b]"))
    refused("PL_EUNSUPPORTED", "has \\h", split(text, [[\h+]]))
    refused("PL_EUNSUPPORTED", "parenthes", split(text, "(a"))
  end)

  it("a text on which the expression never ends", function()
    local text = bytes_text()
    split(text, "(a+a+)+[bc]")
    refused("PL_ELIMIT", "gave up", encode(ready(text), ("a"):rep(200)))
  end)
end)
