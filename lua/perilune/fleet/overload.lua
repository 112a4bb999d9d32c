-- SPDX-License-Identifier: Apache-2.0
-- fleet/overload.lua - is everybody too busy for one more: Dynamo's rules, by Dynamo's
-- names.
--
-- A worker is busy if any threshold that is set says so. A request is refused only if all
-- workers that could take it are busy. Workers come as what they count:
--
--     { blocks, blocks_used, waiting_tokens, max_num_batched_tokens }

local json = require "perilune.json"
local live = require "perilune.recipe.live"
local models = require "perilune.fleet.served_models"
local schema = require "perilune.recipe.schema"
local values = require "perilune.recipe.option_value"

local M = {}

-- In how many seconds a refused client may come again.
local RETRY_SECONDS = 1
local MESSAGE = "Service temporarily unavailable: All workers are busy, "
  .. "please retry later"

M.THRESHOLDS = { "active_decode_blocks_threshold", "active_prefill_tokens_threshold",
  "active_prefill_tokens_threshold_frac" }

-- A threshold that is set, or nil.
local function threshold(recipe, name)
  local v = recipe[name]
  return v ~= "None" and v or nil
end

local function busy(w, decode, prefill, frac)
  return (decode and w.blocks > 0 and w.blocks_used / w.blocks > decode)
    or (prefill and w.waiting_tokens > prefill)
    or (frac and w.waiting_tokens > frac * w.max_num_batched_tokens)
    or false
end

local function all_busy(recipe, workers)
  local decode, prefill, frac = threshold(recipe, M.THRESHOLDS[1]),
    threshold(recipe, M.THRESHOLDS[2]), threshold(recipe, M.THRESHOLDS[3])
  if not (decode or prefill or frac) or #workers == 0 then return false end
  for _, w in ipairs(workers) do
    if not busy(w, decode, prefill, frac) then return false end
  end
  return true
end

-- Whether a refusal is possible at all: without thresholds nobody need gather the counts.
function M.is_on(server)
  local recipe = server.recipe
  for _, name in ipairs(M.THRESHOLDS) do
    if threshold(recipe, name) then return true end
  end
  return false
end

-- What is answered to a request that comes when all are busy: status, message, headers.
function M.refusal(server)
  return { status = server.recipe.http.overload_status, message = MESSAGE,
    headers = ("Retry-After: %d\r\n"):format(RETRY_SECONDS), error_type = "overload" }
end

-- May a request come in? nil: yes. Else what it is answered.
function M.check(server, workers)
  if not all_busy(server.recipe, workers) then return nil end
  return M.refusal(server)
end

-- ---- /busy_threshold ----------------------------------------------------------------

local function entry(server, model)
  local list = { "model", model }
  for _, name in ipairs(M.THRESHOLDS) do
    list[#list + 1] = name
    list[#list + 1] = threshold(server.recipe, name) or json.null
  end
  return json.object(unpack(list))
end

-- GET: the thresholds of each model, as JSON.
function M.list(server)
  local out = {}
  for i, model in ipairs(server.models.list) do out[i] = entry(server, model.key) end
  return json.encode(json.object("thresholds", json.array(out)))
end

local function serves(server, name)
  for _, model in ipairs(server.models.list) do
    if model.ctx.names[name] then return true end
  end
  return false
end

-- The thresholds that a body names, as the options take them; null: no limit. Or nil, why
-- and the name of the one that is wrong.
local function asked_for(doc)
  local out = {}
  for _, name in ipairs(M.THRESHOLDS) do
    local v = doc[name]
    if v == json.null then v = "None" end
    if v ~= nil then
      local good, why = values.check(schema.find(name, "top"), json.tonumber(v) or v)
      if good == nil then return nil, name .. " " .. why, name end
      out[name] = good
    end
  end
  return out
end

local function refused(status, message, param)
  return nil, { status = status, message = message, param = param }
end

-- POST: sets those thresholds that the body names, for every model, and answers all
-- three as JSON; or nil and { status, message, param }.
function M.post(server, body)
  local doc = json.decode(body)
  if not json.is_object(doc) then
    return refused(400, "The body must be a JSON object.")
  end
  if type(doc.model) ~= "string" then
    return refused(400, "model is required.", "model")
  end
  if not serves(server, doc.model) then
    return refused(404, models.unknown(server.models.contexts, doc.model), "model")
  end
  local asked, why, name = asked_for(doc)
  if not asked then return refused(400, why, name) end
  for _, threshold_name in ipairs(M.THRESHOLDS) do
    local v = asked[threshold_name]
    if v ~= nil then
      assert(live.set(server.process, threshold_name, v, "/busy_threshold"))
    end
  end
  return json.encode(entry(server, doc.model))
end

return M
