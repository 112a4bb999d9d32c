-- SPDX-License-Identifier: Apache-2.0
-- traffic.lua - many HTTP requests under way at once from one thread, and answers in a
-- form in which equal answers are equal text, streamed or not.

local cjson = require "cjson.safe"
local client = require "perilune.tools.http_client"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local M = {}

local Traffic = {}
Traffic.__index = Traffic

local MOST, CONNECT_MS, SEND_MS = 1024, 10000, 10000

function M.open()
  return setmetatable({ active = {}, sockets = ffi.new("pl_client *[?]", MOST),
    ready = ffi.new("uint8_t[?]", MOST) }, Traffic)
end

function M.now() return tonumber(C.pl_now_ns()) * 1e-9 end

-- The text of a POST of JSON. `id`: its X-Request-Id, or nil.
function M.post(path, body, id)
  if type(body) == "table" then body = assert(cjson.encode(body)) end
  return ("POST %s HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n%s"
    .. "Content-Length: %d\r\n\r\n%s"):format(path,
    id and "X-Request-Id: " .. id .. "\r\n" or "", #body, body)
end

-- Sends a request on a connection of its own. `tag` is the caller's.
function Traffic:send(port, text, tag)
  assert(#self.active < MOST)
  local socket = C.pl_client_open("127.0.0.1", port, CONNECT_MS)
  assert(socket ~= nil, pl.refusal and ffi.string(C.pl_error_text()))
  local x = { socket = socket, tag = tag, parts = {}, bytes = 0, started = M.now() }
  x.response = client.response(function(piece)
    x.parts[#x.parts + 1] = piece
    x.bytes = x.bytes + #piece
  end)
  if C.pl_client_send(socket, text, #text, SEND_MS) < 0 then
    x.why = ffi.string(C.pl_error_text())
  end
  self.active[#self.active + 1] = x
  return x
end

local function over(x)
  C.pl_client_close(x.socket)
  x.socket = nil
  x.status, x.body = x.response.status, table.concat(x.parts)
end

-- Hangs up: what was asked for is not wanted any more.
function Traffic:cut(x)
  for i, other in ipairs(self.active) do
    if other == x then
      table.remove(self.active, i)
      break
    end
  end
  over(x)
end

-- Reads what came: whether it goes on.
local function advance(x)
  if x.why then return false end
  local bytes, why, name = client.receive(x.socket, 0)
  if not bytes and name == "PL_EAGAIN" then return true end
  local ok = bytes
  if bytes == "" then
    ok, why = x.response:close()
  elseif bytes then
    ok, why = x.response:feed(bytes)
  end
  if not ok then x.why = why end
  return ok and not x.response.done
end

-- Waits at most so long for news; on_end(x) is told of each that is over: x.status and
-- x.body, and x.why where it did not end well.
function Traffic:poll(timeout_ms, on_end)
  local list, n = self.active, #self.active
  for i = 1, n do self.sockets[i - 1] = list[i].socket end
  local came = C.pl_client_poll(self.sockets, n, self.ready, timeout_ms)
  local left, ended = {}, {}
  for i = 1, n do
    local x = list[i]
    if (x.why or came > 0 and self.ready[i - 1] ~= 0) and not advance(x) then
      over(x)
      ended[#ended + 1] = x
    else
      left[#left + 1] = x
    end
  end
  self.active = left
  for _, x in ipairs(ended) do on_end(x) end
end

-- ---- answers -------------------------------------------------------------------------

-- What differs between two askings of the same.
local VARIES = { id = true, created = true, system_fingerprint = true }

-- Strings and lists that come in pieces: these are joined, of others the last counts.
local JOINED = { text = true, content = true, reasoning_content = true }

local join

local function merged(key, old, value)
  if type(value) == "table" and type(old) == "table" and key ~= "usage" then
    if #value == 0 and #old == 0 then
      join(old, value)
      return old
    end
    for _, item in ipairs(value) do old[#old + 1] = item end
    return old
  end
  if type(value) == "string" and type(old) == "string" and JOINED[key] then
    return old .. value
  end
  return value
end

function join(into, from)
  for key, value in pairs(from) do
    if value ~= cjson.null and not VARIES[key] then
      into[key] = merged(key, into[key], value)
    end
  end
end

local function write(out, value)
  if type(value) ~= "table" then
    out[#out + 1] = type(value) == "number" and ("%.17g"):format(value)
      or cjson.encode(tostring(value))
  elseif #value > 0 then
    for _, item in ipairs(value) do
      write(out, item)
      out[#out + 1] = ","
    end
  else
    local keys = {}
    for key, item in pairs(value) do
      if item ~= cjson.null and not VARIES[key] then keys[#keys + 1] = key end
    end
    table.sort(keys)
    for _, key in ipairs(keys) do
      out[#out + 1] = "\n" .. key .. ": "
      write(out, value[key])
    end
  end
end

local function text_of(value)
  local out = {}
  write(out, value)
  return table.concat(out)
end

-- A stream's events made one: the choices' parts joined in their order.
local function joined(body)
  local whole, choices, last = {}, {}, nil
  local feed = client.events(function(data)
    last = data
    local event = data ~= "[DONE]" and cjson.decode(data)
    if not event then return end
    for _, choice in ipairs(event.choices or {}) do
      choices[choice.index + 1] = choices[choice.index + 1] or {}
      join(choices[choice.index + 1], choice)
    end
    event.choices = nil
    join(whole, event)
  end)
  assert(feed(body))
  whole.choices, whole.last = choices, last
  return whole
end

-- The answer's value (streamed: joined), or nil where it is none.
function M.value(x)
  if x.why or not x.status then return nil end
  if (x.response.headers["content-type"] or ""):find("text/event-stream", 1, true) then
    return joined(x.body)
  end
  return cjson.decode(x.body)
end

-- All of it that must not vary, as text. `drawn`: neither must what it says.
function M.plain(x, drawn)
  local value = M.value(x)
  if not value then return ("%s %s %s"):format(x.why, x.status, x.body) end
  for _, choice in ipairs(drawn and value.choices or {}) do
    choice.delta, choice.message, choice.text = nil, nil, nil
  end
  return ("%s\n%s"):format(x.status, text_of(value))
end

-- Where two texts part, shown.
function M.difference(a, b)
  local at = 1
  while at <= #a and a:byte(at) == b:byte(at) do at = at + 1 end
  local from = math.max(1, at - 120)
  return ("they part at byte %d of %d and %d:\n%s\n--- beside\n%s"):format(at, #a, #b,
    a:sub(from, at + 200), b:sub(from, at + 200))
end

return M
