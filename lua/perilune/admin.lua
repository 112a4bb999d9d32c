-- SPDX-License-Identifier: Apache-2.0
-- admin.lua - what the owner of a process may ask it, over its local socket.
--
-- A route is a function of (server, request) that answers a status and a table; a request
-- has `body` (a table), `by` (who asks, for logs) and gone(), whether they hung up.
-- Nothing in here knows by which way the question came; `handle` is the local socket's,
-- and never TCP's: frontend.lua asks pl_exchange_is_local.

local pl = require "perilune.ffi"
local console = require "perilune.console"
local cjson = require "cjson.safe"
local json = require "perilune.json"
local log = require "perilune.log"
local steps = require "perilune.steps"
local C, ffi = pl.C, pl.ffi

local M = {}

local len_out = ffi.new "size_t[1]"

-- Functions of (server, out) that add fields to what /about tells.
M.about = {}

-- path -> method -> route
M.routes = {}

local function bytes_of(path)
  local f = io.open(path, "rb")
  local text = f and f:read "*a" or ""
  if f then f:close() end
  return text
end

-- What a recipe's file says, in sixteen digits: equal where the files are.
function M.hash(path)
  local text = bytes_of(path)
  return bit.tohex(C.pl_weights_fingerprint(nil, text, #text, 0))
end

local function health(server)
  local stalled = server:stalled_for()
  if stalled then return ("no step for %.0f s"):format(stalled) end
  return server.stopping and "stopping" or "ok"
end

-- The process in a few words. Load: sequences that run and wait, blocks in use of all.
function M.describe(server)
  local now = steps.stats(server.engine)
  local out = {
    name = server.process_name, role = server.role, pid = C.pl_process_id(),
    model = server.name, health = health(server),
    uptime = math.floor(tonumber(C.pl_now_ns() - server.started_ns) / 1e9),
    load = { running = now.running, waiting = now.waiting, blocks = now.blocks,
      blocks_used = now.blocks_used, requests = server.in_flight },
    version = ffi.string(C.pl_version()), recipe = server.recipe.file,
    recipe_hash = server.recipe_hash,
  }
  for _, add in ipairs(M.about) do add(server, out) end
  return out
end

M.routes["/about"] = { GET = function(server) return 200, M.describe(server) end }

M.routes["/steps"] = { GET = function(server)
  local out = { name = server.process_name, workers = json.array() }
  for i, w in ipairs(console.workers(server)) do
    out.workers[i] = steps.summary(w.engine)
    out.workers[i].name = w.name
  end
  return 200, out
end }

M.routes["/eval"] = { POST = function(server, request)
  return 200, console.eval(server, request)
end }

M.routes["/complete"] = { POST = function(server, request)
  return 200, console.complete(server, request)
end }

-- Answers one question, whatever way it came: a status and JSON.
function M.answer(server, method, path, request)
  local route = M.routes[path]
  local fn = route and route[method]
  if not fn then
    return route and 405 or 404, json.encode { error = ("no %s %s"):format(method, path) }
  end
  if type(request.body) ~= "table" then
    return 400, json.encode { error = "the body is no JSON object" }
  end
  local ok, status, out = xpcall(fn, debug.traceback, server, request)
  if not ok then
    log.error("%s", status)
    return 500, json.encode { error = "a defect of perilune's; the log has it" }
  end
  local text, why = json.encode(out)
  if not text then return 500, json.encode { error = why } end
  return status, text
end

local function body_of(x)
  local body = C.pl_exchange_body(x, len_out)
  if len_out[0] == 0 then return {} end
  return (cjson.decode(ffi.string(body, len_out[0])))
end

-- The coroutine of an exchange of the local socket: it is answered and released.
function M.handle(server, x)
  local id = C.pl_exchange_id(x)
  server.exchanges[id] = x
  local status, text = M.answer(server, ffi.string(C.pl_exchange_method(x)),
    ffi.string(C.pl_exchange_path(x)), {
      body = body_of(x), by = ffi.string(C.pl_exchange_peer(x)),
      gone = function() return C.pl_exchange_is_gone(x) ~= 0 end,
    })
  C.pl_exchange_reply(x, status, "application/json", "", 0, text, #text)
  server.exchanges[id] = nil
  C.pl_exchange_release(x)
end

return M
