-- SPDX-License-Identifier: Apache-2.0
-- fleet/bus.lua - this process among the others: joins them, says hello, answers their
-- calls.

local pl = require "perilune.ffi"
local calls = require "perilune.fleet.calls"
local card = require "perilune.fleet.card"
local cjson = require "cjson.safe"
local flow = require "perilune.flow"
local log = require "perilune.log"
local machine = require "perilune.recipe.machine"
local models = require "perilune.fleet.served_models"
local schema = require "perilune.recipe.schema"
local values = require "perilune.recipe.option_value"
local worker = require "perilune.fleet.worker"
local C, ffi = pl.C, pl.ffi

local M = {}

-- So long does a process listen to who is there before it takes a name.
local NAMING_SECONDS = 0.2

-- ---- what is said -------------------------------------------------------------------

-- Which pool each engine is offered in: prefill, or the one that answers.
local function pools_of(recipe, w)
  local list = {}
  for i, e in ipairs(w.engines) do
    local reads = recipe.main == "decode" and e.pool == recipe.prefill
      or recipe.disaggregation_mode == "prefill"
    list[i] = reads and "prefill" or "decode"
  end
  return list
end

-- The terms of a process's workers: what they must have in common with others of their
-- model, their numerics id, what one takes at a time (the first), and their pools.
-- `model`: its model's card.
function M.terms(recipe, w, model)
  local pool, numerics = w.engines[1].pool,
    ffi.string(C.pl_model_numerics(w.engines[1].model))
  return {
    pools = pools_of(recipe, w),
    names = model.names, known_as = models.known_as(recipe, w.desc),
    fingerprint = model.fingerprint, vocab = model.vocab,
    max_model_len = w.length, block_size = pool.block_size, numerics = numerics,
    kv_layout = ffi.string(C.pl_model_kv_layout(w.engines[1].model)),
    hash_algo = pool.prefix_caching_hash_algo,
    hash_seed = worker.hash_seed(),
    max_num_seqs = pool.max_num_seqs, blocks = w.engines[1].blocks,
    max_num_batched_tokens = pool.max_num_batched_tokens,
    stream_interval = pool.stream_interval, tags = models.list_of(pool.tags),
    prefix_caching = pool.enable_prefix_caching,
    kv_events = pool.enable_prefix_caching and pool.kv_events,
  }
end

-- Tells the others what this process is; where it has a name and is on a bus.
function M.hello(process)
  if not process.on_bus or not process.name then return end
  local text = cjson.encode {
    name = process.name, role = process.role, state = process.state,
    host = machine.host_name(), pid = process.pid, recipe = process.recipe.file,
    version = ffi.string(C.pl_version()),
    recipe_hash = process.recipe_hash, started = tonumber(process.started) / 1e9,
    url = process.server and process.url, model = process.terms,
    engines = process.w and #process.w.engines,
  }
  C.pl_bus_hello(process.rt, text, #text)
end

-- ---- names --------------------------------------------------------------------------

-- How many other processes of a role there are, as far as this one knows.
function M.others(process, role)
  local n = 0
  for _, said in pairs(process.peers or {}) do
    if said.hello.role == role and role == process.role then n = n + 1 end
  end
  return n
end

-- The names that others have.
local function taken_names(process)
  local taken = {}
  for _, said in pairs(process.peers) do taken[said.hello.name] = true end
  return taken
end

-- Of two with one name the process with the higher id takes another.
local function settle_name(process, said)
  if said.hello.name ~= process.name then return end
  if tostring(said.id) < ffi.string(C.pl_bus_id(process.rt)) then
    log.info("another process is also called %s", process.name)
    process:take_name(taken_names(process))
    M.hello(process)
  end
end

local function on_peer(process, ev)
  local server = process.server
  if ev.a == 0 then
    local buf = ffi.new "pl_buf"
    if C.pl_peer_hello(process.rt, ev.id, buf) < 0 then return end
    local said = cjson.decode(pl.take(buf))
    if type(said) == "table" and type(said.hello) == "table"
        and type(said.hello.name) == "string" then
      process.peers[ev.id] = said
      settle_name(process, said)
    end
  else
    process.peers[ev.id] = nil
  end
  if server then server.cluster:on_peer(ev) end
end

local function on_bus(process, ev)
  process.bus_there = ev.a == 1
  if ev.a == 0 or process.name then return end
  flow.sleep(NAMING_SECONDS)
  if process.name then return end
  process:take_name(taken_names(process))
  log.info("called %s in namespace %s", process.name, process.recipe.namespace)
  M.hello(process)
end

-- Where this process waits for its bus to come, or to come back: why; else nil.
function M.trouble(process)
  if not process.on_bus or process.bus_there then return nil end
  return ("the bus at %s is away"):format(
    values.public(schema.find("bus", "top"), process.recipe.bus))
end

-- ---- joining ------------------------------------------------------------------------

local STRINGS = { url = "bus", user = "bus_user", password = "bus_password",
  token = "bus_token", nkey_seed = "bus_nkey_seed", credentials = "bus_credentials",
  tls_ca = "bus_tls_ca", tls_cert = "bus_tls_cert", tls_key = "bus_tls_key",
  direct_host = "direct_host", name_space = "namespace" }

-- The options of a recipe for pl_bus_open, which copies what they point to.
function M.options(recipe)
  local o = ffi.new "pl_bus_options"
  C.pl_bus_options_init(o)
  for field, name in pairs(STRINGS) do
    if recipe[name] then o[field] = recipe[name] end
  end
  o.direct = recipe.direct_links and 1 or 0
  o.direct_port = recipe.direct_port or 0
  o.lost_after_ms, o.patience_ms = recipe.lost_after * 1000, recipe.bus_patience * 1000
  return o
end

-- A console elsewhere: a path and a body, as at the local socket.
local function console(process, admin, text)
  if not process.recipe.allow_remote_console then
    return nil, "its recipe does not allow consoles over the bus (allow_remote_console)"
  end
  local path, body = text:match "^(/%l+)\n(.*)$"
  if path ~= "/eval" and path ~= "/complete" then return nil, "it wants /eval" end
  local status, answer = admin.answer(process, "POST", path, { body = cjson.decode(body),
    by = "the bus", gone = function() return false end })
  return status .. "\n" .. answer
end

-- What other processes may ask of this one.
local function handlers(process, admin)
  return {
    card = function()
      if not process.w then return nil, "it has no model" end
      return card.encode(process.card, process.w.desc, process.recipe.tokenizer)
    end,
    about = function() return cjson.encode(admin.describe(process)) end,
    drained = function(name)
      local answer, why = process:drained(name)
      return answer and cjson.encode(answer), why
    end,
    drain = function(name) return process:begin_drain(name, "the bus") end,
    resume = function(name) return process:resume(name, "the bus") end,
    role = function(text)
      local name, role = text:match "^(%S+) (%S+)$"
      if not name then return nil, "wanted a worker's name and a role" end
      return process:set_role(name, role, "the bus")
    end,
    console = function(text) return console(process, admin, text) end,
  }
end

-- Joins the bus. `admin`: console/admin.lua, which answers what its owner asks a process.
function M.open(process, admin)
  process.peers = {}
  flow.on("peer", function(ev) on_peer(process, ev) end)
  flow.on("bus", function(ev) on_bus(process, ev) end)
  calls.answer(handlers(process, admin))
  local status = C.pl_bus_open(process.rt, M.options(process.recipe))
  if status < 0 then return pl.refusal(status) end
  process.on_bus = true
  return true
end

return M
