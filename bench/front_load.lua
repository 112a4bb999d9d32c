-- SPDX-License-Identifier: Apache-2.0
-- front_load.lua - many HTTP requests at once, read with as little work as can be.

local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local M = {}

local ROOM = 65536
local room = ffi.new("char[?]", ROOM)

function M.post(path, body)
  return ("POST %s HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    .. "Content-Length: %d\r\n\r\n%s"):format(path, #body, body)
end

local function must(v)
  if v == nil then error(ffi.string(C.pl_error_text()), 2) end
  return v
end

-- `n` connections, each used for one request after the other.
function M.open(port, n)
  local self = { n = n, port = port, clients = ffi.new("pl_client *[?]", n),
    ready = ffi.new("uint8_t[?]", n) }
  for i = 0, n - 1 do
    self.clients[i] = must(C.pl_client_open("127.0.0.1", port, 5000))
  end
  return self
end

-- Room for n connections that are opened one by one.
function M.room(port, n)
  return { n = 0, port = port, clients = ffi.new("pl_client *[?]", n),
    ready = ffi.new("uint8_t[?]", n) }
end

-- One more: its number, the last.
function M.add(self)
  self.clients[self.n] = must(C.pl_client_open("127.0.0.1", self.port, 5000))
  self.n = self.n + 1
  return self.n - 1
end

-- One less: the last takes its number.
function M.drop(self, i)
  C.pl_client_close(self.clients[i])
  self.n = self.n - 1
  self.clients[i] = self.clients[self.n]
end

function M.close(self)
  for i = 0, self.n - 1 do C.pl_client_close(self.clients[i]) end
end

function M.send(self, i, text)
  if C.pl_client_send(self.clients[i], text, #text, 5000) < 0 then
    error(ffi.string(C.pl_error_text()), 2)
  end
end

-- Calls on_bytes(i, text) for what has come within the time.
function M.poll(self, on_bytes, timeout_ms)
  if C.pl_client_poll(self.clients, self.n, self.ready, timeout_ms or 5000) <= 0 then
    return false
  end
  for i = 0, self.n - 1 do
    if self.ready[i] ~= 0 then
      local n = C.pl_client_recv(self.clients[i], room, ROOM, 0)
      if n == 0 or n < 0 and n ~= C.PL_EAGAIN then error("a connection broke", 0) end
      if n > 0 then on_bytes(i, ffi.string(room, n)) end
    end
  end
  return true
end

-- `total` requests, one a connection at a time; request(k) is the text of the k-th. An
-- answer is whole when `over` (plain text) has come at its end. Returns how often `count`
-- (plain text; nil: nothing) was in what came.
function M.run(self, total, request, over, count)
  local sent, done, tails, seen = 0, 0, {}, 0
  local function next_one(i)
    if sent == total then return end
    sent = sent + 1
    tails[i] = ""
    M.send(self, i, request(sent))
  end
  for i = 0, self.n - 1 do next_one(i) end
  local function on_bytes(i, text)
    if tails[i] == "" and text:sub(1, 12) ~= "HTTP/1.1 200" then
      error("refused: " .. text:sub(1, 300), 0)
    end
    local at = count and 1
    while at do
      local _, last = text:find(count, at, true)
      seen = last and seen + 1 or seen
      at = last and last + 1
    end
    local tail = tails[i] .. text
    tails[i] = tail:sub(-#over - 16)
    if tail:sub(-#over) ~= over then return end
    done = done + 1
    next_one(i)
  end
  while done < total do
    if not M.poll(self, on_bytes, 30000) then error("nothing came for 30 s", 0) end
  end
  return seen
end

return M
