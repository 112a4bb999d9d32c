-- SPDX-License-Identifier: Apache-2.0
-- console/admin.lua - what the owner of a process may ask it, over its local socket.
--
-- A route is a function of (process, request) that answers a status and a table; a
-- request has `body` (a table), `by` (who asks, for logs) and gone(): have they hung up.
-- Nothing in here knows by which way the question came; `handle` is the local socket's,
-- and never TCP's: tools/process.lua asks pl_exchange_is_local.

local pl = require "perilune.ffi"
local console = require "perilune.console.session"
local cjson = require "cjson.safe"
local json = require "perilune.json"
local log = require "perilune.log"
local route_table = require "perilune.api.route_table"
local steps = require "perilune.watch.steps"
local C, ffi = pl.C, pl.ffi

local M = {}

local len_out = ffi.new "size_t[1]"

-- The models of a process: its own, or those that its frontend serves.
local function model_of(process)
  if process.card then return process.card.names[1] end
  local first = process.server and process.server.models.list[1]
  return first and first.key
end

local function load_of(process)
  local sum = { running = 0, waiting = 0, blocks = 0, blocks_used = 0 }
  for _, w in ipairs(console.workers(process)) do
    for field in pairs(sum) do sum[field] = sum[field] + (w.now()[field] or 0) end
  end
  sum.requests = process.server and process.server.in_flight or nil
  return sum
end

-- The process in a few words. Load: sequences that run and wait, blocks in use of all, at
-- the workers that it knows.
function M.describe(process)
  return {
    name = process.name, role = process.role, pid = process.pid,
    model = model_of(process), health = process.health:problem() or "ok",
    state = process.state, load = load_of(process),
    uptime = math.floor(tonumber(C.pl_wall_ns() - process.started) / 1e9),
    version = ffi.string(C.pl_version()), recipe = process.recipe.file,
    recipe_hash = process.recipe_hash,
    bus = process.on_bus and process.recipe.namespace or nil,
  }
end

local function about(process) return 200, M.describe(process) end

local function drain(process, request)
  local ok, why = process:begin_drain(request.body.worker, request.by)
  return ok and 200 or 409, { text = ok, error = why }
end

local function resume(process, request)
  local ok, why = process:resume(request.body.worker, request.by)
  return ok and 200 or 409, { text = ok, error = why }
end

local function drained(process, request)
  local answer, why = process:drained(request.body.worker)
  return answer and 200 or 409, { text = answer and json.encode(answer), error = why }
end

local function role(process, request)
  local ok, why = process:set_role(request.body.worker, tostring(request.body.role),
    request.by)
  return ok and 200 or 409, { text = ok, error = why }
end

local function steps_of(process)
  local out = { name = process.name, workers = json.array() }
  for _, w in ipairs(console.workers(process)) do
    local summary = w.engine and steps.summary(w.engine) or { now = w.now() }
    summary.name, summary.reads = w.name, w.reads
    table.insert(out.workers, summary)
  end
  return 200, out
end

local function eval(process, request)
  return 200, console.eval(process, request)
end

local function complete(process, request)
  return 200, console.complete(process, request)
end

local ROUTES = route_table.new {
  { "GET", "/about", about },
  { "GET", "/steps", steps_of },
  { "POST", "/drain", drain },
  { "POST", "/resume", resume },
  { "POST", "/drained", drained },
  { "POST", "/role", role },
  { "POST", "/eval", eval },
  { "POST", "/complete", complete },
}

-- Answers one question, whatever way it came: a status and JSON.
function M.answer(process, method, path, request)
  local row, no, why = ROUTES:find(process, method, path)
  if not row then return no, json.encode { error = why } end
  if type(request.body) ~= "table" then
    return 400, json.encode { error = "the body is not a JSON object" }
  end
  local ok, status, out = xpcall(row.handler, debug.traceback, process, request)
  if not ok then
    log.error("%s", status)
    return 500, json.encode { error = "internal error; see the log" }
  end
  local text
  text, why = json.encode(out)
  if not text then return 500, json.encode { error = why } end
  return status, text
end

local function body_of(x)
  local body = C.pl_exchange_body(x, len_out)
  if len_out[0] == 0 then return {} end
  return (cjson.decode(ffi.string(body, len_out[0])))
end

-- The coroutine of an exchange of the local socket: it is answered and released.
function M.handle(process, x)
  local id = C.pl_exchange_id(x)
  process.exchanges[id] = x
  local status, text = M.answer(process, ffi.string(C.pl_exchange_method(x)),
    ffi.string(C.pl_exchange_path(x)), {
      body = body_of(x), by = ffi.string(C.pl_exchange_peer(x)),
      gone = function() return C.pl_exchange_is_gone(x) ~= 0 end,
    })
  C.pl_exchange_reply(x, status, "application/json", "", 0, text, #text)
  process.exchanges[id] = nil
  C.pl_exchange_release(x)
end

return M
