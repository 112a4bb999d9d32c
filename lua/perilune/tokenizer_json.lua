-- SPDX-License-Identifier: Apache-2.0
-- tokenizer_json.lua - what a Hugging Face tokenizer.json asks for, as a plan that
-- tokenizer.lua builds. Whatever perilune would do differently is refused by its field.

local M = {}

M.GPT2 = [['s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+]]
local SPACE = "\226\150\129"    -- U+2581
local null = require("cjson").null

-- A field that may be absent or null.
local function opt(value, default)
  if value == nil or value == null then return default end
  return value
end

local function refuse(field, what)
  error({ message = ("tokenizer.json: %s: %s"):format(field, what) }, 0)
end

local function want(ok, field, what)
  if not ok then refuse(field, what) end
end

-- Calls visit(entry, field) for an entry, or for each of a Sequence of them.
local function walk(entry, field, list_name, visit)
  entry = opt(entry)
  if entry == nil then return end
  want(type(entry) == "table", field, "not an object")
  if entry.type ~= "Sequence" then return visit(entry, field) end
  want(type(entry[list_name]) == "table", field, ("no '%s'"):format(list_name))
  for i, e in ipairs(entry[list_name]) do
    walk(e, ("%s.%s[%d]"):format(field, list_name, i - 1), list_name, visit)
  end
end

local function unsupported(entry, field)
  refuse(field .. ".type", ("'%s' is not supported"):format(tostring(entry.type)))
end

local function is_replace(entry, from, to)
  local pattern = opt(entry.pattern, {})
  return pattern.String == from and entry.content == to
end

-- ---- normalizer ----------------------------------------------------------------------

local normalizers = {}

function normalizers.NFC(plan) plan.options.nfc = 1 end

function normalizers.Prepend(plan, entry, field)
  want(entry.prepend == SPACE, field .. ".prepend", "only U+2581 is supported")
  plan.prefix, plan.replaced = "ALWAYS", true
end

function normalizers.Replace(plan, entry, field)
  want(is_replace(entry, " ", SPACE), field, "only ' ' by U+2581 is supported")
  plan.replaced = true
end

-- ---- pre-tokenizer --------------------------------------------------------------------

local pre_tokenizers = {}

local function escape(s)
  return (s:gsub("[%^%$%(%)%%%.%[%]%*%+%-%?{}|\\#]", "\\%0"))
end

function pre_tokenizers.Split(plan, entry, field)
  local pattern = opt(entry.pattern, {})
  if plan.replaced and pattern.String == " " then return end    -- there are none left
  want(entry.behavior == "Isolated", field .. ".behavior",
       ("'%s' is not supported, only 'Isolated'"):format(tostring(entry.behavior)))
  want(not opt(entry.invert, false), field .. ".invert", "not supported")
  local regex = pattern.Regex or pattern.String and escape(pattern.String)
  want(type(regex) == "string" and regex ~= "", field .. ".pattern", "no 'Regex' or 'String'")
  table.insert(plan.splits, regex)
end

function pre_tokenizers.Digits(plan, entry)
  table.insert(plan.splits, opt(entry.individual_digits, false) and [[\p{N}]] or [[\p{N}+]])
end

function pre_tokenizers.ByteLevel(plan, entry, field)
  plan.kind = "BYTES"
  if opt(entry.add_prefix_space, true) then
    want(#plan.splits == 0, field .. ".add_prefix_space", "not supported after another")
    plan.prefix = "ALWAYS"
  end
  if opt(entry.use_regex, true) then table.insert(plan.splits, M.GPT2) end
end

local function prepend_scheme(entry, field)
  local replacement = opt(entry.replacement, SPACE)
  want(replacement == SPACE, field .. ".replacement", "only U+2581 is supported")
  local default = opt(entry.add_prefix_space, true) and "always" or "never"
  return opt(entry.prepend_scheme, default)
end

function pre_tokenizers.Metaspace(plan, entry, field)
  local scheme = prepend_scheme(entry, field)
  want(scheme == "always" or scheme == "first" or scheme == "never",
       field .. ".prepend_scheme", ("'%s' is not known"):format(tostring(scheme)))
  want(not plan.replaced and #plan.splits == 0, field, "not supported after others")
  plan.prefix, plan.replaced, plan.options.metaspace = scheme:upper(), true, 1
  if opt(entry.split, true) then
    table.insert(plan.splits, SPACE .. "[^" .. SPACE .. "]*")
  end
end

-- ---- decoder ----------------------------------------------------------------------------

local decoders = {}

function decoders.ByteLevel(plan, _, field)
  want(plan.kind == "BYTES", field, "needs a ByteLevel pre-tokenizer")
  plan.decoded = true
end

function decoders.Replace(plan, entry, field)
  want(is_replace(entry, SPACE, " "), field, "only U+2581 by ' ' is supported")
  plan.decoded = true
end

function decoders.ByteFallback(plan) plan.byte_tokens = true end

function decoders.Fuse(plan) plan.fused = true end

function decoders.Strip(plan, entry, field)
  want(plan.fused, field, "only supported after Fuse")
  want(entry.content == " " and opt(entry.stop, 0) == 0, field,
       "only supported for spaces at the start")
  plan.options.strip_left = opt(entry.start, 0)
end

function decoders.Metaspace(plan, entry, field)
  if prepend_scheme(entry, field) ~= "never" then plan.options.strip_left = -1 end
  plan.decoded = true
end

-- ---- the rest -----------------------------------------------------------------------------

local processors = {}

function processors.ByteLevel() end    -- offsets only

function processors.TemplateProcessing(plan, entry, field)
  local to = plan.prefix_ids
  want(type(entry.single) == "table", field .. ".single", "not a list")
  for i, piece in ipairs(entry.single) do
    local token = piece.SpecialToken
    if token then
      local known = opt(entry.special_tokens, {})[token.id]
      want(known, ("%s.single[%d]"):format(field, i - 1), "not among special_tokens")
      for _, id in ipairs(known.ids) do table.insert(to, id) end
    else
      to = plan.suffix_ids
    end
  end
end

-- The steps of one stage, each by the function named as its type.
local function read_stage(plan, doc, field, list_name, kinds)
  walk(doc[field], field, list_name, function(entry, where)
    local read = kinds[entry.type]
    if not read then unsupported(entry, where) end
    read(plan, entry, where)
  end)
end

local function read_pre_tokenizer(plan, doc)
  local last
  walk(doc.pre_tokenizer, "pre_tokenizer", "pretokenizers", function(entry, field)
    want(last ~= "ByteLevel" and last ~= "Metaspace", field,
         ("not supported after %s"):format(tostring(last)))
    local read = pre_tokenizers[entry.type]
    if not read then unsupported(entry, field) end
    read(plan, entry, field)
    last = entry.type
  end)
end

local function read_model(plan, model)
  local kind = opt(model.type, "BPE")
  want(kind == "BPE", "model.type", ("'%s' is not supported, only 'BPE'"):format(kind))
  want(opt(model.dropout, 0) == 0, "model.dropout", "not supported")
  for _, field in ipairs { "continuing_subword_prefix", "end_of_word_suffix" } do
    want(opt(model[field], "") == "", "model." .. field, "not supported")
  end
  want(type(model.vocab) == "table", "model.vocab", "not an object")
  want(type(model.merges) == "table", "model.merges", "not a list")
  local o = plan.options
  o.ignore_merges = opt(model.ignore_merges, false) and 1 or 0
  o.fuse_unk = opt(model.fuse_unk, false) and 1 or 0
  o.byte_fallback = opt(model.byte_fallback, false) and 1 or 0
  local unk = opt(model.unk_token)
  o.unk_id = unk and model.vocab[unk] or -1
  want(not unk or o.unk_id >= 0, "model.unk_token", ("'%s' is no token"):format(tostring(unk)))
end

local function check_kind(plan, doc)
  if plan.kind == "BYTES" then
    want(not plan.replaced, "normalizer", "U+2581 is not supported with ByteLevel")
    want(plan.options.byte_fallback == 0, "model.byte_fallback",
         "not supported with ByteLevel")
    want(plan.options.strip_left == 0 and not plan.byte_tokens, "decoder",
         "only ByteLevel is supported with a ByteLevel pre-tokenizer")
  else
    want(plan.replaced, opt(doc.pre_tokenizer) and "pre_tokenizer" or "normalizer",
         "neither ByteLevel nor spaces as U+2581")
  end
  want(plan.decoded, "decoder", "not supported without ByteLevel, Replace or Metaspace")
end

-- What `doc`, a decoded tokenizer.json, asks for; raises { message } where perilune cannot.
-- Truncation and padding are left out: servers do neither.
function M.plan(doc)
  want(type(doc) == "table", "document", "not an object")
  want(type(opt(doc.model)) == "table", "model", "not an object")
  local plan = {
    kind = "PIECES", prefix = "NEVER", splits = {}, prefix_ids = {}, suffix_ids = {},
    options = { nfc = 0, strip_left = 0 },
    vocab = doc.model.vocab, merges = doc.model.merges, added = opt(doc.added_tokens, {}),
  }
  read_stage(plan, doc, "normalizer", "normalizers", normalizers)
  read_pre_tokenizer(plan, doc)
  read_model(plan, doc.model)
  read_stage(plan, doc, "decoder", "decoders", decoders)
  read_stage(plan, doc, "post_processor", "processors", processors)
  check_kind(plan, doc)
  return plan
end

return M
