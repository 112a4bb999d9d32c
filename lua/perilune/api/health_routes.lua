-- SPDX-License-Identifier: Apache-2.0
-- api/health_routes.lua - what each process tells of itself over HTTP: /health, /live, /metrics.
--
-- A worker has these, and nothing else, at metrics_endpoint_port:
--
--   flow.on("request", function(ev) system.handle({ health = h, metrics = m }, x) end)

local pl = require "perilune.ffi"
local access = require "perilune.api.access"
local json = require "perilune.json"
local log = require "perilune.log"
local C, ffi = pl.C, pl.ffi

local M = {}

local JSON = "application/json"
-- Bytes of a stranger's path that are said back.
local MAX_PATH = 200

-- In how many seconds a client may come again that was told 503, where nobody knows it
-- better.
local RETRY_AFTER = "Retry-After: 1\r\n"

function M.reply(x, status, body, headers, kind)
  headers = headers or ""
  if status == 503 and not headers:find "Retry%-After:" then
    headers = headers .. RETRY_AFTER
  end
  C.pl_exchange_reply(x, status, kind or JSON, headers, #headers, body, #body)
end

-- A route's handler: what `answer` says, a status and a body, goes back.
local function telling(answer)
  return function(server, x, headers)
    local status, body = answer(server.health)
    M.reply(x, status, body, headers)
  end
end

function M.metrics(server, x, headers)
  M.reply(x, 200, server.metrics:render(), headers,
    "text/plain; version=0.0.4; charset=utf-8")
end

M.frontend_health = telling(function(health) return health:frontend() end)
M.worker_health = telling(function(health) return health:worker() end)
M.live = telling(function(health) return health.live() end)

local ROUTES = {
  ["/health"] = M.worker_health, ["/live"] = M.live, ["/metrics"] = M.metrics,
}

-- What is said of a path that is not there; `paths`: a list of those that are.
function M.no_path(path, paths)
  table.sort(paths)
  return ("Not Found: no path '%s' here; there are %s"):format(path:sub(1, MAX_PATH),
    table.concat(paths, ", "))
end

-- The same of a method, and the header that goes with it; `route`: by method.
function M.no_method(method, path, route)
  local methods = {}
  for name in pairs(route) do methods[#methods + 1] = name end
  if route.GET then methods[#methods + 1] = "HEAD" end
  table.sort(methods)
  local allowed = table.concat(methods, ", ")
  return ("Method Not Allowed: %s takes %s, not %s"):format(path, allowed, method),
    "Allow: " .. allowed .. "\r\n"
end

local function refuse(x, status, why, headers)
  access.refused(x, why)
  M.reply(x, status, json.encode { error = why }, headers)
end

local function dispatch(server, x)
  local method = ffi.string(C.pl_exchange_method(x))
  local path = ffi.string(C.pl_exchange_path(x))
  local route = ROUTES[path]
  if not route then
    local paths = {}
    for name in pairs(ROUTES) do paths[#paths + 1] = name end
    return refuse(x, 404, M.no_path(path, paths))
  end
  if method ~= "GET" and method ~= "HEAD" then
    return refuse(x, 405, M.no_method(method, path, { GET = route }))
  end
  route(server, x)
end

-- Answers one exchange and releases it. `server`: health, metrics.
function M.handle(server, x)
  local ok, why = xpcall(dispatch, debug.traceback, server, x)
  if not ok then
    log.error("%s", why)
    M.reply(x, 500, '{"error":"Internal Server Error"}')
  end
  C.pl_exchange_release(x)
end

return M
