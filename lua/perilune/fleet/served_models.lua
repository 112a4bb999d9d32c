-- SPDX-License-Identifier: Apache-2.0
-- fleet/served_models.lua - what a frontend knows of the models that it serves.
--
-- A *card* is plain data and says all that a request needs to know of a model but its
-- tokenizer; it is made where the model is, and travels (fleet/card.lua). A *context* is
-- what api/prepare.lua works with: a card, a tokenizer, and what the frontend's own
-- recipe says. A *served model* has both, and the workers that serve it.

local pl = require "perilune.ffi"
local buffer = require "string.buffer"
local log = require "perilune.log"
local model = require "perilune.model.load"
local settings = require "perilune.recipe.resolve"
local template = require "perilune.jinja.template"
local worker = require "perilune.fleet.worker"
local C, ffi = pl.C, pl.ffi

local M = {}
M.__index = M

-- Tokenizers are kept until the end, for streams may use them: so many models at most.
local MAX_MODELS = 64
-- The most sequences that one request may ask for.
M.MAX_CHOICES = 8192

local function list_of(value)
  return type(value) == "table" and value or value and { value } or {}
end
M.list_of = list_of

-- The text of a template that the recipe names, checked: a slip in it is found now.
local function read_template(given)
  if not given then return nil end
  local f = io.open(given, "rb")
  local text = f and f:read "*a" or given:find "{" and given
  if f then f:close() end
  if not text then
    return nil, ("chat_template '%s' is neither a file nor a template"):format(given)
  end
  local compiled, why = template.compile(text)
  if not compiled then return nil, ("chat_template '%s': %s"):format(given, why) end
  return text
end

-- What a recipe and its open worker say of their model; nil and why.
function M.card(recipe, w)
  local own, why = read_template(recipe.chat_template)
  if why then return nil, why end
  local names = list_of(recipe.served_model_name)
  if #names == 0 then names = { w.desc.name } end
  return {
    names = names, root = w.desc.path, fingerprint = w.desc.fingerprint,
    -- A model may be asked for by its path too, unless it is served under a name.
    path = not recipe.served_model_name and recipe.model or nil,
    vocab = w.desc.options.vocab, max_model_len = w.length, chat_template = own,
    generation = w.desc.generation or {}, eos_ids = w.desc.eos_ids,
    priority = recipe[recipe.main].scheduling_policy == "priority",
    upstream = recipe[recipe.main].upstream ~= nil,
  }
end

-- ---- which models a frontend serves -------------------------------------------------

local function quoted(list)
  return "'" .. table.concat(list, "', '") .. "'"
end

local function has_any(list, wanted)
  for _, name in ipairs(list) do
    if wanted[name] then return true end
  end
  return false
end

local function set_of(list)
  local set = {}
  for _, item in ipairs(list) do set[item] = true end
  return set
end

-- An option that the recipe or a flag sets; the environment's is a fallback for workers.
local function stated(recipe, option)
  if recipe[option] == nil then return nil end
  local origin = settings.origin(recipe, option)
  return origin ~= "default" and origin:sub(1, 1) ~= "$" and recipe[option] or nil
end

-- What a worker's model is known by besides the names that it is served under: how its
-- own recipe spells it, and the name that its path gives.
function M.known_as(recipe, desc)
  return { recipe.model, desc.name }
end

-- The models that a frontend's recipe asks for: matches(m), where m = { names, known_as }
-- is what a worker says of its model, is true, or nil and why not; and text for the log.
--
-- A path means something on one host only, so processes compare names: the spelling of a
-- recipe that both may share, the served names, and what M.name makes of a path.
function M.wanted(recipe)
  local path = stated(recipe, "model")
  local served = list_of(stated(recipe, "served_model_name"))
  local by_path = path and set_of { path, model.name(path) }
  local by_name = served[1] and set_of(served)
  local function matches(m)
    if by_path and not has_any(m.names, by_path)
        and not has_any(m.known_as, by_path) then
      return nil, ("its model is %s, wanted '%s'"):format(
        quoted { m.known_as[1] or m.names[1] }, path)
    end
    if by_name and not has_any(m.names, by_name) then
      return nil, ("it serves %s, wanted %s"):format(quoted(m.names), quoted(served))
    end
    return true
  end
  if served[1] then return matches, "model " .. quoted(served) end
  return matches, path and "model " .. quoted { path } or "any model"
end

-- ---- contexts -----------------------------------------------------------------------

-- What the frontend's live options say of a context.
local function fill(recipe, ctx)
  local http = recipe.http
  ctx.max_logprobs = recipe.max_logprobs
  ctx.as_ids, ctx.response_role = http.return_tokens_as_token_ids, http.response_role
  ctx.trust_request_chat_template = http.trust_request_chat_template
  ctx.content_format = http.chat_template_content_format
  ctx.prompt_tokens_details = http.enable_prompt_tokens_details
end

-- The tokens that end an answer: those that the model's files list, and always the
-- tokenizer's own (a fine-tuned model's config may still have the base model's).
local function end_ids(card, tok)
  local ids, seen = {}, {}
  for _, list in ipairs { card.eos_ids, tok.end_ids or {} } do
    for _, id in ipairs(list) do
      if not seen[id] and id < card.vocab then ids[#ids + 1] = id end
      seen[id] = true
    end
  end
  return ids
end

local function context(card, tok, key)
  local own = card.chat_template
  local known = {}
  for _, name in ipairs(card.names) do known[name] = true end
  if card.path then known[card.path] = true end
  return {
    key = key, names = known, served_names = card.names, text = tok.text,
    vocab = card.vocab, max_model_len = card.max_model_len,
    defaults = card.generation, eos_ids = end_ids(card, tok),
    priority = card.priority, upstream = card.upstream,
    prefix_ids = tok.prefix_ids or {}, suffix_ids = tok.suffix_ids or {},
    special_tokens = tok.special_tokens,
    chat_templates = own and { default = own } or tok.chat_templates,
    max_n = 16384, max_choices = M.MAX_CHOICES,
  }
end

-- Models that are named to who asks for one that is not there.
local MAX_NAMED = 16

-- What is said of a name that none of these contexts has.
function M.unknown(contexts, name)
  local names = {}
  for _, ctx in ipairs(contexts) do
    for _, s in ipairs(ctx.served_names) do names[#names + 1] = "`" .. s .. "`" end
  end
  local more, here = #names - MAX_NAMED, "No worker is available yet."
  if #names > 0 then
    here = ("Served here: %s%s."):format(
      table.concat(names, ", ", 1, math.min(#names, MAX_NAMED)),
      more > 0 and (" and %d more"):format(more) or "")
  end
  return ("The model `%s` does not exist. %s"):format(name:sub(1, 200), here)
end

-- The contexts as bytes, for Lua states of their own; C's objects go as addresses.
local function blob_of(self)
  local list = {}
  for i, served in ipairs(self.list) do
    local plain = {}
    for key, value in pairs(served.ctx) do plain[key] = value end
    plain.text = ffi.cast("uint64_t", ffi.cast("uintptr_t", plain.text))
    if served.naming then
      plain.naming = ffi.cast("uint64_t", ffi.cast("uintptr_t", served.naming))
    end
    list[i] = plain
  end
  return buffer.encode(list)
end

-- The contexts of a blob, in the pool.
function M.decode(blob)
  local list = buffer.decode(blob)
  for _, ctx in ipairs(list) do
    ctx.text = ffi.cast("pl_text *", ctx.text)
    if ctx.naming then ctx.naming = ffi.cast("pl_naming *", ctx.naming) end
  end
  return list
end

-- Brings the contexts up to date: when a model came, or a live option changed.
local function refresh(self)
  self.contexts = {}
  for i, served in ipairs(self.list) do
    fill(self.recipe, served.ctx)
    self.contexts[i] = served.ctx
  end
  self.blob = blob_of(self)
end

-- An empty list of models for a frontend's recipe. They have: key (the first name),
-- names, card, ctx, and what fleet/cluster.lua keeps there.
function M.new(recipe)
  local self = setmetatable({ recipe = recipe, list = {}, by_key = {}, kept = {},
    namings = {} }, M)
  refresh(self)
  return self
end

-- How workers that agree on these terms name blocks; nil: they cache none, or do not say.
function M.naming(terms)
  local algo = worker.HASHES[terms.hash_algo]
  if not algo or type(terms.hash_seed) ~= "string"
      or terms.prefix_caching == false then
    return nil
  end
  local naming = C.pl_naming_open(algo, terms.hash_seed, terms.block_size)
  return naming ~= nil and naming or nil
end

-- At the end, after the pool's.
function M:close()
  for _, naming in ipairs(self.namings) do C.pl_naming_close(naming) end
  self.namings = {}
end

-- A model that nothing is known of yet but its name and its pools: served.pool, whose
-- workers (served.workers) answer, and served.prefill, whose workers, if there are any,
-- read prompts. A pool: { served, name (in the recipe), workers, and what decide.lua
-- keeps }.
function M.blank(recipe, key)
  local served = { key = key, names = { key }, workers = {} }
  served.pool = { served = served, name = recipe.main, workers = served.workers }
  served.prefill = { served = served, name = "prefill", workers = {} }
  return served
end

-- Adds a model, or puts it in the place of the one that had its first name. `tok`: of
-- model/tokenizer.lua; it is kept. `terms`: of its workers (fleet/bus.lua). nil and why
-- where there are too many models.
function M:add(card, tok, terms)
  if #self.kept == MAX_MODELS then
    return nil, ("there are %d models already"):format(MAX_MODELS)
  end
  local key = card.names[1]
  local served = self.by_key[key]
  if not served then
    served = M.blank(self.recipe, key)
    self.by_key[key], self.list[#self.list + 1] = served, served
  end
  served.names, served.card, served.terms = card.names, card, terms
  served.naming = terms and M.naming(terms)
  self.namings[#self.namings + 1] = served.naming
  served.created = math.floor(tonumber(C.pl_wall_ns()) / 1e9)
  served.ctx = context(card, tok, key)
  self.kept[#self.kept + 1] = tok
  refresh(self)
  log.info("model %s is served", table.concat(card.names, ", "))
  return served
end

M.refresh = refresh

function M:find(key)
  return self.by_key[key]
end

return M
