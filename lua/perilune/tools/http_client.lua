-- SPDX-License-Identifier: Apache-2.0
-- tools/http_client.lua - the other side of HTTP/1.1: requests, answers as they come,
-- events.
--
-- A response is fed bytes as they arrive and gives its body on at once; so one reader
-- serves both chat, which waits, and bench, which watches many connections.
--
--     head --> body (of a length | in chunks | until the end) --> done
--
-- The server is not trusted: what it sends is bounded.

local engine = require "perilune.ffi"
local json = require "cjson.safe"
local C, ffi = engine.C, engine.ffi

local M = {}

local MAX_HEAD = 64 * 1024
local MAX_LINE = 4 * 2 ^ 20                 -- of an event
local ROOM = 64 * 1024
local SLICE_MS = 100

-- "http://host:port/prefix" taken apart, or nil and why not.
function M.parse_url(url)
  local scheme, rest = url:match "^(%a+)://(.+)$"
  if not scheme then scheme, rest = "http", url end
  if scheme ~= "http" then
    return nil, ("'%s': only http is supported, not '%s'"):format(url, scheme)
  end
  local where, prefix = rest:match "^([^/]+)(.*)$"
  local host, port = (where or ""):match "^%[([%x:.]+)%]:?(%d*)$"
  if not host then
    host, port = (where or ""):match "^([^:@%s%c]+):?(%d*)$"
  end
  if not host then
    return nil, ("'%s' is not a URL; wanted http://host:port"):format(url)
  end
  return { host = host, authority = where, port = tonumber(port) or 80,
           prefix = prefix:gsub("/+$", ""):gsub("/v1$", "") }
end

-- The headers that a command's options ask for.
function M.headers(options)
  local key = options.api_key or os.getenv "PERILUNE_API_KEY"
  return { Authorization = key and "Bearer " .. key or nil }
end

-- A whole request as text.
function M.request(url, method, path, headers, body)
  local out = {
    ("%s %s%s HTTP/1.1"):format(method, url.prefix, path), "Host: " .. url.authority,
  }
  for name, value in pairs(headers) do out[#out + 1] = name .. ": " .. value end
  if body then
    out[#out + 1] = "Content-Type: application/json"
    out[#out + 1] = "Content-Length: " .. #body
  end
  return table.concat(out, "\r\n") .. "\r\n\r\n" .. (body or "")
end

local function parse_head(head)
  local minor, status = head:match "^HTTP/1%.(%d) (%d%d%d)"
  if not status then return nil end
  local headers = {}
  for name, value in head:gmatch "\r?\n([^:\r\n]+):[ \t]*([^\r\n]*)" do
    headers[name:lower()] = value
  end
  return tonumber(status), headers, minor == "1"
end

-- Each step looks at what is buffered and takes some of it: true where it got on, false
-- where it needs more, nil and why where the answer is broken.
local steps = {}

function steps.head(r)
  local from, to = r.buffer:find("\n\r?\n", r.looked)
  if not from then
    if #r.buffer > MAX_HEAD then return nil, "the head of the answer does not end" end
    r.looked = math.max(1, #r.buffer - 2)   -- a whole end would have been seen before
    return false
  end
  local status, headers, modern = parse_head(r.buffer:sub(1, from - 1))
  if not status then return nil, "the answer is not HTTP/1.1" end
  r.buffer, r.looked = r.buffer:sub(to + 1), 1
  if status < 200 then return true end      -- 100 Continue: the real one follows
  r.status, r.headers = status, headers
  local connection = (headers.connection or ""):lower()
  r.keep = modern and not connection:find("close", 1, true)
  if status == 204 or status == 304 then
    r.state = "done"
  elseif (headers["transfer-encoding"] or ""):lower():find("chunked", 1, true) then
    r.state = "size"
  elseif headers["content-length"] then
    r.left = tonumber(headers["content-length"]:match "^%d+$" or "")
    if not r.left then return nil, "the answer's Content-Length is not a number" end
    r.state = r.left == 0 and "done" or "length"
  else
    r.state, r.keep = "rest", false
  end
  return true
end

local function give(r, n)
  local piece = n >= #r.buffer and r.buffer or r.buffer:sub(1, n)
  r.buffer = r.buffer:sub(#piece + 1)
  if #piece > 0 then r.on_body(piece) end
  return #piece
end

function steps.length(r)
  if r.buffer == "" then return false end
  r.left = r.left - give(r, r.left)
  if r.left == 0 then r.state = "done" end
  return true
end

function steps.size(r)
  local line, to = r.buffer:match "^([^\n]*)\n()"
  if not line then
    if #r.buffer > 1024 then return nil, "a chunk of the answer has no size" end
    return false
  end
  local digits = line:match "^(%x+)[%s;]" or line:match "^(%x+)$"
  if not digits or #digits > 12 then return nil, "a chunk of the answer has no size" end
  r.buffer, r.left = r.buffer:sub(to), tonumber(digits, 16)
  r.state = r.left == 0 and "trailer" or "chunk"
  return true
end

function steps.chunk(r)
  if r.buffer == "" then return false end
  r.left = r.left - give(r, r.left)
  if r.left == 0 then r.state = "chunk_end" end
  return true
end

function steps.chunk_end(r)
  local to = r.buffer:match "^\r?\n()"
  if not to then
    if #r.buffer > 1 then return nil, "a chunk of the answer is longer than it said" end
    return false
  end
  r.buffer, r.state = r.buffer:sub(to), "size"
  return true
end

function steps.trailer(r)
  local line, to = r.buffer:match "^([^\n]*)\n()"
  if not line then
    if #r.buffer > MAX_HEAD then return nil, "the answer does not end" end
    return false
  end
  r.buffer = r.buffer:sub(to)
  if line == "" or line == "\r" then r.state = "done" end
  return true
end

function steps.rest(r)
  give(r, #r.buffer)
  return false
end

local Response = {}
Response.__index = Response

-- An answer being read; on_body(bytes) is called with its body as it comes. Fields:
-- status and headers once the head is there, done, keep (the connection may serve again).
function M.response(on_body)
  local fresh = { state = "head", buffer = "", looked = 1, on_body = on_body }
  return setmetatable(fresh, Response)
end

-- More bytes: true, or nil and why where this is no answer.
function Response:feed(bytes)
  self.buffer = self.buffer == "" and bytes or self.buffer .. bytes
  self.begun = true
  while self.state ~= "done" do
    local on, why = steps[self.state](self)
    if on == nil then return nil, why, "PL_EFORMAT" end
    if not on then return true end
  end
  self.done = true
  return true
end

-- The server closed the connection.
function Response:close()
  if self.state ~= "rest" and not self.done then
    return nil, "the server closed the connection in the middle of its answer", "PL_EIO"
  end
  self.done = true
  return true
end

-- A reader of server-sent events: feed it bytes, on_event gets each event's data. It
-- answers true, or nil and why.
function M.events(on_event)
  local buffer, data = "", {}
  local function line_of(line)
    if line == "" then
      if #data > 0 then on_event(table.concat(data, "\n")) end
      data = {}
      return
    end
    local value = line:match "^data: ?(.*)$"
    if value then data[#data + 1] = value end
  end
  return function(bytes)
    local at, look = 1, #buffer + 1         -- what was there holds no newline
    buffer = buffer .. bytes
    local stop = buffer:find("\n", look, true)
    while stop do
      line_of((buffer:sub(at, stop - 1):gsub("\r$", "")))
      at = stop + 1
      stop = buffer:find("\n", at, true)
    end
    buffer = buffer:sub(at)
    if #buffer > MAX_LINE or #data > 65536 then
      return nil, "an event of the answer does not end", "PL_EFORMAT"
    end
    return true
  end
end

local room = ffi.new("char[?]", ROOM)

-- What came on a connection: bytes; "" where it is closed; nil, message, name.
function M.receive(socket, timeout_ms)
  local n = C.pl_client_recv(socket, room, ROOM, timeout_ms)
  if n < 0 then
    if n == C.PL_EAGAIN then return nil, "nothing yet", "PL_EAGAIN" end
    return engine.refusal(n)
  end
  return ffi.string(room, n)
end

function M.open(url, timeout_ms)
  local socket = C.pl_client_open(url.host, url.port, timeout_ms)
  if socket == nil then return engine.refusal(C.PL_EIO) end
  return socket
end

local Connection = {}
Connection.__index = Connection

-- A connection that is opened when it is needed and kept. Requests wait for their answer.
function M.connection(url, headers, timeout_ms)
  return setmetatable({ url = url, headers = headers, timeout_ms = timeout_ms },
                      Connection)
end

-- Connects, unless it is: true, or nil, message, name. A request does so by itself.
function Connection:open()
  if self.socket then return true end
  local socket, why, name = M.open(self.url, self.timeout_ms)
  if not socket then return nil, why, name end
  self.socket = socket
  return true
end

function Connection:close()
  C.pl_client_close(self.socket)
  self.socket = nil
end

-- What comes next. An interrupt may come just before the wait that it should end: so,
-- where somebody may interrupt, that wait is many short ones.
local function receive_patiently(self, interrupted)
  local slice = interrupted and math.min(SLICE_MS, self.timeout_ms) or self.timeout_ms
  local left = self.timeout_ms
  while left > 0 do
    local bytes, why, name = M.receive(self.socket, slice)
    if name == "PL_ETIMEOUT" then
      left = left - slice
    elseif name ~= "PL_ECANCELED" then
      return bytes, why, name
    end
    if interrupted and interrupted() then return nil, "interrupted", "PL_ECANCELED" end
  end
  return nil, ("nothing came from the server for %d ms"):format(self.timeout_ms),
         "PL_ETIMEOUT"
end

local function read_answer(self, response, interrupted)
  while not response.done do
    local bytes, why, name = receive_patiently(self, interrupted)
    if not bytes then return nil, why, name end
    local ok
    if bytes == "" then
      ok, why, name = response:close()
    else
      ok, why, name = response:feed(bytes)
    end
    if not ok then return nil, why, name end
  end
  return response
end

-- Sends a request and reads its answer, giving the body to on_body as it comes. Answers
-- the response, or nil, message, name; where interrupted() says so after a signal, the
-- name is PL_ECANCELED. A kept connection that the server has closed is opened again.
function Connection:request(method, path, body, on_body, interrupted)
  local text = M.request(self.url, method, path, self.headers, body)
  local kept = self.socket ~= nil
  local open, broken, how = self:open()
  if not open then return nil, broken, how end
  local response = M.response(on_body)
  local answer, why, name = engine.check(
    C.pl_client_send(self.socket, text, #text, self.timeout_ms))
  if answer then answer, why, name = read_answer(self, response, interrupted) end
  if not answer or not answer.keep then self:close() end
  if not answer and kept and not response.begun and name == "PL_EIO" then
    return self:request(method, path, body, on_body, interrupted)
  end
  return answer, why, name
end

-- What an answer says went wrong: the message of its error, or its status.
function M.error_text(response, body)
  local ok = json.decode(body)
  local e = type(ok) == "table" and (ok.error or ok.message or ok.detail)
  if type(e) == "table" then e = e.message end
  return ("the server says %d: %s"):format(response.status,
                                           type(e) == "string" and e or body:sub(1, 200))
end

-- A GET whose answer is JSON: its value, or nil, message, name.
function Connection:get(path)
  local parts = {}
  local response, why, name = self:request("GET", path, nil, function(piece)
    parts[#parts + 1] = piece
  end)
  if not response then return nil, why, name end
  local body = table.concat(parts)
  if response.status ~= 200 then return nil, M.error_text(response, body), "PL_EIO" end
  return json.decode(body)
end

-- The first model that the server offers, or nil, message, name.
function M.first_model(connection)
  local list, why, name = connection:get "/v1/models"
  if not list then return nil, why, name end
  local first = type(list) == "table" and type(list.data) == "table" and list.data[1]
  if type(first) ~= "table" or type(first.id) ~= "string" then
    return nil, "the server offers no model; name one by --model", "PL_ENOTFOUND"
  end
  return first.id
end

return M
