-- SPDX-License-Identifier: Apache-2.0
-- model/tokenizer_gguf.lua - what a GGUF file's metadata says of its tokenizer, as a plan
-- that model/tokenizer.lua builds. `meta.get(key)` gives a scalar, of an array how many
-- items it has, or nil; `meta.item(key, i)` the i'th item, from 0.

local GPT2 = require("perilune.model.tokenizer_json").GPT2
local facts = require "perilune.model.facts"
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
  ["smollm"] = digits, ["starcoder"] = digits, ["refact"] = digits,
  ["codeshell"] = digits,
  ["qwen2"] = qwen2, ["deepseek-r1-qwen"] = qwen2,
  ["llama-bpe"] = llama3, ["llama3"] = llama3, ["llama-v3"] = llama3,
  ["falcon3"] = llama3,
}

-- tokenizer.ggml.token_type
local UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6

-- The texts with which turns and texts end, by which they are known where a file names
-- another token, or none: llama.cpp ends an answer at each of them.
local ENDS = {}
for _, text in ipairs {
  "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
  "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>", "<eos>",
  "<\239\189\156end\226\150\129of\226\150\129sentence\239\189\156>",
} do ENDS[text] = true end

local function refuse(...)
  error({ message = (...):format(select(2, ...)) }, 0)
end

local function unsupported(key, value, known)
  local names = {}
  for name in pairs(known) do table.insert(names, name) end
  table.sort(names)
  local message = ("%s '%s' is not supported, only %s"):format(key, tostring(value),
                                                              table.concat(names, ", "))
  error({ name = "PL_EUNSUPPORTED", message = message }, 0)
end

local function item(meta, key, i, kind)
  local v = meta.item(key, i)
  if type(v) ~= kind then refuse("'%s' item %d is not a %s", key, i, kind) end
  return v
end

-- How many tokens there are; lists beside theirs are as long, or not there.
local function count_tokens(meta, by_score)
  local tokens = "tokenizer.ggml.tokens"
  local n = meta.get(tokens)
  if type(n) ~= "number" then refuse("'%s' is missing", tokens) end
  for key, required in pairs { ["tokenizer.ggml.token_type"] = false,
                               ["tokenizer.ggml.scores"] = by_score } do
    local have = meta.get(key)
    if have ~= n and (have or required) then
      refuse("'%s' has not as many items as '%s'", key, tokens)
    end
  end
  return n
end

-- Those of a row's `rstrip` that take no space nevertheless.
local KEEPS = { ["<unk>"] = true, ["<s>"] = true, ["<|endoftext|>"] = true }

local function read_tokens(plan, meta)
  local row = facts.find("gguf", meta.get "general.architecture") or {}
  local by_score = plan.options.by_score == 1
  local n = count_tokens(meta, by_score)
  local typed = meta.get "tokenizer.ggml.token_type"
  plan.vocab, plan.added, plan.scores, plan.byte_ids = {}, {}, {}, {}
  plan.end_ids = {}
  for i = 0, n - 1 do
    local content = item(meta, "tokenizer.ggml.tokens", i, "string")
    local kind = typed and item(meta, "tokenizer.ggml.token_type", i, "number")
    plan.vocab[i] = content
    plan.scores[i] = by_score and item(meta, "tokenizer.ggml.scores", i, "number") or 0
    local ends = ENDS[content]
    if ends then plan.end_ids[#plan.end_ids + 1] = i end
    if ends or kind == CONTROL or kind == UNKNOWN or kind == USER_DEFINED then
      local special = ends or kind ~= USER_DEFINED
      local rstrip = by_score and row.rstrip and special and not KEEPS[content]
      table.insert(plan.added, { id = i, content = content, special = special,
                                 rstrip = rstrip })
    end
    plan.byte_ids[i] = kind == BYTE and plan.kind == "PIECES" or nil
  end
end

local function read_gpt2(plan, meta)
  local pre = meta.get "tokenizer.ggml.pre" or "default"
  local known = pre_tokenizers[pre]
  if not known then unsupported("tokenizer.ggml.pre", pre, pre_tokenizers) end
  plan.kind, plan.splits, plan.add_bos = "BYTES", known.splits, known.add_bos
  plan.options.nfc, plan.options.ignore_merges = known.nfc, known.ignore_merges
  local key = "tokenizer.ggml.merges"
  local n = meta.get(key)
  if type(n) ~= "number" then refuse("'%s' is missing", key) end
  for i = 0, n - 1 do plan.merges[i + 1] = item(meta, key, i, "string") end
end

local function read_llama(plan, meta)
  plan.kind, plan.add_bos = "PIECES", true
  local prefix = meta.get "tokenizer.ggml.add_space_prefix" ~= false
  plan.prefix = prefix and "ALWAYS" or "NEVER"
  local o = plan.options
  o.by_score, o.byte_fallback, o.fuse_unk = 1, 1, 1
  o.strip_left = prefix and 1 or 0
end

-- The id that the metadata gives a role, as "eos"; nil if it is not a token: converters
-- wrote -1, in whatever width, for "there is none".
function M.token_id(meta, role, vocab)
  local id = meta.get("tokenizer.ggml." .. role .. "_token_id")
  return type(id) == "number" and vocab[id] and id or nil
end

local kinds = { gpt2 = read_gpt2, llama = read_llama }

-- Raises { message } where the metadata is missing, or asks for what perilune has not.
function M.plan(meta)
  local plan = { prefix = "NEVER", splits = {}, merges = {}, options = {} }
  local kind = meta.get "tokenizer.ggml.model"
  local read = kinds[kind]
  if not read then unsupported("tokenizer.ggml.model", kind, kinds) end
  read(plan, meta)
  read_tokens(plan, meta)
  plan.options.unk_id = plan.options.by_score == 1
    and M.token_id(meta, "unknown", plan.vocab) or -1
  for _, role in ipairs { "eos", "eot", "eom" } do
    local id = M.token_id(meta, role, plan.vocab)
    if id then plan.end_ids[#plan.end_ids + 1] = id end
  end
  return plan
end

return M
