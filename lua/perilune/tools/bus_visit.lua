-- SPDX-License-Identifier: Apache-2.0
-- tools/bus_visit.lua - a moment on the bus: for commands that look who is there, or ask
-- one.
--
--   local v, why = visit.open(options)
--   local list = v:list()                               -- { { id, hello, engines } ... }
--   local answer, why = v:ask("worker/1", "drain")
--   v:close()
--
-- A visitor says no hello, so nobody takes it for a process of the deployment.

local pl = require "perilune.ffi"
local bus = require "perilune.fleet.bus"
local calls = require "perilune.fleet.calls"
local cjson = require "cjson.safe"
local flow = require "perilune.flow"
local locals = require "perilune.tools.local_processes"
local log = require "perilune.log"
local schema = require "perilune.recipe.schema"
local values = require "perilune.recipe.option_value"
local C, ffi = pl.C, pl.ffi

local M = {}

-- All say hello at once to who comes (core/link_presence.c); on a busy machine that may
-- take longer. One that is asked for by name is waited for.
local CONNECT_SECONDS, LISTEN_SECONDS, NAME_SECONDS = 3, 0.5, 3
local ABOUT_MS = 2000
local NOT_THERE = "no process '%s' on the bus"

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

local Visit = {}
Visit.__index = Visit

-- Runs fn() in a task until it is through: what it answers.
local function in_task(self, fn)
  local answer, why
  flow.on("bus", function(ev) self.there = ev.a == 1 end)
  flow.on("peer", function(ev)
    local buf = ffi.new "pl_buf"
    if ev.a == 0 and C.pl_peer_hello(self.rt, ev.id, buf) >= 0 then
      self.peers[ev.id] = cjson.decode(pl.take(buf))
    else
      self.peers[ev.id] = nil
    end
  end)
  flow.spawn(function()
    answer, why = fn()
    flow.stop()
  end).on_error = flow.stop
  flow.run(self.rt)
  return answer, why
end

function Visit:close()
  C.pl_runtime_close(self.rt)
end

local function count(peers)
  local n = 0
  for _ in pairs(peers) do n = n + 1 end
  return n
end

-- Until nobody new has been heard of for a while.
local function listen(self)
  local deadline = tonumber(C.pl_now_ns()) + CONNECT_SECONDS * 1e9
  repeat
    local n = count(self.peers)
    flow.sleep(LISTEN_SECONDS)
  until count(self.peers) == n or tonumber(C.pl_now_ns()) > deadline
end

-- Goes to the bus and looks who is there; or nil and why. Close it.
function M.open(options)
  log.level "warning"                       -- who asks wants the answer alone
  local self = setmetatable({ rt = C.pl_runtime_open(nil), peers = {} }, Visit)
  if self.rt == nil then return pl.refusal(C.PL_EIO) end
  local status = C.pl_bus_open(self.rt, bus.options(options))
  local why
  if status < 0 then
    why = select(2, pl.refusal(status))
  else
    in_task(self, function()
      local deadline = tonumber(C.pl_now_ns()) + CONNECT_SECONDS * 1e9
      while not self.there and tonumber(C.pl_now_ns()) < deadline do flow.sleep(0.01) end
      if self.there then listen(self) end
    end)
    if self.there then return self end
    why = ("no bus at '%s'"):format(options.bus)
  end
  self:close()
  return nil, why
end

local function says(said, name)
  return type(said) == "table" and type(said.hello) == "table"
    and (not name or said.hello.name == name)
end

local function named(self, name)
  local found = {}
  for _, said in pairs(self.peers) do
    if says(said, name) then found[#found + 1] = said.hello end
  end
  return found
end

-- The hello of the one process of that name; or nil, why, and perhaps a hint.
function Visit:find(name)
  local found = in_task(self, function()
    local deadline = tonumber(C.pl_now_ns()) + NAME_SECONDS * 1e9
    while not named(self, name)[1] and tonumber(C.pl_now_ns()) < deadline do
      flow.sleep(0.05)
    end
    return named(self, name)
  end)
  if #found == 1 then return found[1] end
  if #found == 0 then return nil, NOT_THERE:format(name) end
  for i, hello in ipairs(found) do
    found[i] = ("%s of process %s on %s"):format(name, tostring(hello.pid),
      tostring(hello.host))
  end
  return nil, locals.ambiguous(name, found)
end

-- Asks the process of that name; its answer, or nil and why.
function Visit:ask(name, word, arg)
  return in_task(self, function()
    for id, said in pairs(self.peers) do
      if says(said, name) then return calls.ask(self.rt, id, word, arg) end
    end
    return nil, NOT_THERE:format(name)
  end)
end

local function ask_about(self, id, said)
  local text, _, unheard = calls.ask(self.rt, id, "about", nil, ABOUT_MS)
  said.about = cjson.decode(text or "")
  said.silent = unheard
end

-- Who is there, by name: what each says, with its answer to "about" (admin.describe), if
-- it gave one; silent: it gave none at all.
function Visit:list()
  return in_task(self, function()
    local list, tasks = {}, {}
    for id, said in pairs(self.peers) do
      if says(said) then
        list[#list + 1] = said
        tasks[#tasks + 1] = flow.spawn(ask_about, self, id, said)
      end
    end
    flow.join(tasks)
    table.sort(list, function(a, b)
      return tostring(a.hello.name) < tostring(b.hello.name)
    end)
    return list
  end)
end

return M
