-- SPDX-License-Identifier: Apache-2.0
-- fleet/kv_transfer.lua - vLLM's kv_transfer_config: KV blocks go from worker to worker
-- in one way here, so what it can still say is what happens where they do not come.

local cjson = require "cjson.safe"
local log = require "perilune.log"
local nearest = require "perilune.recipe.nearest"

local M = {}

-- vLLM's fields, and what becomes of them: a list of words, the kind of a value that
-- changes nothing here, or false, for those that vLLM has dropped.
local FIELDS = {
  kv_connector = { "NixlConnector" },
  kv_role = { "kv_producer", "kv_consumer", "kv_both" },
  kv_load_failure_policy = { "recompute", "fail" },
  engine_id = "string", kv_buffer_device = "string", kv_port = "number",
  kv_connector_module_path = "string",
  kv_connector_extra_config = "table", enable_permute_local_kv = "boolean",
  kv_rank = false, kv_parallel_size = false, kv_ip = false, kv_buffer_size = false,
}

local function known()
  local names = {}
  for name in pairs(FIELDS) do names[#names + 1] = name end
  table.sort(names)
  return names
end

-- A field's value; JSON's null counts as none.
local function given(config, name)
  local value = config[name]
  if value ~= cjson.null then return value end
end

local function shown(value)
  return type(value) == "table" and cjson.encode(value) or tostring(value)
end

-- What is wrong with a field, or nil.
local function wrong(name, value)
  local wanted = FIELDS[name]
  if wanted == nil then
    local near = nearest(tostring(name), known())
    return ("kv_transfer_config has no field '%s'%s"):format(tostring(name),
      near and ("; did you mean '%s'?"):format(near) or "")
  end
  if type(wanted) == "string" and type(value) ~= wanted then
    return ("kv_transfer_config: %s is '%s', wanted a %s"):format(name, shown(value),
      wanted)
  end
  if type(wanted) ~= "table" then return nil end
  for _, word in ipairs(wanted) do
    if value == word then return nil end
  end
  return ("kv_transfer_config: %s is '%s', wanted '%s'"):format(name, shown(value),
    table.concat(wanted, "', '"))
end

-- Fields that change nothing, named once in the log.
local function tell_idle(config)
  local idle = {}
  for name, value in pairs(config) do
    local is_idle = value ~= cjson.null and type(FIELDS[name]) ~= "table"
    if is_idle then idle[#idle + 1] = name end
  end
  table.sort(idle)
  if idle[1] then
    log.info("kv_transfer_config: nothing here depends on %s", table.concat(idle, ", "))
  end
end

-- Whether a pool's config is understood; nil and why not.
function M.check(pool)
  local config = pool.kv_transfer_config
  for name, value in pairs(config) do
    local why = value ~= cjson.null and wrong(name, value)
    if why then return nil, why end
  end
  if given(config, "kv_role") and not given(config, "kv_connector") then
    return nil, "kv_transfer_config: kv_role needs kv_connector, 'NixlConnector'"
  end
  if given(config, "kv_connector") and not given(config, "kv_role") then
    return nil, ("kv_transfer_config: kv_connector needs kv_role, '%s'"):format(
      table.concat(FIELDS.kv_role, "', '"))
  end
  tell_idle(config)
  return true
end

-- Whether a pool's requests fail where KV does not come, and are not computed again.
function M.fails(pool)
  local policy = given(pool.kv_transfer_config, "kv_load_failure_policy")
  return (policy or pool.kv_load_failure_policy) == "fail"
end

return M
