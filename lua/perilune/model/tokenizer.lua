-- SPDX-License-Identifier: Apache-2.0
-- model/tokenizer.lua - a model's tokenizer, from its Hugging Face directory or its GGUF
-- file.
--
-- Both give { text = pl_text, prefix_ids, suffix_ids, end_ids, add_bos, add_eos, bos_id,
-- eos_id, unk_id, pad_id, special_tokens = { bos_token = content, ... }, chat_templates
-- = { default = template, ... }, special = { [content] = id } }, or nil, message, name.
-- What a model has not is nil; prefix_ids and suffix_ids go around a prompt that is plain
-- text, any of end_ids ends an answer. `text` is closed when it is collected: keep it
-- while anything in C has it.

local cjson = require "cjson"
local pl = require "perilune.ffi"
local added = require "perilune.model.tokenizer_added"
local from_json = require "perilune.model.tokenizer_json"
local from_meta = require "perilune.model.tokenizer_gguf"
local C, ffi, bit = pl.C, pl.ffi, require "bit"

local M = {}

local function refuse(message) error({ message = message }, 0) end

-- Runs f; what it raises as { message, name } becomes nil, message, name.
local function guard(f, ...)
  local ok, result = pcall(f, ...)
  if ok then return result end
  if type(result) ~= "table" then error(result, 0) end
  return nil, result.message, result.name or "PL_EFORMAT"
end

local function check(status)
  if status < 0 then
    error({ message = ffi.string(C.pl_error_text()),
            name = ffi.string(C.pl_status_name(status)) }, 0)
  end
end

-- ---- building -----------------------------------------------------------------------

local function check_id(id, content)
  if type(id) ~= "number" or id < 0 or id % 1 ~= 0 or id >= 2 ^ 31 then
    refuse(("token '%s' has the id '%s', no whole number"):format(content, tostring(id)))
  end
  return id
end

-- Ids to contents, and how many ids there are.
local function by_id(plan)
  local vocab, size = {}, 0
  if plan.vocab[0] then
    vocab, size = plan.vocab, #plan.vocab + 1
  else
    for content, id in pairs(plan.vocab) do
      if vocab[check_id(id, content)] then
        refuse(("two tokens have the id %d"):format(id))
      end
      vocab[id] = content
      size = math.max(size, id + 1)
    end
  end
  for _, a in ipairs(plan.added) do size = math.max(size, a.id + 1) end
  return vocab, size
end

local function add_tokens(text, plan, vocab)
  for id, content in pairs(vocab) do
    local byte = plan.byte_ids and plan.byte_ids[id]
      or plan.byte_tokens and content:find "^<0x%x%x>$"
    check(C.pl_text_token(text, id, content, #content,
                          byte and C.PL_TOKEN_BYTE or C.PL_TOKEN_NORMAL,
                          plan.scores and plan.scores[id] or 0))
  end
  for _, a in ipairs(plan.added) do
    local kind = a.special == true and C.PL_TOKEN_SPECIAL or C.PL_TOKEN_ADDED
    kind = bit.bor(kind, a.lstrip == true and C.PL_TOKEN_LSTRIP or 0,
                   a.rstrip == true and C.PL_TOKEN_RSTRIP or 0,
                   a.single_word == true and C.PL_TOKEN_SINGLE_WORD or 0,
                   a.normalized == true and C.PL_TOKEN_NORMALIZED or 0)
    check(C.pl_text_token(text, a.id, a.content, #a.content, kind, 0))
  end
end

-- A merge is a pair, or in older files its two parts with a space between.
local function add_merges(text, merges)
  for i, m in ipairs(merges) do
    local left, right
    if type(m) == "table" then
      left, right = m[1], m[2]
    elseif type(m) == "string" then
      local at = m:find(" ", 2, true)
      if at then left, right = m:sub(1, at - 1), m:sub(at + 1) end
    end
    if type(left) ~= "string" or type(right) ~= "string" then
      refuse(("merge %d is not a pair of tokens"):format(i - 1))
    end
    check(C.pl_text_merge(text, left, #left, right, #right))
  end
end

local function build(plan)
  local o = ffi.new("pl_text_options", { unk_id = -1 })
  for key, value in pairs(plan.options) do o[key] = value end
  o.kind = C["PL_TEXT_" .. plan.kind]
  o.prefix_space = C["PL_PREFIX_" .. plan.prefix]
  local vocab, size = by_id(plan)
  if size > 2 ^ 22 then refuse(("%d token ids are more than %d"):format(size, 2 ^ 22)) end
  o.vocab_size = size
  local text = C.pl_text_open(o)
  if text == nil then check(C.PL_EINVAL) end
  text = ffi.gc(text, C.pl_text_close)
  add_tokens(text, plan, vocab)
  add_merges(text, plan.merges)
  for _, regex in ipairs(plan.splits) do check(C.pl_text_split(text, regex, #regex)) end
  check(C.pl_text_ready(text))
  return text
end

local function special_tokens(plan)
  local special = {}
  for _, a in ipairs(plan.added) do
    if a.special == true then special[a.content] = a.id end
  end
  return special
end

local function contains(list, value)
  for _, v in ipairs(list) do
    if v == value then return true end
  end
  return false
end

-- ---- a directory --------------------------------------------------------------------

local FILES = { "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                "chat_template.jinja" }
local TEMPLATES = "additional_chat_templates"
local MAX_TEMPLATES = 100

-- The names of a tokenizer's files in a directory, whether or not all are there.
function M.files(dir)
  local names = { unpack(FILES) }
  local found = ffi.new "pl_buf"
  C.pl_list_folder(dir .. "/" .. TEMPLATES, ".jinja", MAX_TEMPLATES, found)
  for path in pl.take(found):gmatch "[^\n]+" do
    names[#names + 1] = TEMPLATES .. "/" .. path:match "[^/]+$"
  end
  return names
end

local function read_file(path)
  local f, why = io.open(path, "rb")
  local s = f and f:read "*a"
  if f then f:close() end
  return s, ("'%s' cannot be read: %s"):format(path, why or "not a file")
end

local function parse(name, s)
  local ok, doc = pcall(cjson.decode, s)
  if not ok then refuse(("'%s' is not JSON: %s"):format(name, doc)) end
  if type(doc) ~= "table" then refuse(("'%s' is no JSON object"):format(name)) end
  return doc
end

-- The templates in a configuration: one, or a list of named ones.
local function config_templates(value)
  if type(value) == "string" then return { default = value } end
  local named = {}
  for _, t in ipairs(type(value) == "table" and value or {}) do
    local named_so = type(t) == "table" and type(t.name) == "string"
    if named_so and type(t.template) == "string" then named[t.name] = t.template end
  end
  return named
end

-- The templates by their names. Where there are files, the configuration's do not count.
local function templates(get, names, config)
  local found = { default = get "chat_template.jinja" }
  for _, name in ipairs(names) do
    local key = name:match "^additional_chat_templates/(.+)%.jinja$"
    if key then found[key] = get(name) end
  end
  return next(found) and found or config_templates(config.chat_template)
end

-- What templates may say: the contents of bos_token and all other tokens with a name.
local function named_tokens(config)
  local out = {}
  for key, token in pairs(config) do
    if type(token) == "table" then token = token.content end
    if type(key) == "string" and key:find "_token$" and type(token) == "string" then
      out[key] = token
    end
  end
  return out
end

local function load_files(get, name_of, names)
  local main, why = get "tokenizer.json"
  if not main then error({ message = why, name = "PL_EIO" }, 0) end
  local plan = from_json.plan(parse(name_of "tokenizer.json", main))
  local function optional(name)
    local text = get(name)
    return text and parse(name_of(name), text) or {}
  end
  local config = added.with_map(optional "tokenizer_config.json",
                                optional "special_tokens_map.json")
  added.extend(plan, config)
  local text = build(plan)
  for _, list in ipairs { plan.prefix_ids, plan.suffix_ids } do
    for _, id in ipairs(list) do
      if C.pl_text_token_kind(text, id) < 0 then
        refuse(("tokenizer.json: post_processor: %d is not a token"):format(id))
      end
    end
  end
  local t = { text = text, prefix_ids = plan.prefix_ids, suffix_ids = plan.suffix_ids,
              special = special_tokens(plan), special_tokens = named_tokens(config) }
  for _, name in ipairs { "bos", "eos", "unk", "pad" } do
    local token = t.special_tokens[name .. "_token"]
    local id = token and C.pl_text_find(text, token, #token) or -1
    t[name .. "_id"] = id >= 0 and id or nil
  end
  t.end_ids = { t.eos_id }
  t.add_bos = contains(t.prefix_ids, t.bos_id)
  t.add_eos = contains(t.suffix_ids, t.eos_id)
  t.chat_templates = templates(get, names, config)
  return t
end

-- The tokenizer of a model's Hugging Face directory.
function M.from_directory(dir)
  local function name_of(name) return dir .. "/" .. name end
  return guard(load_files, function(name) return read_file(name_of(name)) end, name_of,
    M.files(dir))
end

-- The same of files that are at hand: their contents by their names.
function M.from_files(files)
  local names = {}
  for name in pairs(files) do names[#names + 1] = name end
  return guard(load_files, function(name) return files[name], name .. " is missing" end,
    function(name) return name end, names)
end

-- ---- GGUF ---------------------------------------------------------------------------

-- A value of GGUF's metadata; of an array how many items it has.
local function meta_value(m)
  if m.kind == C.PL_JSON_STRING then return ffi.string(m.string, m.len) end
  if m.kind == C.PL_JSON_INTEGER then return tonumber(m.integer) end
  if m.kind == C.PL_JSON_REAL then return m.number end
  if m.kind == C.PL_JSON_ARRAY then return m.n end
  if m.kind == C.PL_JSON_TRUE then return true end
  if m.kind == C.PL_JSON_FALSE then return false end
end

local function weights_meta(weights)
  local m = ffi.new "pl_meta"
  return {
    get = function(key)
      if C.pl_weights_meta(weights, key, m) >= 0 then return meta_value(m) end
    end,
    item = function(key, i)
      if C.pl_weights_meta_item(weights, key, i, m) >= 0 then return meta_value(m) end
    end,
  }
end

local gguf_names = { bos = "bos", eos = "eos", unk = "unknown", pad = "padding" }

local function gguf_templates(meta)
  local function text(key)
    local v = meta.get(key)
    return type(v) == "string" and v or nil
  end
  local found = { default = text "tokenizer.chat_template" }
  local n = meta.get "tokenizer.chat_templates"
  n = type(n) == "number" and math.min(n, MAX_TEMPLATES) or 0
  for i = 0, n - 1 do
    local name = meta.item("tokenizer.chat_templates", i)
    if type(name) == "string" then
      found[name] = text("tokenizer.chat_template." .. name)
    end
  end
  return found
end

local function load_gguf(meta)
  local plan = from_meta.plan(meta)
  local t = { text = build(plan), prefix_ids = {}, suffix_ids = {},
              special = special_tokens(plan), special_tokens = {} }
  for name, key in pairs(gguf_names) do
    local id = from_meta.token_id(meta, key, plan.vocab)
    t[name .. "_id"], t.special_tokens[name .. "_token"] = id, id and plan.vocab[id]
  end
  t.end_ids = plan.end_ids
  local add_bos = meta.get "tokenizer.ggml.add_bos_token"
  if add_bos == nil then add_bos = plan.add_bos end
  t.add_bos = add_bos == true and t.bos_id ~= nil
  t.add_eos = meta.get "tokenizer.ggml.add_eos_token" == true and t.eos_id ~= nil
  if t.add_bos then t.prefix_ids[1] = t.bos_id end
  if t.add_eos then t.suffix_ids[1] = t.eos_id end
  t.chat_templates = gguf_templates(meta)
  return t
end

-- The tokenizer in a GGUF file: a pl_weights, or a table with its `get` and `item`.
function M.from_gguf(source)
  return guard(load_gguf, type(source) == "cdata" and weights_meta(source) or source)
end

return M
