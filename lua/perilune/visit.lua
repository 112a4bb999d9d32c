-- SPDX-License-Identifier: Apache-2.0
-- visit.lua - a moment on the bus: for commands that look who is there, or ask one.
--
--   local list, why = visit.peers(options)              -- { { id, hello, engines } ... }
--   local answer, why = visit.ask(options, "worker/1", "drain")
--
-- A visitor says no hello, so nobody takes it for a process of the deployment.

local pl = require "perilune.ffi"
local bus = require "perilune.bus"
local calls = require "perilune.calls"
local cjson = require "cjson.safe"
local flow = require "perilune.flow"
local schema = require "perilune.schema"
local values = require "perilune.values"
local C, ffi = pl.C, pl.ffi

local M = {}

local CONNECT_SECONDS, LISTEN_SECONDS = 3, 0.4

local NAMES = { "bus", "namespace", "bus_user", "bus_password", "bus_token",
  "bus_nkey_seed", "bus_credentials", "bus_tls_ca", "bus_tls_cert", "bus_tls_key",
  "lost_after", "bus_patience" }

-- The flags of a command that may visit a bus, as rows for flags.options; their defaults
-- are what a recipe would have.
function M.rows(own)
  local rows = own
  for _, name in ipairs(NAMES) do
    local row = schema.find(name, "top")
    local default = schema.default(row)
    for _, variable in ipairs(row.env or {}) do
      local text = os.getenv(variable)
      if text and text ~= "" then
        default = values.parse(row, text)
        break
      end
    end
    rows[#rows + 1] = { name, default, row.doc, kind = row.kind, min = row.min,
      max = row.max, like = row.like, wants = row.wants }
  end
  return rows
end

-- Runs fn(rt, peers) on the bus, in a task; peers: id -> what it says. What fn answers.
local function visit(options, fn)
  local rt = C.pl_runtime_open(nil)
  if rt == nil then return pl.refusal(C.PL_EIO) end
  local status = C.pl_bus_open(rt, bus.options(options))
  if status < 0 then
    local no, why, name = pl.refusal(status)
    C.pl_runtime_close(rt)
    return no, why, name
  end
  local peers, there, answer, why = {}, false, nil, nil
  flow.on("bus", function(ev) there = ev.a == 1 end)
  flow.on("peer", function(ev)
    local buf = ffi.new "pl_buf"
    if ev.a == 0 and C.pl_peer_hello(rt, ev.id, buf) >= 0 then
      peers[ev.id] = cjson.decode(pl.take(buf))
    else
      peers[ev.id] = nil
    end
  end)
  flow.spawn(function()
    local deadline = tonumber(C.pl_now_ns()) + CONNECT_SECONDS * 1e9
    while not there and tonumber(C.pl_now_ns()) < deadline do flow.sleep(0.01) end
    if there then
      flow.sleep(LISTEN_SECONDS)
      answer, why = fn(rt, peers)
    else
      why = ("no bus at '%s'"):format(options.bus)
    end
    flow.stop()
  end).on_error = flow.stop
  flow.run(rt)
  C.pl_runtime_close(rt)
  return answer, why
end

local function listed(peers)
  local list = {}
  for _, said in pairs(peers) do
    if type(said) == "table" and type(said.hello) == "table" then
      list[#list + 1] = said
    end
  end
  table.sort(list, function(a, b)
    return tostring(a.hello.name) < tostring(b.hello.name)
  end)
  return list
end

-- Who is there; or nil and why.
function M.peers(options)
  return visit(options, function(_, peers) return listed(peers) end)
end

-- Asks the process of that name; its answer, or nil and why.
function M.ask(options, name, word, arg)
  return visit(options, function(rt, peers)
    for id, said in pairs(peers) do
      if type(said) == "table" and type(said.hello) == "table"
          and said.hello.name == name then
        return calls.ask(rt, id, word, arg)
      end
    end
    return nil, ("no process '%s' on the bus"):format(name)
  end)
end

return M
