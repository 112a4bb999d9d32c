-- SPDX-License-Identifier: Apache-2.0
-- recipe/hints.lua - req.hints: what a client says of a request to those who route it, in
-- Dynamo's words: the body's `nvext` and some headers, which come first.
--
-- Only hooks read them. What is malformed is as if it were not there.

local M = {}

local MAX_TEXT = 256

local function text(v)
  if type(v) == "number" and v % 1 == 0 then v = ("%.0f"):format(v) end
  return type(v) == "string" and v ~= "" and #v <= MAX_TEXT and not v:find "%c" and v
    or nil
end

local function number(v)
  v = tonumber(v)
  return v and v == v and math.abs(v) < 2 ^ 53 and v or nil
end

local function boolean(v)
  if type(v) == "boolean" then return v end
end

-- Name, how it is read, where it is in nvext, and its headers (the older ones last).
local ROWS = {
  { "worker", text, { "backend_instance_id" }, "x-dynamo-worker-instance-id",
    "x-worker-instance-id" },
  { "prefill_worker", text, { "prefill_worker_id" }, "x-dynamo-prefill-instance-id",
    "x-prefill-instance-id" },
  { "decode_worker", text, { "decode_worker_id" } },
  { "rank", number, {}, "x-dynamo-dp-rank", "x-dp-rank" },
  { "prefill_rank", number, {}, "x-dynamo-prefill-dp-rank", "x-prefill-dp-rank" },
  { "priority", number, { "agent_hints", "priority" }, "x-dynamo-request-priority",
    "x-request-priority" },
  { "strict_priority", number, { "agent_hints", "strict_priority" },
    "x-dynamo-request-strict-priority", "x-request-strict-priority" },
  { "osl", number, { "agent_hints", "osl" } },
  { "speculative_prefill", boolean, { "agent_hints", "speculative_prefill" } },
  { "session", text, { "session_control", "session_id" }, "x-dynamo-session-id" },
  { "policy_class", text, {}, "x-dynamo-meta-policy-class" },
}

-- All names in order; and by name the type, and where a client says it.
M.ORDER, M.TYPES, M.SOURCE = {}, {}, {}

local TYPES = { [text] = "string", [number] = "number", [boolean] = "boolean" }

local function source_of(row)
  local places = {}
  if row[3][1] then places[1] = "nvext." .. table.concat(row[3], ".") end
  for i = 4, #row do places[#places + 1] = "header " .. row[i] end
  return table.concat(places, ", ")
end

for i, row in ipairs(ROWS) do
  M.ORDER[i], M.TYPES[row[1]], M.SOURCE[row[1]] = row[1], TYPES[row[2]], source_of(row)
end

local function find(v, path)
  for _, key in ipairs(path) do
    v = type(v) == "table" and v[key]
  end
  return path[1] and v or nil
end

-- Those of a body's nvext, of perilune.json, as a plain table; nil: there are none.
function M.of_body(nvext)
  local out
  for _, row in ipairs(ROWS) do
    local v = row[2](find(nvext, row[3]))
    if v ~= nil then
      out = out or {}
      out[row[1]] = v
    end
  end
  return out
end

-- All of them; `headers` has the request's by name.
function M.of(from_body, headers)
  local out = {}
  for _, row in ipairs(ROWS) do
    local v
    for i = 4, #row do
      if v == nil then v = row[2](headers[row[i]]) end
    end
    if v == nil and from_body then v = from_body[row[1]] end
    out[row[1]] = v
  end
  return out
end

return M
