-- SPDX-License-Identifier: Apache-2.0
-- tokenizer_gguf.lua - what a GGUF file's metadata says of its tokenizer, as a plan that
-- tokenizer.lua builds. `meta.get(key)` gives a scalar, of an array how many items it has,
-- or nil; `meta.item(key, i)` the i'th item, from 0.

local GPT2 = require("perilune.tokenizer_json").GPT2
local M = {}

local WORDS = [[(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s]]
  .. [[| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+]]

local gpt2 = { splits = { GPT2 } }
local digits = { splits = { [[\p{N}]], GPT2 } }
local qwen2 = { splits = { (WORDS:gsub("%%s", "\\p{N}")) }, nfc = 1 }
local llama3 = { splits = { (WORDS:gsub("%%s", "\\p{N}{1,3}")) }, ignore_merges = 1,
                 add_bos = true }

-- tokenizer.ggml.pre, by the names that llama.cpp's converter gives.
local pre_tokenizers = {
  ["default"] = gpt2, ["gpt-2"] = gpt2, ["phi-2"] = gpt2, ["mpt"] = gpt2, ["olmo"] = gpt2,
  ["smollm"] = digits, ["starcoder"] = digits, ["refact"] = digits, ["codeshell"] = digits,
  ["qwen2"] = qwen2, ["deepseek-r1-qwen"] = qwen2,
  ["llama-bpe"] = llama3, ["llama3"] = llama3, ["llama-v3"] = llama3, ["falcon3"] = llama3,
}

-- tokenizer.ggml.token_type
local UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6

local function refuse(...) error({ message = (...):format(select(2, ...)) }, 0) end

local function known_names(t)
  local names = {}
  for name in pairs(t) do table.insert(names, name) end
  table.sort(names)
  return table.concat(names, ", ")
end

local function string_item(meta, key, i)
  local s = meta.item(key, i)
  if type(s) ~= "string" then refuse("'%s' item %d is no string", key, i) end
  return s
end

local function number_item(meta, key, i)
  local n = meta.item(key, i)
  if type(n) ~= "number" then refuse("'%s' item %d is no number", key, i) end
  return n
end

local function read_tokens(plan, meta)
  local tokens, types = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
  local scores = "tokenizer.ggml.scores"
  local n = meta.get(tokens)
  if type(n) ~= "number" then refuse("'%s' is missing", tokens) end
  for _, key in ipairs { types, plan.options.by_score == 1 and scores or types } do
    local have = meta.get(key) or (key == types and n)
    if have ~= n then refuse("'%s' has not as many items as '%s'", key, tokens) end
  end
  local typed = meta.get(types)
  plan.vocab, plan.added, plan.scores, plan.byte_ids = {}, {}, {}, {}
  for i = 0, n - 1 do
    local content, kind = string_item(meta, tokens, i), typed and number_item(meta, types, i)
    plan.vocab[i] = content
    if plan.options.by_score == 1 then plan.scores[i] = number_item(meta, scores, i) end
    if kind == CONTROL or kind == UNKNOWN or kind == USER_DEFINED then
      table.insert(plan.added, { id = i, content = content, special = kind ~= USER_DEFINED })
    end
    plan.byte_ids[i] = kind == BYTE and plan.kind == "PIECES" or nil
  end
end

local function read_gpt2(plan, meta)
  local pre = meta.get "tokenizer.ggml.pre" or "default"
  local known = pre_tokenizers[pre]
  if not known then
    refuse("tokenizer.ggml.pre '%s' is not supported, only %s", tostring(pre),
           known_names(pre_tokenizers))
  end
  plan.kind, plan.splits, plan.add_bos = "BYTES", known.splits, known.add_bos
  plan.options.nfc, plan.options.ignore_merges = known.nfc, known.ignore_merges
  local key = "tokenizer.ggml.merges"
  local n = meta.get(key)
  if type(n) ~= "number" then refuse("'%s' is missing", key) end
  for i = 0, n - 1 do plan.merges[i + 1] = string_item(meta, key, i) end
end

local function read_llama(plan, meta)
  plan.kind, plan.add_bos = "PIECES", true
  local prefix = meta.get "tokenizer.ggml.add_space_prefix" ~= false
  plan.prefix = prefix and "ALWAYS" or "NEVER"
  local o = plan.options
  o.by_score, o.byte_fallback, o.fuse_unk = 1, 1, 1
  o.strip_left = prefix and 1 or 0
  o.unk_id = meta.get "tokenizer.ggml.unknown_token_id"
end

local kinds = { gpt2 = read_gpt2, llama = read_llama }

-- Raises { message } where the metadata is missing, or asks for what perilune has not.
function M.plan(meta)
  local plan = { prefix = "NEVER", splits = {}, merges = {}, options = {} }
  local kind = meta.get "tokenizer.ggml.model"
  local read = kinds[kind]
  if not read then
    refuse("tokenizer.ggml.model '%s' is not supported, only %s", tostring(kind),
           known_names(kinds))
  end
  read(plan, meta)
  read_tokens(plan, meta)
  return plan
end

return M
