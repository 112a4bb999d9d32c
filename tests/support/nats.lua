-- SPDX-License-Identifier: Apache-2.0
-- nats.lua - a nats-server of the test's own, what it says of itself, and a bare client
-- that sends any bytes whatever.
--
--   local n = nats.start()      -- n.url; JetStream's store is a folder of its own
--   n:kill(); n:start_again(keep)   -- on the same port, with its store or a new one
--   n:see "/connz"              -- its monitoring, decoded

local cjson = require "cjson.safe"
local client = require "perilune.tools.http_client"
local process = require "support.process"
local scratch = require "scratch"
local socket = require "support.socket"

local M = {}

local Nats = {}
Nats.__index = Nats

local START_SECONDS = 20

local function launch(self, port, monitor)
  local ports = scratch.folder()
  self.process = process.start({ "-a", self.host, "-p", port, "-m", monitor, "-js", "-sd",
    self.store.path, "--ports_file_dir", ports.path }, nil, "nats-server")
  local path = ("%s/nats-server_%d.ports"):format(ports.path, self.process.pid)
  local told = process.wait_for(START_SECONDS, function()
    local f = io.open(path)
    local found = f and cjson.decode(f:read "*a")
    if f then f:close() end
    return found or not self.process:runs()
  end)
  ports.remove()
  if type(told) ~= "table" then error("no nats-server:\n" .. self.process:log(), 3) end
  self.port = tonumber(told.nats[1]:match ":(%d+)$")
  self.monitor = tonumber(told.monitoring[1]:match ":(%d+)$")
  self.url = "nats://127.0.0.1:" .. self.port
end

-- host: where it listens besides 127.0.0.1: 0.0.0.0, or nowhere.
function M.start(host)
  local self = setmetatable({ host = host or "127.0.0.1", store = scratch.folder() }, Nats)
  launch(self, "-1", "-1")
  return self
end

function Nats:kill()
  self.process:signal "KILL"
  self.process:wait(10)
  self.process:remove()
  self.process = nil
end

function Nats:start_again(keep)
  if not keep then
    self.store.remove()
    self.store = scratch.folder()
  end
  launch(self, tostring(self.port), tostring(self.monitor))
end

function Nats:close()
  if self.process then self.process:remove() end
  self.process = nil
  self.store.remove()
end

-- What a path of its monitoring says.
function Nats:see(path)
  local there = client.connection({ host = "127.0.0.1", port = self.monitor, prefix = "",
    authority = "h" }, {}, 10000)
  local value = assert(there:get(path))
  there:close()
  return value
end

-- ---- a bare client -----------------------------------------------------------------

local Bare = {}
Bare.__index = Bare

-- A connection to the server, which has greeted and been greeted.
function Nats:connect()
  local self_ = setmetatable({ socket = socket.connect(self.port), rest = "" }, Bare)
  self_.socket:send_all 'CONNECT {"verbose":false,"pedantic":false,"echo":false}\r\nPING\r\n'
  self_.socket:read_until(function(s) return s:find("PONG\r\n", 1, true) end)
  return self_
end

function Bare:listen(subject)
  assert(self.socket:send_all(("SUB %s 1\r\n"):format(subject)))
end

function Bare:publish(subject, reply, bytes)
  local head = reply and reply ~= "" and subject .. " " .. reply or subject
  assert(self.socket:send_all(("PUB %s %d\r\n%s\r\n"):format(head, #bytes, bytes)))
end

-- The next message off the front of what came, or nil.
local function cut(self)
  local line, from = self.rest:match "^(.-)\r\n()"
  if not line then return nil end
  local subject, reply, len = line:match "^MSG (%S+) %S+ ?(%S*) (%d+)$"
  if not subject then
    if line == "PING" then self.socket:send_all "PONG\r\n" end
    self.rest = self.rest:sub(from)
    return cut(self)
  end
  len = tonumber(len)
  if #self.rest < from + len + 1 then return nil end
  local bytes = self.rest:sub(from, from + len - 1)
  self.rest = self.rest:sub(from + len + 2)
  return { subject = subject, reply = reply, bytes = bytes }
end

-- What others sent on what it listens to, within the time: a list of { subject, reply,
-- bytes }.
function Bare:take(timeout_ms)
  local list, parts = {}, { self.rest }
  local came, why = self.socket:receive(timeout_ms)
  while came and came ~= "" and #parts < 64 do
    parts[#parts + 1] = came
    came, why = self.socket:receive(0)
  end
  assert(came ~= "" and why ~= "reset", "the bare client was cut off")
  parts[#parts + 1] = came
  self.rest = table.concat(parts)
  local message = cut(self)
  while message do
    list[#list + 1] = message
    message = cut(self)
  end
  return list
end

function Bare:close() self.socket:close() end

return M
