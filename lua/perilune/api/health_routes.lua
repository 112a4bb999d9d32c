-- SPDX-License-Identifier: Apache-2.0
-- api/health_routes.lua - what each process tells of itself over HTTP: /health, /live,
-- /metrics.
--
-- A worker has these, and nothing else, at metrics_endpoint_port:
--
--   flow.on("request", function(ev)
--     health_routes.handle({ health = h, metrics = m }, x)
--   end)

local pl = require "perilune.ffi"
local access_log = require "perilune.api.access_log"
local json = require "perilune.json"
local log = require "perilune.log"
local route_table = require "perilune.api.route_table"
local C, ffi = pl.C, pl.ffi

local M = {}

local JSON = "application/json"

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

local ROUTES = route_table.new {
  { "GET", "/health", M.worker_health }, { "GET", "/live", M.live },
  { "GET", "/metrics", M.metrics },
}

local function dispatch(server, x)
  local row, status, why, headers = ROUTES:find(server,
    ffi.string(C.pl_exchange_method(x)), ffi.string(C.pl_exchange_path(x)))
  if row then return row.handler(server, x) end
  access_log.refused(x, why)
  M.reply(x, status, json.encode { error = why }, headers)
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
