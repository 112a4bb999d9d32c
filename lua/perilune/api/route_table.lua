-- SPDX-License-Identifier: Apache-2.0
-- api/route_table.lua - HTTP routes as rows, found by method and path.
--
--   local routes = route_table.new {
--     { "GET", "/v1/models/{id}", model, key = true },
--     { "POST", "/reset_prefix_cache", reset, when = in_development },
--   }
--   local row, id = routes:find(server, "GET", "/v1/models/Qwen/Qwen3-0.6B")
--
-- A row: method, path, handler; whoever owns the table calls the handler. A path that
-- ends in {id} matches whatever follows, slashes included. Besides:
--   key       callers need one of the server's API keys, if it has any
--   when      the route exists only if when(server)
--   max_body  longest body in bytes; without it, the server's limit for all

local Routes = {}
Routes.__index = Routes

local M = {}

-- Bytes of a path from outside that are repeated in a message.
local MAX_PATH = 200

function M.new(rows)
  local self = setmetatable({ exact = {}, prefixes = {} }, Routes)
  for _, row in ipairs(rows) do
    local method, path, handler = row[1], row[2], row[3]
    row.method, row.path, row.handler = method, path, handler
    local route = self.exact[path]
    if not route then
      route = { path = path, methods = {} }
      self.exact[path] = route
      local prefix = path:match "^(.*)%{id%}$"
      if prefix then table.insert(self.prefixes, { text = prefix, route = route }) end
    end
    route.methods[method] = row
  end
  return self
end

local function serves(row, server) return not row.when or row.when(server) end

-- The rows of a route that this server has, by method; nil if none.
local function served(route, server)
  local rows = {}
  for method, row in pairs(route.methods) do
    if serves(row, server) then rows[method] = row end
  end
  return next(rows) and rows
end

local function by_path(self, path)
  local route = not path:find("{", 1, true) and self.exact[path]
  if route then return route end
  for _, prefix in ipairs(self.prefixes) do
    if #path > #prefix.text and path:sub(1, #prefix.text) == prefix.text then
      return prefix.route, path:sub(#prefix.text + 1)
    end
  end
end

local function no_path(self, server, path)
  local paths = {}
  for name, route in pairs(self.exact) do
    if served(route, server) then paths[#paths + 1] = name end
  end
  table.sort(paths)
  return ("Not Found: no path '%s' here; there are %s"):format(path:sub(1, MAX_PATH),
    table.concat(paths, ", "))
end

local function no_method(rows, method, path)
  local methods = {}
  for name in pairs(rows) do methods[#methods + 1] = name end
  if rows.GET then methods[#methods + 1] = "HEAD" end
  table.sort(methods)
  local allowed = table.concat(methods, ", ")
  return ("Method Not Allowed: %s takes %s, not %s"):format(path:sub(1, MAX_PATH),
    allowed, method), "Allow: " .. allowed .. "\r\n"
end

-- The row for a request, and its id if the path has one. Without a row: nil, the status
-- (404, 405), a message, headers for the answer.
function Routes:find(server, method, path)
  local route, id = by_path(self, path)
  local row = route and route.methods[method == "HEAD" and "GET" or method]
  if row and serves(row, server) then return row, id end
  local rows = route and served(route, server)
  if not rows then return nil, 404, no_path(self, server, path), "" end
  return nil, 405, no_method(rows, method, path)
end

-- Why a row refuses a body of this many bytes; nil if it does not.
function M.too_long(row, bytes)
  if not row.max_body or bytes <= row.max_body then return nil end
  return ("Content Too Large: %s %s takes a body of at most %d bytes, not %d"):format(
    row.method, row.path, row.max_body, bytes)
end

return M
