-- SPDX-License-Identifier: Apache-2.0
-- api/passed_on.lua - the plan of a request that another server answers.
--
-- What is right or wrong in it is that server's business, for it may know fields that we
-- do not. Here the prompt is rendered and tokenized, to find out who has it cached; where
-- that fails (pictures, a template that is not ours), the request goes by load alone.
--
--   plan.prompts[1] = { n_tokens, max_tokens, seqs = { address, or false } }
--   plan.sent = { fields = { { name, JSON }, ... }, messages, prompt, ids, max }

local pl = require "perilune.ffi"
local hints = require "perilune.recipe.hints"
local json = require "perilune.json"
local messages = require "perilune.api.messages"
local params = require "perilune.api.params"
local prompts_of = require "perilune.api.prompts"
local C, ffi = pl.C, pl.ffi
local given = params.given

local M = {}

-- What vLLM takes where a completion does not say.
local COMPLETION_TOKENS = 16

-- What is written anew for each server that is asked.
local APART = { model = true, messages = true, prompt = true, stream_options = true,
  max_tokens = true, max_completion_tokens = true }

local function prompts(ctx, kind, req, node)
  if kind == "completion" then
    return prompts_of.forms(ctx, node, params.boolean(req, "add_special_tokens", true))
  end
  local text = messages.render(ctx, req)
  return { prompts_of.text(ctx, text, #text, params.boolean(req, "add_special_tokens")) }
end

-- Ids as JSON: of one prompt, or of several.
local function ids_text(list)
  local out = {}
  for i, prompt in ipairs(list) do
    out[i] = "[" .. table.concat(prompts_of.list(prompt), ",") .. "]"
  end
  return out[2] and "[" .. table.concat(out, ",") .. "]" or out[1]
end

-- What its blocks are named by.
local function open_seq(ctx, req, prompt)
  local p = ffi.new "pl_params"
  C.pl_params_init(p)
  local seq = C.pl_seq_open(prompt.tokens, prompt.n_tokens, p)
  if seq == nil then return false end
  local salt = params.string(req, "cache_salt")
  if salt and salt ~= "" and C.pl_seq_salt(seq, salt, #salt) < 0 then
    C.pl_seq_close(seq)
    return false
  end
  if ctx.naming then C.pl_naming_apply(ctx.naming, seq) end
  return tonumber(ffi.cast("uintptr_t", seq))
end

local function limit_of(kind, req)
  for _, name in ipairs { "max_completion_tokens", "max_tokens" } do
    local value = json.tonumber(given(req, name))
    if value then return { name = name, value = value } end
  end
  return kind == "completion" and { name = "max_tokens", value = COMPLETION_TOKENS }
    or nil
end

local function usage_wanted(req)
  local options = given(req, "stream_options")
  return json.is_object(options) and options.include_usage == true
end

-- The body's members but those that are written anew, in order.
local function fields_of(req)
  local fields = {}
  for _, name, value in json.pairs(req) do
    if not APART[name] then fields[#fields + 1] = { name, json.encode(value) } end
  end
  local options = given(req, "stream_options")
  if req.stream == true then
    options = json.is_object(options) and options or json.object()
    fields[#fields + 1] = { "stream_options",
      json.encode(json.set(options, "include_usage", true)) }
  elseif req.stream_options ~= nil then
    fields[#fields + 1] = { "stream_options", json.encode(req.stream_options) }
  end
  return fields
end

local function sent_of(kind, req, node)
  local sent = { fields = fields_of(req), max = limit_of(kind, req) }
  for _, name in ipairs { "max_tokens", "max_completion_tokens" } do
    if req[name] ~= nil and not (sent.max and sent.max.name == name) then
      sent.fields[#sent.fields + 1] = { name, json.encode(req[name]) }
    end
  end
  if kind == "chat" and req.messages ~= nil then
    sent.messages = json.encode(req.messages)
  elseif node ~= nil then
    sent.prompt = json.encode(json.value(node))
  end
  return sent
end

-- `node`: the prompt, which is no member of `req`.
function M.plan(ctx, kind, req, node)
  local plan = { kind = kind, model = params.string(req, "model"), n = 1, logprobs = -1,
    stop = {}, stream = params.boolean(req, "stream"),
    request_id = params.string(req, "request_id"),
    priority = params.integer(req, "priority") or 0,
    hints = hints.of_body(given(req, "nvext")), include_usage = usage_wanted(req) }
  plan.sent = sent_of(kind, req, node)
  local max = plan.sent.max
  local entry = { n_tokens = 0, max_tokens = max and max.value or ctx.max_model_len,
    seqs = { false } }
  plan.prompts = { entry }
  local ok, list = pcall(prompts, ctx, kind, req, node)
  if not ok then
    plan.unnamed = type(list) == "table" and list.message or tostring(list)
    return plan
  end
  for _, prompt in ipairs(list) do entry.n_tokens = entry.n_tokens + prompt.n_tokens end
  if kind == "completion" then
    plan.sent.ids, plan.sent.several = ids_text(list), list[2] ~= nil
  end
  if list[1].n_tokens > 0 then entry.seqs[1] = open_seq(ctx, req, list[1]) end
  return plan
end

return M
