-- SPDX-License-Identifier: Apache-2.0
-- front_writer.lua - nothing but writes: what the same bytes cost without a server.
--
-- Writes BYTES to each of N connections to PORT, TIMES over, PAUSE milliseconds apart;
-- prints the CPU time of a write.

local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local port, n, times, bytes, pause = unpack(arg)
n, times, pause = tonumber(n), tonumber(times), tonumber(pause)
local event = ("x"):rep(tonumber(bytes))
local head = "POST / HTTP/1.1\r\nHost: bench\r\nContent-Length: 60000000\r\n\r\n"

local function cpu_ns()
  local f = assert(io.open "/proc/thread-self/schedstat")
  local ns = tonumber(f:read "*l":match "^%d+")
  f:close()
  return ns
end

local function must(v)
  if v == nil then error(ffi.string(C.pl_error_text()), 2) end
  return v
end

local clients = {}
for i = 1, n do
  clients[i] = must(C.pl_client_open("127.0.0.1", tonumber(port), 5000))
  C.pl_client_send(clients[i], head, #head, 5000)
end
local none, ready = ffi.new "pl_client *[1]", ffi.new "uint8_t[1]"
local from
for round = -10, times do                   -- a few to warm up
  if round == 0 then from = cpu_ns() end
  C.pl_client_poll(none, 0, ready, pause)   -- sleeps
  for i = 1, n do C.pl_client_send(clients[i], event, #event, 5000) end
end
print(("%.3f us"):format((cpu_ns() - from) / 1e3 / (times + 1) / n))
