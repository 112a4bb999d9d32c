-- SPDX-License-Identifier: Apache-2.0
-- system.lua - what each process tells of itself over HTTP: /health, /live, /metrics.
--
-- A worker has these, and nothing else, at metrics_endpoint_port:
--
--   flow.on("request", function(ev) system.handle({ health = h, metrics = m }, x) end)

local pl = require "perilune.ffi"
local log = require "perilune.log"
local C, ffi = pl.C, pl.ffi

local M = {}

local JSON = "application/json"

function M.reply(x, status, body, headers, kind)
  headers = headers or ""
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

local function dispatch(server, x)
  local method = ffi.string(C.pl_exchange_method(x))
  local route = ROUTES[ffi.string(C.pl_exchange_path(x))]
  if not route then return M.reply(x, 404, '{"error":"Not Found"}') end
  if method ~= "GET" and method ~= "HEAD" then
    return M.reply(x, 405, '{"error":"Method Not Allowed"}', "Allow: GET, HEAD\r\n")
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
