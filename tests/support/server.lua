-- SPDX-License-Identifier: Apache-2.0
-- server.lua - a runtime in this process; the test is its handler.
local pl = require "perilune.ffi"
local socket = require "support.socket"
local C, ffi = pl.C, pl.ffi

local Server = {}
Server.__index = Server

local function open(options)
  local o = ffi.new "pl_runtime_options"
  C.pl_runtime_options_init(o)
  for k, v in pairs(options or {}) do o[k] = v end
  local rt = C.pl_runtime_open(o)
  assert(rt ~= nil, ffi.string(C.pl_error_text()))
  local port = C.pl_listen(rt, "127.0.0.1", 0)
  assert(port > 0, ffi.string(C.pl_error_text()))
  return setmetatable({ rt = rt, port = port, out = ffi.new "pl_event" }, Server)
end

-- Connects; sends what is given.
function Server:connect(bytes, receive_buffer)
  local s = socket.connect(self.port, receive_buffer)
  if bytes then s:send(bytes) end
  return s
end

-- The next event as kind, id, object, a; nil when none came in time. One at a time, so
-- that none is under way of what the test closes.
function Server:event(timeout_ms)
  local e = self.out
  if C.pl_poll(self.rt, e, 1, timeout_ms or 5000) == 1 then
    return e.kind, e.id, e.object, e.a
  end
end

-- The next request, which must come.
function Server:request()
  local kind, _, object = self:event()
  assert(kind == C.PL_EV_REQUEST, "no request, but event " .. tostring(kind))
  return ffi.cast("pl_exchange *", object)
end

function Server.reply(_, x, status, body, headers)
  headers, body = headers or "", body or ""
  C.pl_exchange_reply(x, status, "text/plain", headers, #headers, body, #body)
  C.pl_exchange_release(x)
end

-- Answers one request with what is known of it.
function Server:echo()
  local x = self:request()
  local len = ffi.new "size_t[1]"
  local body = ffi.string(C.pl_exchange_body(x, len), len[0])
  self:reply(x, 200, ("%s %s ? %s : %s"):format(ffi.string(C.pl_exchange_method(x)),
    ffi.string(C.pl_exchange_path(x)), ffi.string(C.pl_exchange_query(x)), body))
end

function Server:close()
  C.pl_runtime_close(self.rt)
end

return { open = open }
