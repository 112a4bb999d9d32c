-- SPDX-License-Identifier: Apache-2.0
-- zmq.lua - ZeroMQ's sockets, for tests: libperilune is linked with it.
--
--   local z = zmq.open()
--   local s = z:socket(zmq.SUB, "connect", "tcp://127.0.0.1:5557")
--   s:send { "frame", "frame" }
--   local frames = s:receive(1000)        -- or nil, when so many ms have passed

local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

ffi.cdef [[
void *zmq_ctx_new(void);
int zmq_ctx_term(void *context);
void *zmq_socket(void *context, int type);
int zmq_close(void *socket);
int zmq_setsockopt(void *socket, int option, const void *value, size_t len);
int zmq_getsockopt(void *socket, int option, void *value, size_t *len);
int zmq_bind(void *socket, const char *endpoint);
int zmq_connect(void *socket, const char *endpoint);
int zmq_send(void *socket, const void *data, size_t len, int flags);
int zmq_recv(void *socket, void *data, size_t room, int flags);
]]

local M = { PUB = 1, SUB = 2, REQ = 3, DEALER = 5, ROUTER = 6 }
local SUBSCRIBE, RCVMORE, LINGER, RCVTIMEO, LAST_ENDPOINT = 6, 13, 17, 27, 32
local SNDMORE, ROOM = 2, 1024 * 1024

local room, int, size = ffi.new("uint8_t[?]", ROOM), ffi.new "int[1]", ffi.new "size_t[1]"

local Socket, World = {}, {}
Socket.__index, World.__index = Socket, World

function Socket:send(frames)
  for i, frame in ipairs(frames) do
    assert(C.zmq_send(self.handle, frame, #frame, i < #frames and SNDMORE or 0) >= 0)
  end
end

function Socket:receive(ms)
  local frames = {}
  int[0] = ms or 5000
  C.zmq_setsockopt(self.handle, RCVTIMEO, int, 4)
  repeat
    local n = C.zmq_recv(self.handle, room, ROOM, 0)
    if n < 0 then return nil end
    frames[#frames + 1] = ffi.string(room, math.min(n, ROOM))
    size[0] = 4
    C.zmq_getsockopt(self.handle, RCVMORE, int, size)
  until int[0] == 0
  return frames
end

function Socket:close()
  if self.handle then C.zmq_close(self.handle) end
  self.handle = nil
end

-- how: "bind" or "connect". A socket that binds to port * has its own in `endpoint`.
function World:socket(kind, how, endpoint)
  local s = setmetatable({ handle = C.zmq_socket(self.context, kind) }, Socket)
  int[0] = 0
  C.zmq_setsockopt(s.handle, LINGER, int, 4)
  if kind == M.SUB then C.zmq_setsockopt(s.handle, SUBSCRIBE, "", 0) end
  assert(C["zmq_" .. how](s.handle, endpoint) == 0, endpoint)
  size[0] = ROOM
  C.zmq_getsockopt(s.handle, LAST_ENDPOINT, room, size)
  s.endpoint = ffi.string(room)
  self.sockets[#self.sockets + 1] = s
  return s
end

function World:close()
  for _, s in ipairs(self.sockets) do s:close() end
  C.zmq_ctx_term(self.context)
end

function M.open()
  return setmetatable({ context = C.zmq_ctx_new(), sockets = {} }, World)
end

-- 8 bytes, the highest first, and back.
function M.number(n)
  local bytes = {}
  n = ffi.cast("uint64_t", n)
  for i = 8, 1, -1 do
    bytes[i] = string.char(tonumber(n % 256))
    n = n / 256
  end
  return table.concat(bytes)
end

function M.value(bytes)
  local n = 0ULL
  for i = 1, #bytes do n = n * 256 + bytes:byte(i) end
  return n
end

return M
