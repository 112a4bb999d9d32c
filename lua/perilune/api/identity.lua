-- SPDX-License-Identifier: Apache-2.0
-- api/identity.lua - who a request is: its id, the trace it is part of, what the log says
-- of it.
--
--   local who = identity.of(x)            -- of what came in the headers
--   identity.settle(who, x, "wanted")     -- who.id is surely there, who.log carries it
--
-- An id comes from X-Request-Id, or is drawn. Another's word goes to logs, headers and
-- other processes only if it is one plain word; else it is as if none had come.
-- Whose it is: where API keys are in force, whoever has the key that it brought, under a
-- name made of the key that does not give it away; else whom X-Tenant-Id names.
-- `traceparent` is W3C's (Trace Context, level 1): who.trace = { trace_id, parent_id,
-- flags, header }, its header to be sent on.

local pl = require "perilune.ffi"
local log = require "perilune.log"
local C, ffi = pl.C, pl.ffi

local M = {}

-- Longer ids are not taken.
M.MAX_ID = 256

-- The id if it may be one: visible ASCII, not too long; or nil.
function M.id(text)
  if type(text) ~= "string" or #text > M.MAX_ID then return nil end
  return text:match "^[\33-\126]+$"
end

local DIGITS = 32
local drawn = ffi.new("char[?]", DIGITS)

function M.draw()
  C.pl_entropy_hex(drawn, DIGITS)
  return (ffi.string(drawn, DIGITS))
end

local function hex(text, digits)
  return #text == digits and not text:find "[^0-9a-f]" and text:find "[^0]" ~= nil
end

-- A traceparent's parts, or nil where it is none. Later versions are read as the first,
-- which is what they promise to begin with.
function M.trace(text)
  if #text > 512 then return nil end
  local version, trace_id, parent_id, flags, rest =
    text:match "^([0-9a-f][0-9a-f])%-(%x+)%-(%x+)%-([0-9a-f][0-9a-f])(.*)$"
  if not version or version == "ff" then return nil end
  if rest ~= "" and (version == "00" or rest:sub(1, 1) ~= "-") then return nil end
  if not hex(trace_id, 32) or not hex(parent_id, 16) then return nil end
  return { trace_id = trace_id, parent_id = parent_id, flags = flags,
    header = ("00-%s-%s-%s"):format(trace_id, parent_id, flags) }
end

local function header(x, name)
  local v = C.pl_exchange_header(x, name)
  if v ~= nil then return (ffi.string(v)) end
end

local NAMELESS = log.with {}

-- From now on its lines in the log carry this too, the one of its answer as well. The id
-- comes last here, for other processes take the first field to be it (pl_seq_label).
local function label(who, x, name, value)
  local field = name .. "\0" .. value .. "\0"
  who.log = log.with_packed(field .. who.log:packed())
  C.pl_exchange_label(x, field, #field)
end

function M.of(x)
  local id, parent = header(x, "x-request-id"), header(x, "traceparent")
  local who = { id = M.id(id), trace = parent and M.trace(parent), log = NAMELESS }
  if who.trace then label(who, x, "trace_id", who.trace.trace_id) end
  if who.id then label(who, x, "request_id", who.id) end
  return who
end

-- Gives it an id where none came: `wanted`, if that may be one, or a drawn one.
function M.settle(who, x, wanted)
  if not who.id then
    who.id = M.id(wanted) or M.draw()
    label(who, x, "request_id", who.id)
  end
  return who.id
end

-- Who sends the request, or nil. A header says nothing against a key: who has one could
-- speak for all others.
function M.tenant(who, x)
  if not who.key then return M.id(header(x, "x-tenant-id")) end
  local hash = C.pl_weights_fingerprint(nil, who.key, #who.key, 0)
  return "key-" .. bit.tohex(hash, 16):sub(1, 8)
end

return M
