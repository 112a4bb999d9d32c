-- SPDX-License-Identifier: Apache-2.0
-- fleet/kv_events.lua - what an engine's cache stores and removes, published as vLLM does
-- it, for vLLM's users and their routers. Frontends of our own need none of it
-- (fleet/holdings.lua).

local pl = require "perilune.ffi"
local cjson = require "cjson.safe"
local log = require "perilune.log"
local nearest = require "perilune.recipe.nearest"
local C, ffi = pl.C, pl.ffi

local M = {}

-- Of kv_events_config: vLLM's names; what they default to is pl_events_options_init's.
local KINDS = { enable_kv_cache_events = "boolean", publisher = "string",
  endpoint = "string", replay_endpoint = "string", buffer_steps = "number",
  hwm = "number", max_queue_size = "number", topic = "string" }
local MAX = 2 ^ 24

local function known()
  local names = {}
  for name in pairs(KINDS) do names[#names + 1] = name end
  return names
end

-- A field's value; JSON's null counts as none.
local function given(config, name)
  local value = config[name]
  if value ~= cjson.null then return value end
end

-- Whether a pool wants its events published; nil and why where that is not understood.
function M.wanted(pool)
  local config = pool.kv_events_config
  for name, value in pairs(config) do
    local kind = KINDS[name]
    if not kind then
      local near = nearest(tostring(name), known())
      return nil, ("kv_events_config has no field '%s'%s"):format(tostring(name),
        near and ("; did you mean '%s'?"):format(near) or "")
    end
    local good = type(value) == kind or value == cjson.null
    if good and type(value) == "number" then
      good = value >= 0 and value <= MAX and value % 1 == 0
    end
    if not good then
      return nil, ("kv_events_config: %s is '%s', wanted a %s"):format(name,
        tostring(value), kind == "number" and "count" or kind)
    end
  end
  local publisher = given(config, "publisher") or "zmq"
  if publisher ~= "zmq" and publisher ~= "null" then
    return nil, ("kv_events_config: publisher is '%s', wanted 'zmq' or 'null'")
      :format(publisher)
  end
  return given(config, "enable_kv_cache_events") == true and publisher == "zmq"
end

-- Publishes the events of an engine, by its number among those of its process: a
-- pl_events, false where the pool wants none, or nil and why.
function M.open(pool, engine, rank)
  local config, wanted, why = pool.kv_events_config, M.wanted(pool)
  if not wanted then return wanted, why, "PL_EINVAL" end
  local o = ffi.new "pl_events_options"
  C.pl_events_options_init(o)
  for _, name in ipairs { "endpoint", "replay_endpoint", "topic", "buffer_steps", "hwm",
      "max_queue_size" } do
    local value = given(config, name)
    if value then o[name] = value end
  end
  o.rank = rank
  local events = C.pl_events_open(engine, o)
  if events == nil then return pl.refusal(C.PL_EINVAL) end
  log.info("KV events of engine %d are published at %s", rank, ffi.string(o.endpoint))
  return events
end

return M
