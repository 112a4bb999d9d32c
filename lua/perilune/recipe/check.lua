-- SPDX-License-Identifier: Apache-2.0
-- recipe/check.lua - what is wrong with a recipe: where, what, and what else.
--
-- Every function here adds to a list of problems { text, hint }, so that one reading of
-- the messages is enough to mend a file.

local load = require "perilune.recipe.load"
local nearest = require "perilune.recipe.nearest"
local schema = require "perilune.recipe.schema"
local urls = require "perilune.recipe.url"
local values = require "perilune.recipe.option_value"

local M = {}

local NOUN = { top = "recipe" }

local function add(problems, where, text, ...)
  problems[#problems + 1] = { text = where .. ": " .. text, hint = ... }
end

-- A row in the words of a hint: "tokens in one step (default 512)".
function M.describe(row)
  local default = schema.default(row)
  local shown = row.unset or values.show(default)
  return ("%s (default %s)"):format(row.doc, shown)
end

local function hook_doc(name, section)
  return schema.hooks[section][name]
end

local function belongs(name)
  local row = schema.find(name)
  local section = row and row.section
  for place, hooks in pairs(schema.hooks) do
    if hooks[name] then section = place end
  end
  if section == "top" then return "it belongs at the top of the recipe" end
  if section == "http" then return "it belongs in http = { ... }" end
  return section and "it belongs in a pool: worker = { ... }"
end

-- What to say beside "no such option": the like of it here, or where it does belong.
function M.suggest(name, section)
  if type(name) ~= "string" then return nil end
  local elsewhere = belongs(name)
  if elsewhere then return elsewhere end
  local names = schema.names(section)
  if section == "top" then
    for _, more in ipairs { "http", "worker", "prefill", "decode" } do
      names[#names + 1] = more
    end
  end
  local near = nearest(name, names)
  if not near then return nil end
  local row = schema.find(near, section)
  local doc = row and M.describe(row) or hook_doc(near, section)
  return ("did you mean '%s'?%s"):format(near, doc and "  " .. doc or "")
end

local function check_hook(problems, settings, spot, name, v)
  if type(v) ~= "function" then
    add(problems, spot.where, ("%s.%s is %s; it wants a function"):format(
      NOUN[spot.name] or spot.name, name, values.show(v, true)))
  elseif name == "split" and spot.name ~= "decode" then
    add(problems, spot.where, ("%s has no hook 'split'"):format(spot.name),
        "it belongs in decode, and decides whether prefill reads a prompt")
  elseif name == "queue" and spot.name == "prefill" then
    add(problems, spot.where, "prefill has no hook 'queue'",
        "requests wait for a worker of decode")
  else
    settings[spot.path] = { value = v, origin = spot.where }
  end
end

-- One field of a section. `name` is the section as the recipe has it: "worker".
local function check_field(problems, settings, of, name, key, v)
  local section = name == "top" and "top" or schema.section_of(name)
  local spot = { name = name, where = load.origin(of, key) }
  local row = schema.find(key, section)
  local canonical = row and row.name or key
  spot.path = name == "top" and canonical or name .. "." .. tostring(canonical)
  if schema.hooks[section][key] then
    return check_hook(problems, settings, spot, key, v)
  end
  if not row then
    local shown = type(key) == "number" and ("[%d]"):format(key) or tostring(key)
    return add(problems, spot.where,
               ("%s has no option '%s'"):format(NOUN[name] or name, shown),
               M.suggest(key, section))
  end
  local good, why = values.check(row, v)
  if good == nil then
    return add(problems, spot.where, ("%s %s"):format(spot.path, why), row.doc)
  end
  settings[spot.path] = { value = good, origin = spot.where }
end

local function check_section(problems, settings, of, name)
  local section = of[name]
  if type(section) ~= "table" then
    return add(problems, load.origin(of, name),
               ("'%s' is %s; it wants a table"):format(name, values.show(section, true)))
  end
  for key, v in pairs(section) do
    check_field(problems, settings, section, name, key, v)
  end
  if section.cost ~= nil and section.pick ~= nil then
    add(problems, load.origin(section, "pick"),
        ("%s has 'cost' and 'pick'; one of them decides"):format(name))
  end
end

-- The shape of the table is the topology.
local function check_pools(problems, recipe, file)
  local worker, prefill, decode = recipe.worker, recipe.prefill, recipe.decode
  local split = prefill ~= nil and "prefill" or decode ~= nil and "decode"
  if worker ~= nil and split then
    add(problems, load.origin(recipe, split),
        ("recipe has 'worker' and '%s'; aggregated or disaggregated, not both"):format(
          split))
  elseif split and (prefill == nil or decode == nil) then
    add(problems, load.origin(recipe, split),
        ("recipe has '%s' alone; prefill and decode come together"):format(split))
  elseif worker == nil and not split then
    add(problems, file, "recipe has no pool", "one is needed: worker = {}")
  end
end

-- Checks a recipe's value. Its settings, path -> { value, origin }, go into `settings`.
function M.recipe(recipe, file, settings, problems)
  check_pools(problems, recipe, file)
  for key, v in pairs(recipe) do
    if schema.section_of(key) then
      check_section(problems, settings, recipe, key)
    else
      check_field(problems, settings, recipe, "top", key, v)
    end
  end
end

-- A pool's servers, and where they tell what they have cached.
local function check_upstream(settings, pool, problems)
  local function value(name) return settings[pool .. "." .. name].value end
  local function origin(name) return settings[pool .. "." .. name].origin end
  local list, events = value "upstream", value "kv_events"
  for _, url in ipairs(list or {}) do
    local ok, why = urls.parse(url)
    if not ok then
      add(problems, origin "upstream", ("%s.upstream: %s"):format(pool, why))
    end
  end
  if list and pool ~= "worker" then
    add(problems, origin "upstream", ("%s has no upstream"):format(pool),
      "servers of another make read and continue prompts: worker = { upstream = ... }")
  end
  if list and #list == 0 then
    add(problems, origin "upstream", pool .. ".upstream is empty; it wants a URL or more")
  end
  if type(events) == "table" and not list then
    add(problems, origin "kv_events",
      pool .. ".kv_events has URLs, and there is no upstream",
      "an engine of perilune's own publishes by kv_events_config")
  end
  for _, name in ipairs { "kv_events", "kv_events_replay" } do
    local of = value(name)
    if list and type(of) == "table" and #of ~= #list then
      add(problems, origin(name), ("%s.%s names %d servers, upstream %d"):format(pool,
        name, #of, #list), "one each, in the same order")
    end
  end
end

-- What both sides of a transfer must agree on.
local SAME = { "block_size", "kv_cache_dtype", "activations", "prefix_caching_hash_algo" }

local function check_sides(settings, problems)
  for _, name in ipairs(SAME) do
    local a, b = settings["prefill." .. name], settings["decode." .. name]
    if a.value ~= b.value then
      add(problems, a.origin ~= "default" and a.origin or b.origin,
        ("prefill.%s is %s, decode.%s %s"):format(name, a.value, name, b.value),
        "KV blocks go from one pool to the other, so both have the same")
    end
  end
end

-- What holds between options, once every value is known.
function M.together(settings, pools, problems)
  if settings["prefill.block_size"] then check_sides(settings, problems) end
  for _, pool in ipairs(pools) do
    check_upstream(settings, pool, problems)
    local seqs, tokens = settings[pool .. ".max_num_seqs"],
                         settings[pool .. ".max_num_batched_tokens"]
    if seqs.value > tokens.value and seqs.origin == "default" then
      seqs.value, seqs.origin = tokens.value, "max_num_batched_tokens"
    elseif seqs.value > tokens.value then
      add(problems, seqs.origin,
          ("%s.max_num_seqs is %d, max_num_batched_tokens %d (%s)"):format(
            pool, seqs.value, tokens.value, tokens.origin),
          "a step gives each running sequence a token, so it needs as many tokens")
    end
  end
end

return M
