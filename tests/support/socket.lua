-- SPDX-License-Identifier: Apache-2.0
-- socket.lua - raw TCP to 127.0.0.1, so that tests decide about each byte.
local ffi = require "ffi"

ffi.cdef [[
struct t_sockaddr_in { uint16_t family, port; uint32_t addr; char zero[8]; };
struct t_pollfd { int fd; short events, revents; };
struct t_linger { int onoff, linger; };
int socket(int, int, int);
int connect(int, const void *, uint32_t);
int setsockopt(int, int, int, const void *, uint32_t);
ssize_t send(int, const char *, size_t, int);
ssize_t recv(int, char *, size_t, int);
int poll(struct t_pollfd *, unsigned long, int);
int shutdown(int, int);
int close(int);
uint16_t htons(uint16_t);
uint32_t htonl(uint32_t);
]]
local C = ffi.C
local POLLIN, MSG_DONTWAIT, MSG_NOSIGNAL = 1, 0x40, 0x4000
local SOL_SOCKET, SO_RCVBUF, SO_LINGER = 1, 8, 13
local room = ffi.new("char[?]", 65536)

local Socket = {}
Socket.__index = Socket

-- `receive_buffer` makes a reader that is soon behind.
local function connect(port, receive_buffer)
  local fd = C.socket(2, 1, 0)
  assert(fd >= 0, "no socket")
  if receive_buffer then
    C.setsockopt(fd, SOL_SOCKET, SO_RCVBUF, ffi.new("int[1]", receive_buffer), 4)
  end
  local a = ffi.new "struct t_sockaddr_in"
  a.family, a.port, a.addr = 2, C.htons(port), C.htonl(0x7f000001)
  assert(C.connect(fd, a, ffi.sizeof(a)) == 0, "cannot connect")
  return setmetatable({ fd = fd, got = "" }, Socket)
end

-- What was sent: bytes, or nil where the other side is gone.
function Socket:send(s)
  local n = C.send(self.fd, s, #s, MSG_NOSIGNAL)
  return n >= 0 and tonumber(n) or nil
end

-- Sends all, however long it takes; false where the other side has gone.
function Socket:send_all(s)
  while s ~= "" do
    local n = self:send(s)
    if not n then return false end
    s = s:sub(n + 1)
  end
  return true
end

-- Waits for more bytes. Returns them; "" at the end; nil and "timeout" or "reset".
function Socket:receive(timeout_ms)
  local p = ffi.new "struct t_pollfd"
  p.fd, p.events = self.fd, POLLIN
  if C.poll(p, 1, timeout_ms or 5000) <= 0 then return nil, "timeout" end
  local n = C.recv(self.fd, room, 65536, MSG_DONTWAIT)
  if n < 0 then return nil, "reset" end
  return ffi.string(room, n)
end

-- Reads until `want(all that came so far)` is true, or the end: all, and why it ended.
function Socket:read_until(want, timeout_ms)
  while not want(self.got) do
    local s, why = self:receive(timeout_ms)
    if not s then return self.got, why end
    if s == "" then return self.got, "end" end
    self.got = self.got .. s
  end
  return self.got
end

function Socket:read_all(timeout_ms)
  return self:read_until(function() return false end, timeout_ms)
end

-- One answer with a Content-Length or chunks, taken off what came: status, body, head.
function Socket:answer(head_only)
  local all = self:read_until(function(s) return s:find("\r\n\r\n", 1, true) end)
  local head, rest = all:match "^(.-\r\n)\r\n(.*)$"
  if not head then return nil, all end
  local status = tonumber(head:match "^HTTP/1.1 (%d%d%d) ")
  local len = tonumber(head:match "\r\nContent%-Length: (%d+)\r\n")
  if head_only then
    self.got = rest
    return status, "", head
  end
  if not len then return status, self:chunks(#head + 2), head end
  self:read_until(function(s) return #s >= #head + 2 + len end)
  local body = self.got:sub(#head + 3, #head + 2 + len)
  self.got = self.got:sub(#head + 3 + len)
  return status, body, head
end

function Socket:chunks(at)
  local parts = {}
  repeat
    self:read_until(function(s) return s:find("\r\n", at + 1, true) end)
    local size, from = self.got:match("^(%x+)\r\n()", at + 1)
    local n = tonumber(size, 16)
    self:read_until(function(s) return #s >= from + n + 1 end)
    parts[#parts + 1] = self.got:sub(from, from + n - 1)
    at = from + n + 1
  until n == 0
  self.got = self.got:sub(at + 1)
  return table.concat(parts), parts
end

function Socket:shutdown()
  C.shutdown(self.fd, 1)
end

function Socket:close()
  if self.fd then C.close(self.fd) end
  self.fd = nil
end

-- Closes so that the other side gets a reset.
function Socket:reset()
  local l = ffi.new("struct t_linger", 1, 0)
  C.setsockopt(self.fd, SOL_SOCKET, SO_LINGER, l, ffi.sizeof(l))
  self:close()
end

return { connect = connect }
