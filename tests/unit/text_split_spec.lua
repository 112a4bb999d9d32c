-- SPDX-License-Identifier: Apache-2.0
-- The expressions that most models have are not asked where a text is ASCII: their words
-- are the same as those of expressions that always are.
local pl = require "perilune.ffi"
local tools = require "text_tools"
local C, ffi = pl.C, pl.ffi

local GPT2 = [['s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+]]
local WORDS = [[(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s]]
  .. [[| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+]]

-- What texts are made of: bytes, some of which only mean something together.
local PARTS = { "a", "b", "s", "Z", "'", " ", " ", "\n", "1", "2", ".", "\195\169",
  "\204\129", "\226\128\153", "\194\160", "\217\163", "\240\159\145\139" }

-- How GPT-2 writes a byte.
local function shown(b)
  local c, n = b, 256
  if b >= 33 and b <= 126 or b >= 161 and b <= 172 or b >= 174 then
    n = nil
  else
    for k = 0, b - 1 do
      if not (k >= 33 and k <= 126 or k >= 161 and k <= 172 or k >= 174) then n = n + 1 end
    end
  end
  c = n or c
  return c < 128 and string.char(c)
    or string.char(192 + math.floor(c / 64), 128 + c % 64)
end

-- A token for each byte, and for each two bytes of the parts, which merge: so wherever one
-- word ends earlier than it should, ids are others.
local function open(regexes)
  local used, list = {}, {}
  for _, part in ipairs(PARTS) do
    for b in part:gmatch "." do
      if not used[b] then list[#list + 1] = shown(b:byte()) end
      used[b] = true
    end
  end
  local text = C.pl_text_open(ffi.new("pl_text_options", { kind = C.PL_TEXT_BYTES,
    vocab_size = 256 + #list * #list, unk_id = -1 }))
  ffi.gc(text, C.pl_text_close)
  local function token(id, s)
    assert(pl.check(C.pl_text_token(text, id, s, #s, C.PL_TOKEN_NORMAL, 0)))
  end
  for b = 0, 255 do token(b, shown(b)) end
  for i, x in ipairs(list) do
    for k, y in ipairs(list) do
      token(256 + (i - 1) * #list + k - 1, x .. y)
      assert(pl.check(C.pl_text_merge(text, x, #x, y, #y)))
    end
  end
  for _, regex in ipairs(regexes) do
    assert(pl.check(C.pl_text_split(text, regex, #regex)))
  end
  assert(pl.check(C.pl_text_ready(text)))
  return text
end

local function some_text(random)
  local parts = {}
  for i = 1, random(24) do parts[i] = PARTS[random(#PARTS)] end
  return table.concat(parts)
end

-- Numbers from 1 to n, the same ones each time.
local function numbers()
  local state = 42
  return function(n)
    state = state * 16807 % 2147483647
    return state % n + 1
  end
end

describe("a pre-tokenizer that is known", function()
  for name, regexes in pairs { ["GPT-2's"] = { GPT2 }, ["SmolLM2's"] = { [[\p{N}]], GPT2 },
    ["Qwen2's"] = { WORDS:format [[\p{N}]] }, ["numerals"] = { [[\p{N}+]] },
    ["Llama 3's"] = { WORDS:format [[\p{N}{1,3}]] } } do
    it(("makes the words that its expression makes: %s"):format(name), function()
      local asked = {}
      for i, regex in ipairs(regexes) do asked[i] = "(?:" .. regex .. ")" end
      local known, other, random = open(regexes), open(asked), numbers()
      for _ = 1, 3000 do
        local text = some_text(random)
        assert.same(tools.encode(other, text), tools.encode(known, text), text)
      end
    end)
  end
end)
