-- SPDX-License-Identifier: Apache-2.0
-- api/prompts.lua - what a request gives as its prompt, as token ids.
--
-- A prompt in hand is { tokens (int32_t *), n_tokens, text (where it is kept) }.

local pl = require "perilune.ffi"
local params = require "perilune.api.params"
local C, ffi = pl.C, pl.ffi
local refuse = params.refuse

local M = {}

local new_ids = ffi.typeof "int32_t[?]"
local buf = ffi.gc(ffi.new "pl_buf", C.pl_buf_fini)   -- where ids come to be
local MAX_KEPT = 2 ^ 20                     -- bytes that it keeps
local len_out = ffi.new "size_t[1]"

-- Refuses the request where C refused.
function M.checked(status)
  if status < 0 then refuse(ffi.string(C.pl_error_text())) end
end

local NONE = {}

-- Of a text; with special_ids, the ids that the tokenizer puts before and after a text
-- are there too.
function M.text(ctx, text, len, special_ids)
  buf.len = 0
  M.checked(C.pl_text_encode(ctx.text, text, len, 1, buf))
  local before = special_ids and ctx.prefix_ids or NONE
  local after = special_ids and ctx.suffix_ids or NONE
  local n = tonumber(buf.len) / 4
  local tokens = new_ids(#before + n + #after + 1)
  for i, id in ipairs(before) do tokens[i - 1] = id end
  ffi.copy(tokens + #before, buf.data, buf.len)
  for i, id in ipairs(after) do tokens[#before + n + i - 1] = id end
  if buf.cap > MAX_KEPT then C.pl_buf_fini(buf) end
  return { tokens = tokens, n_tokens = #before + n + #after }
end

function M.ids(ctx, node)
  local n = C.pl_json_size(node)
  local ids = new_ids(math.max(n, 1))
  M.checked(C.pl_json_ints(node, ids, n))
  for i = 0, n - 1 do
    if ids[i] < 0 or ids[i] >= ctx.vocab then
      refuse(("Token id %d is out of vocabulary"):format(ids[i]), "prompt")
    end
  end
  return { tokens = ids, n_tokens = n }
end

-- Of a string in JSON; with `keep` its text is kept, for it may be long.
function M.node(ctx, node, special_ids, keep)
  local s = C.pl_json_string(node, len_out)
  local len = len_out[0]
  local prompt = M.text(ctx, s, len, special_ids)
  if keep then prompt.text = ffi.string(s, len) end
  return prompt
end

local function is_empty(node)
  C.pl_json_string(node, len_out)
  return len_out[0] == 0
end

-- The four forms of /v1/completions' prompt.
function M.forms(ctx, node, special_ids, keep)
  local kind = node ~= nil and C.pl_json_kind(node) or C.PL_JSON_NULL
  if kind == C.PL_JSON_STRING and not is_empty(node) then
    return { M.node(ctx, node, special_ids, keep) }
  end
  if kind ~= C.PL_JSON_ARRAY or C.pl_json_size(node) == 0 then
    refuse("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
  end
  local first = C.pl_json_kind(C.pl_json_item(node, 0))
  if first == C.PL_JSON_INTEGER then return { M.ids(ctx, node) } end
  local list = {}
  if C.pl_json_size(node) > ctx.max_n then
    refuse(("prompt has more than %d entries."):format(ctx.max_n), "prompt")
  end
  for i = 0, C.pl_json_size(node) - 1 do
    local item = C.pl_json_item(node, i)
    if C.pl_json_kind(item) ~= first then
      refuse("prompt must be a string, a list of strings, a list of token ids, or a list "
        .. "of lists of token ids.", "prompt")
    end
    if first == C.PL_JSON_STRING then
      list[#list + 1] = M.node(ctx, item, special_ids, keep)
    elseif first == C.PL_JSON_ARRAY then
      list[#list + 1] = M.ids(ctx, item)
    else
      refuse("prompt must hold strings or token ids.", "prompt")
    end
  end
  return list
end

-- Its ids as a Lua list.
function M.list(prompt)
  local ids = {}
  for i = 1, prompt.n_tokens do ids[i] = prompt.tokens[i - 1] end
  return ids
end

function M.decode(ctx, prompt)
  local out = ffi.new "pl_buf"
  M.checked(C.pl_text_decode(ctx.text, prompt.tokens, prompt.n_tokens, 0, out))
  return pl.take(out)
end

return M
