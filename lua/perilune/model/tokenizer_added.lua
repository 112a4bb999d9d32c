-- SPDX-License-Identifier: Apache-2.0
-- model/tokenizer_added.lua - the tokens that the files beside tokenizer.json add, and
-- those that are special because of their role, by the rules of transformers:
--
-- tokenizer_config.json's `added_tokens_decoder` goes over tokenizer.json's list. A token
-- that is not in that file at all gets the next free id, whatever its key says. A token
-- with a role (bos_token and so on) is special, whatever tokenizer.json says.

local M = {}

local ROLES = { "bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
                "cls_token", "mask_token" }
local FLAGS = { "lstrip", "rstrip", "single_word", "normalized" }

local function refuse(key, what)
  local message = ("tokenizer_config.json: added_tokens_decoder['%s']: %s")
    :format(tostring(key), what)
  error({ message = message, name = "PL_EFORMAT" }, 0)
end

local function content_of(token)
  if type(token) == "table" then token = token.content end
  return type(token) == "string" and token ~= "" and token or nil
end

-- The entries of added_tokens_decoder, by their ids.
local function decoder_of(config)
  local entries, decoder = {}, config.added_tokens_decoder
  for key, token in pairs(type(decoder) == "table" and decoder or {}) do
    local id = tonumber(key)
    if not id or id < 0 or id % 1 ~= 0 then refuse(key, "the key is not a token id") end
    if type(token) ~= "table" or not content_of(token) then
      refuse(key, "no object with a 'content'")
    end
    entries[#entries + 1] = { id = id, token = token }
  end
  table.sort(entries, function(a, b) return a.id < b.id end)
  return entries
end

-- What has a role: { content, ... }.
local function with_roles(config)
  local found = {}
  for _, key in ipairs(ROLES) do found[#found + 1] = content_of(config[key]) end
  local more = config.additional_special_tokens
  for _, token in ipairs(type(more) == "table" and more or {}) do
    found[#found + 1] = content_of(token)
  end
  return found
end

local function next_id(plan)
  local last = -1
  for _, id in pairs(plan.vocab) do
    if type(id) == "number" then last = math.max(last, id) end
  end
  for _, a in ipairs(plan.added) do last = math.max(last, a.id) end
  return last + 1
end

-- Lengthens plan.added (of model/tokenizer_json.lua) by what the configuration says.
function M.extend(plan, config)
  local known, free = {}, next_id(plan)
  for _, a in ipairs(plan.added) do known[a.content] = a end
  local function entry(content)
    local a = known[content]
    if not a then
      a = { id = plan.vocab[content] or free, content = content }
      if a.id == free then free = free + 1 end
      known[content] = a
      plan.added[#plan.added + 1] = a
    end
    return a
  end
  for _, row in ipairs(decoder_of(config)) do
    local a = entry(row.token.content)
    for _, flag in ipairs(FLAGS) do a[flag] = row.token[flag] end
    a.special = a.special == true or row.token.special == true
  end
  for _, content in ipairs(with_roles(config)) do entry(content).special = true end
end

-- tokenizer_config.json, with the roles of special_tokens_map.json. The map is the older
-- file: it has the last word only where the configuration has no added_tokens_decoder.
function M.with_map(config, map)
  local is_old = type(config.added_tokens_decoder) ~= "table"
  for _, key in ipairs { "additional_special_tokens", unpack(ROLES) } do
    local kind = type(config[key])
    local named = kind == "string" or kind == "table"
    if map[key] and (is_old or not named) then config[key] = map[key] end
  end
  return config
end

return M
