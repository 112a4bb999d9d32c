-- SPDX-License-Identifier: Apache-2.0
-- api/logprobs.lua - logprobs as the two endpoints show them, and prompt_logprobs.
--
-- Tokens come as pl_token: `top` holds the sampled token first, then the best ones. A
-- token whose bytes are no whole character is shown with U+FFFD; chat's `bytes` has them
-- exactly.

local pl = require "perilune.ffi"
local json = require "perilune.json"
local C, ffi = pl.C, pl.ffi

local M = {}

-- vLLM's floor: JSON has no infinity.
local function number(v)
  return ("%.9g"):format(v > -9999 and v or -9999)
end

local function bytes_of(ctx, id)
  local buf = ffi.new "pl_buf"
  C.pl_text_bytes(ctx.text, id, buf)
  return pl.take(buf)
end

-- The bytes of a token and how it is shown.
local function shown(answer, id)
  local bytes = bytes_of(answer.ctx, id)
  if answer.plan.as_ids then return "token_id:" .. id, bytes end
  return bytes, bytes
end

local function entry(answer, e)
  local name, bytes = shown(answer, e.token)
  local list = {}
  for i = 1, #bytes do list[i] = bytes:byte(i) end
  return ('{"token":%s,"logprob":%s,"bytes":[%s]'):format(json.encode(name),
    number(e.logprob), table.concat(list, ","))
end

-- {"content":[{token, logprob, bytes, top_logprobs}]}
function M.chat(answer, _, tokens, n)
  local out = {}
  for i = 0, n - 1 do
    local t = tokens[i]
    local best = {}
    for k = 1, t.n_top - 1 do best[k] = entry(answer, t.top[k]) .. "}" end
    out[i + 1] = entry(answer, t.top[0]) .. ',"top_logprobs":['
      .. table.concat(best, ",") .. "]}"
  end
  return '{"content":[' .. table.concat(out, ",") .. "]}"
end

local function code_points(s)
  local _, continued = s:gsub("[\128-\191]", "")
  return #s - continued
end

-- An object of the best and the chosen token; equal texts keep the better one.
local function top_object(answer, top, n)
  local seen, parts = {}, {}
  for k = 0, n - 1 do
    local at = (k + 1) % n   -- the best first, the sampled one last
    local name = shown(answer, top[at].token)
    if not seen[name] then
      seen[name] = true
      parts[#parts + 1] = json.encode(name) .. ":" .. number(top[at].logprob)
    end
  end
  return "{" .. table.concat(parts, ",") .. "}"
end

-- `state.offset`: where the next token's text starts; kept between pieces.
function M.completion(answer, state, tokens, n)
  local offsets, values, names, tops = {}, {}, {}, {}
  for i, given in ipairs(state.echoed or {}) do
    offsets[i], values[i], names[i], tops[i] = given[1], given[2], given[3], given[4]
  end
  state.echoed = nil
  for i = 0, n - 1 do
    local t, k = tokens[i], #names + 1
    local name, bytes = shown(answer, t.token)
    offsets[k], names[k] = state.offset, json.encode(name)
    values[k] = number(t.top[0].logprob)
    tops[k] = top_object(answer, t.top, t.n_top)
    state.offset = state.offset + code_points(bytes)
  end
  return ('{"text_offset":[%s],"token_logprobs":[%s],"tokens":[%s],"top_logprobs":[%s]}')
    :format(table.concat(offsets, ","), table.concat(values, ","),
      table.concat(names, ","), table.concat(tops, ","))
end

-- Echoed prompt tokens, for completion(): what stands before the generated ones.
function M.echo(answer, state, prompt, token)
  local rows, width = {}, answer.plan.logprobs + 1
  for i, id in ipairs(prompt.ids) do
    local name, bytes = shown(answer, id)
    local row = { state.offset, "null", json.encode(name), "null" }
    local at = (i - 2) * width
    if i > 1 and token and at < token.n_prompt_top then
      row[2] = number(token.prompt_top[at].logprob)
      row[4] = top_object(answer, token.prompt_top + at, width)
    end
    rows[i] = row
    state.offset = state.offset + code_points(bytes)
  end
  state.echoed = rows
end

-- prompt_logprobs: null for the first token, then {"id":{logprob, rank, decoded_token}}.
function M.prompt(answer, n_prompt, token)
  local width, out = answer.plan.prompt_logprobs + 1, { "null" }
  for i = 2, n_prompt do
    local parts, seen = {}, {}
    for k = 0, width - 1 do
      local e = token.prompt_top[(i - 2) * width + k]
      if not seen[e.token] then
        seen[e.token] = true
        parts[#parts + 1] = ('"%d":{"logprob":%s,"rank":%d,"decoded_token":%s}'):format(
          e.token, number(e.logprob), e.rank, json.encode(bytes_of(answer.ctx, e.token)))
      end
    end
    out[i] = "{" .. table.concat(parts, ",") .. "}"
  end
  return "[" .. table.concat(out, ",") .. "]"
end

return M
