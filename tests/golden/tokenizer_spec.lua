-- SPDX-License-Identifier: Apache-2.0
-- Ids and texts of the reference models, exactly as Hugging Face's tokenizers give them.
local cjson = require "cjson"
local pl = require "perilune.ffi"
local tokenizer = require "perilune.tokenizer"
local C, ffi = pl.C, pl.ffi

local folder = os.getenv "PERILUNE_GOLDEN" or "tests/golden"

local function read(path)
  local f = io.open(path, "rb")
  if not f then return nil end
  local s = f:read "*a"
  f:close()
  return cjson.decode(s)
end

local function encode(text, s, special)
  local out = ffi.new "pl_buf"
  assert(pl.check(C.pl_text_encode(text, s, #s, special and 1 or 0, out)))
  local ids = {}
  local data = ffi.cast("const int32_t *", out.data)
  for i = 0, tonumber(out.len) / 4 - 1 do ids[i + 1] = data[i] end
  C.pl_buf_fini(out)
  return ids
end

local function decode(text, ids, skip)
  local out = ffi.new "pl_buf"
  local array = ffi.new("int32_t[?]", #ids, ids)
  assert(pl.check(C.pl_text_decode(text, array, #ids, skip and 1 or 0, out)))
  return pl.take(out)
end

local function stream(text, ids, skip)
  local d = C.pl_detok_open(text, skip and 1 or 0)
  local out, parts = ffi.new "pl_buf", {}
  for i, id in ipairs(ids) do
    C.pl_detok_push(d, id, out)
    parts[i] = pl.take(out)
  end
  C.pl_detok_flush(d, out)
  table.insert(parts, pl.take(out))
  C.pl_detok_close(d)
  return table.concat(parts)
end

local function around(t, ids)
  local all = {}
  for _, list in ipairs { t.prefix_ids, ids, t.suffix_ids } do
    for _, id in ipairs(list) do table.insert(all, id) end
  end
  return all
end

for _, name in ipairs { "llama", "qwen2", "qwen3", "mistral", "qwen3-moe" } do
  describe("tokenizer of " .. name, function()
    local golden = read(folder .. "/" .. name .. "/golden.json")
    if not golden then return pending "no reference models: set PERILUNE_GOLDEN" end
    local t = assert(tokenizer.from_directory(folder .. "/" .. name))

    it("encodes", function()
      for _, case in ipairs(golden.tokenizer.encode) do
        local ids = encode(t.text, case.text, true)
        assert.same(case.ids, ids, case.text)
        assert.same(case.ids_special, around(t, ids))
      end
    end)

    it("encodes what the chat templates make", function()
      for _, chat in ipairs(golden.chat) do
        if chat.rendered then
          assert.same(chat.ids, encode(t.text, chat.rendered, true), chat.name)
        end
      end
    end)

    it("decodes, at once and as they come", function()
      for _, case in ipairs(golden.tokenizer.decode) do
        local skipped = case.text_skip_special or case.text
        assert.equal(case.text, decode(t.text, case.ids, false))
        assert.equal(skipped, decode(t.text, case.ids, true))
        assert.equal(case.text, stream(t.text, case.ids, false))
        assert.equal(skipped, stream(t.text, case.ids, true))
      end
    end)
  end)
end
