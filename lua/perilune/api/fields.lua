-- SPDX-License-Identifier: Apache-2.0
-- api/fields.lua - which fields a request may have, and which of those it has do nothing.
--
-- A field that is not known here is ignored, as OpenAI's clients expect, and the log says
-- so once: a slip in a name must not stay unseen.

local json = require "perilune.json"
local log = require "perilune.log"
local params = require "perilune.api.params"

local M = {}

local function set(text)
  local out = {}
  for name in text:gmatch "%S+" do out[name] = true end
  return out
end

-- Known, checked and without effect.
local UNUSED = params.UNUSED

-- By kind of request: what is read, or refused.
local options = {}
for i, row in ipairs(params.ROWS) do options[i] = row.name end
local BOTH = [[
  model stream stream_options n stop stop_token_ids include_stop_str_in_output logit_bias
  allowed_token_ids bad_words skip_special_tokens cache_salt return_token_ids
  return_tokens_as_token_ids echo request_id truncate_prompt_tokens add_special_tokens
  use_beam_search response_format nvext
]] .. table.concat(options, " ") .. " " .. table.concat(params.UNSUPPORTED, " ")
local TEMPLATE = " " .. [[
  messages tools tool_choice documents add_generation_prompt continue_final_message
  chat_template chat_template_kwargs
]]

M.KNOWN = {
  completion = set(BOTH .. " prompt"),
  chat = set(BOTH .. TEMPLATE .. " max_completion_tokens top_logprobs"),
  tokenize = set(TEMPLATE .. " model prompt add_special_tokens return_token_strs"),
  detokenize = set "model tokens",
}

-- What is read, by kind. A request with other fields is odd: some may be refused, have no
-- effect or not be known.
M.PLAIN = {}
for kind, known in pairs(M.KNOWN) do
  M.PLAIN[kind] = {}
  for name in pairs(known) do M.PLAIN[kind][name] = true end
  for _, name in ipairs(params.UNSUPPORTED) do M.PLAIN[kind][name] = nil end
end

-- Names of one request, and of all of them, that are told; bytes of a name.
local MAX_OF_ONE, MAX_OF_ALL, MAX_NAME = 16, 256, 64

-- The names of a request's fields that do nothing; nil: each does something.
function M.idle(req, kind)
  local known, out = M.KNOWN[kind], nil
  for _, name in json.pairs(req) do
    if not known[name] then
      out = out or {}
      out[#out + 1] = name:sub(1, MAX_NAME)
      if #out == MAX_OF_ONE then break end
    end
  end
  return out
end

local told, n_told = {}, 0

-- Says of each of these names, once in the life of the process, that it was ignored.
function M.tell(names, kind, to)
  for _, name in ipairs(names) do
    if not told[name] and n_told < MAX_OF_ALL then
      told[name], n_told = true, n_told + 1
      to:info("request field %s of a %s %s", json.encode(name), kind,
        UNUSED[name] and "has no effect here" or "is not known and was ignored")
      if n_told == MAX_OF_ALL then
        log.info "further ignored fields will not be logged"
      end
    end
  end
end

return M
