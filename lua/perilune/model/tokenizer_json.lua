-- SPDX-License-Identifier: Apache-2.0
-- model/tokenizer_json.lua - what a Hugging Face tokenizer.json asks for, as a plan that
-- model/tokenizer.lua builds. Whatever perilune would do differently is refused by its
-- field.

local M = {}

M.GPT2 = [['s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+]]
local SPACE = "\226\150\129"    -- U+2581
local null = require("cjson").null

-- A field that may be absent or null.
local function opt(value, default)
  if value == nil or value == null then return default end
  return value
end

local function refuse(name, field, what)
  error({ message = ("tokenizer.json: %s: %s"):format(field, what), name = name }, 0)
end

local function want(ok, field, what)
  if not ok then refuse("PL_EFORMAT", field, what) end
end

local function can(ok, field, what)
  if not ok then refuse("PL_EUNSUPPORTED", field, what) end
end

local function want_table(value, field)
  want(type(value) == "table", field, "not an object or list")
  return value
end

local function want_id(value, field)
  local ok = type(value) == "number" and value >= 0 and value < 2 ^ 31 and value % 1 == 0
  want(ok, field, ("'%s' is not a whole number"):format(tostring(value)))
  return value
end

-- Calls visit(entry, field) for an entry, or for each of a Sequence of them.
local function walk(entry, field, list_name, visit)
  entry = opt(entry)
  if entry == nil then return end
  if want_table(entry, field).type ~= "Sequence" then return visit(entry, field) end
  for i, e in ipairs(want_table(entry[list_name], field .. "." .. list_name)) do
    walk(e, ("%s.%s[%d]"):format(field, list_name, i - 1), list_name, visit)
  end
end

local function unsupported(entry, field)
  can(false, field .. ".type", ("'%s' is not supported"):format(tostring(entry.type)))
end

local function pattern_of(entry, field)
  return want_table(opt(entry.pattern, {}), field .. ".pattern")
end

local function is_replace(entry, field, from, to)
  return pattern_of(entry, field).String == from and entry.content == to
end

-- ---- normalizer ---------------------------------------------------------------------

local normalizers = {}

function normalizers.NFC(plan) plan.options.nfc = 1 end

function normalizers.Prepend(plan, entry, field)
  can(entry.prepend == SPACE, field .. ".prepend", "only U+2581 is supported")
  plan.prefix = "ALWAYS"
end

function normalizers.Replace(plan, entry, field)
  can(is_replace(entry, field, " ", SPACE), field, "only ' ' by U+2581 is supported")
  plan.replaced = true
end

-- ---- pre-tokenizer ------------------------------------------------------------------

local pre_tokenizers = {}

local function escape(s)
  return (s:gsub("[%^%$%(%)%%%.%[%]%*%+%-%?{}|\\#]", "\\%0"))
end

function pre_tokenizers.Split(plan, entry, field)
  local pattern = pattern_of(entry, field)
  if plan.replaced and pattern.String == " " then return end    -- there are none left
  can(entry.behavior == "Isolated", field .. ".behavior",
      ("'%s' is not supported, only 'Isolated'"):format(tostring(entry.behavior)))
  can(not opt(entry.invert, false), field .. ".invert", "not supported")
  local regex, literal = opt(pattern.Regex), opt(pattern.String)
  if type(literal) == "string" then regex = escape(literal) end
  want(type(regex) == "string" and regex ~= "", field .. ".pattern",
       "no 'Regex' or 'String'")
  table.insert(plan.splits, regex)
end

function pre_tokenizers.Digits(plan, entry)
  local each = opt(entry.individual_digits, false)
  table.insert(plan.splits, each and [[\p{N}]] or [[\p{N}+]])
end

function pre_tokenizers.ByteLevel(plan, entry, field)
  plan.kind = "BYTES"
  if opt(entry.add_prefix_space, true) then
    can(#plan.splits == 0, field .. ".add_prefix_space", "not supported after another")
    plan.prefix = "ALWAYS"
  end
  if opt(entry.use_regex, true) then table.insert(plan.splits, M.GPT2) end
end

local function prepend_scheme(entry, field)
  local replacement = opt(entry.replacement, SPACE)
  can(replacement == SPACE, field .. ".replacement", "only U+2581 is supported")
  local default = opt(entry.add_prefix_space, true) and "always" or "never"
  return opt(entry.prepend_scheme, default)
end

function pre_tokenizers.Metaspace(plan, entry, field)
  local scheme = prepend_scheme(entry, field)
  want(scheme == "always" or scheme == "first" or scheme == "never",
       field .. ".prepend_scheme", ("'%s' is not known"):format(tostring(scheme)))
  can(not plan.replaced and plan.prefix == "NEVER" and #plan.splits == 0, field,
      "not supported after others")
  plan.prefix, plan.replaced, plan.options.metaspace = scheme:upper(), true, 1
  if opt(entry.split, true) then
    table.insert(plan.splits, SPACE .. "[^" .. SPACE .. "]*")
  end
end

-- ---- decoder ------------------------------------------------------------------------

local decoders = {}

function decoders.ByteLevel(plan, _, field)
  want(plan.kind == "BYTES", field, "needs a ByteLevel pre-tokenizer")
  plan.decoded = true
end

function decoders.Replace(plan, entry, field)
  can(is_replace(entry, field, SPACE, " "), field, "only U+2581 by ' ' is supported")
  plan.decoded = true
end

function decoders.ByteFallback(plan) plan.byte_tokens = true end

function decoders.Fuse(plan) plan.fused = true end

function decoders.Strip(plan, entry, field)
  can(plan.decoded and plan.fused, field, "only supported after Replace and Fuse")
  can(entry.content == " " and opt(entry.stop, 0) == 0, field,
      "only supported for spaces at the start")
  plan.options.strip_left = want_id(opt(entry.start, 0), field .. ".start")
end

function decoders.Metaspace(plan, entry, field)
  if prepend_scheme(entry, field) ~= "never" then plan.options.strip_left = -1 end
  plan.decoded = true
end

-- ---- the rest -----------------------------------------------------------------------

local processors = {}

function processors.ByteLevel() end    -- offsets only

local function template_ids(entry, token, field)
  local tokens = want_table(opt(entry.special_tokens, {}), field)
  local known = want_table(tokens[want_table(token, field).id], field)
  local ids = want_table(known.ids, field .. ".ids")
  for _, id in ipairs(ids) do want_id(id, field .. ".ids") end
  return ids
end

function processors.TemplateProcessing(plan, entry, field)
  local to = plan.prefix_ids
  for i, piece in ipairs(want_table(entry.single, field .. ".single")) do
    local where = ("%s.single[%d]"):format(field, i - 1)
    local token = want_table(piece, where).SpecialToken
    if token then
      for _, id in ipairs(template_ids(entry, token, where)) do table.insert(to, id) end
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
    can(last ~= "ByteLevel" and last ~= "Metaspace", field,
        ("not supported after %s"):format(tostring(last)))
    local read = pre_tokenizers[entry.type]
    if not read then unsupported(entry, field) end
    read(plan, entry, field)
    last = entry.type
  end)
end

local function read_model(plan, model)
  local kind = opt(model.type, "BPE")
  can(kind == "BPE", "model.type",
      ("'%s' is not supported, only 'BPE'"):format(tostring(kind)))
  can(opt(model.dropout, 0) == 0, "model.dropout", "not supported")
  for _, field in ipairs { "continuing_subword_prefix", "end_of_word_suffix" } do
    can(opt(model[field], "") == "", "model." .. field, "not supported")
  end
  want_table(model.vocab, "model.vocab")
  want_table(model.merges, "model.merges")
  local o = plan.options
  o.ignore_merges = opt(model.ignore_merges, false) and 1 or 0
  o.fuse_unk = opt(model.fuse_unk, false) and 1 or 0
  o.byte_fallback = opt(model.byte_fallback, false) and 1 or 0
  local unk = opt(model.unk_token)
  o.unk_id = unk and want_id(model.vocab[unk], "model.unk_token") or -1
end

local function check_kind(plan, doc)
  if plan.kind == "BYTES" then
    can(not plan.replaced, "normalizer", "U+2581 is not supported with ByteLevel")
    can(plan.options.byte_fallback == 0, "model.byte_fallback",
        "not supported with ByteLevel")
    can(plan.options.strip_left == 0 and not plan.byte_tokens, "decoder",
        "only ByteLevel is supported with a ByteLevel pre-tokenizer")
  else
    want(plan.replaced, opt(doc.pre_tokenizer) and "pre_tokenizer" or "normalizer",
         "neither ByteLevel nor spaces as U+2581")
  end
  can(plan.decoded, "decoder", "not supported without ByteLevel, Replace or Metaspace")
end

local function read_added(plan, doc)
  plan.added = {}
  for i, a in ipairs(want_table(opt(doc.added_tokens, {}), "added_tokens")) do
    local field = ("added_tokens[%d]"):format(i - 1)
    want(type(want_table(a, field).content) == "string", field .. ".content", "no string")
    want_id(a.id, field .. ".id")
    table.insert(plan.added, a)
  end
end

-- What `doc`, a decoded tokenizer.json, asks for; raises { message } where perilune
-- cannot. Truncation and padding are left out: servers do neither.
function M.plan(doc)
  want_table(doc.model, "model")
  local plan = {
    kind = "PIECES", prefix = "NEVER", splits = {}, prefix_ids = {}, suffix_ids = {},
    options = { nfc = 0, strip_left = 0 },
    vocab = doc.model.vocab, merges = doc.model.merges,
  }
  read_added(plan, doc)
  read_stage(plan, doc, "normalizer", "normalizers", normalizers)
  read_pre_tokenizer(plan, doc)
  read_model(plan, doc.model)
  read_stage(plan, doc, "decoder", "decoders", decoders)
  read_stage(plan, doc, "post_processor", "processors", processors)
  check_kind(plan, doc)
  return plan
end

return M
