-- SPDX-License-Identifier: Apache-2.0
-- api/routes.lua - the HTTP API: which path does what, who may call it.
--
-- Bodies, fields, defaults and errors are OpenAI's as vLLM has them (docs/http.md).

local pl = require "perilune.ffi"
local access_log = require "perilune.api.access_log"
local decisions = require "perilune.fleet.decisions"
local identity = require "perilune.api.identity"
local json = require "perilune.json"
local models_of = require "perilune.fleet.served_models"
local overload = require "perilune.fleet.overload"
local route_table = require "perilune.api.route_table"
local serve = require "perilune.api.serve"
local health_routes = require "perilune.api.health_routes"
local C, ffi = pl.C, pl.ffi

local M = {}

local JSON = "application/json"
local len_out = ffi.new "size_t[1]"

local reply = health_routes.reply

local function header(x, name)
  local v = C.pl_exchange_header(x, name)
  if v ~= nil then return (ffi.string(v)) end
end

-- The answer to a request whose plan says no.
local function refuse(x, plan, headers)
  serve.refuse(x, plan.refused, headers)
end

-- ---- routes ------------------------------------------------------------------------

local function model_object(served, name)
  return json.object("id", name, "object", "model", "created", served.created,
    "owned_by", "perilune", "root", served.card.root, "parent", json.null,
    "max_model_len", served.card.max_model_len, "permission", json.array {
      json.object("id", "modelperm-" .. served.card.fingerprint:sub(1, 32),
        "object", "model_permission", "created", served.created,
        "allow_create_engine", false, "allow_sampling", true, "allow_logprobs", true,
        "allow_search_indices", false, "allow_view", true, "allow_fine_tuning", false,
        "organization", "*", "group", json.null, "is_blocking", false) })
end

local function models(server, x, headers)
  local list = {}
  for _, served in ipairs(server.models.list) do
    for _, name in ipairs(#served.workers > 0 and served.names or {}) do
      list[#list + 1] = model_object(served, name)
    end
  end
  list = json.object("object", "list", "data", json.array(list))
  reply(x, 200, json.encode(list), headers)
end

local function tokenize(server, x, headers, who)
  local plan = serve.plan(server, x, "tokenize", who)
  if plan.refused then return refuse(x, plan, headers) end
  reply(x, 200, json.encode(json.object("count", #plan.ids, "max_model_len",
    plan.max_model_len, "tokens", json.array(plan.ids), "token_strs",
    plan.strings and json.array(plan.strings) or json.null)), headers)
end

local function detokenize(server, x, headers, who)
  local plan = serve.plan(server, x, "detokenize", who)
  if plan.refused then return refuse(x, plan, headers) end
  reply(x, 200, json.encode(json.object("prompt", plan.text)), headers)
end

local function version(_, x, headers)
  reply(x, 200, json.encode { version = ffi.string(C.pl_version()) }, headers)
end

local function load_of(server, x, headers)
  local n = server.track_load and server.in_flight or 0
  reply(x, 200, json.encode { server_load = n }, headers)
end

local function reset_prefix_cache(server, x, headers)
  local reset = true
  for _, w in ipairs(server.cluster.workers) do
    if w.engine and C.pl_engine_reset_cache(w.engine) < 0 then reset = false end
  end
  if not reset then
    return serve.refuse(x, { status = 503, headers = headers,
      message = "the prefix cache is in use; try again when no request runs" })
  end
  reply(x, 200, "", headers)
end

local function thresholds(server, x, headers)
  reply(x, 200, overload.list(server), headers)
end

local function set_thresholds(server, x, headers)
  local body = C.pl_exchange_body(x, len_out)
  local text, refused = overload.post(server, ffi.string(body, len_out[0]))
  if not text then return refuse(x, { refused = refused }, headers) end
  reply(x, 200, text, headers)
end

local function generate(kind)
  return function(server, x, headers, who)
    server.in_flight = server.in_flight + 1
    local ok, why = xpcall(serve.generate, debug.traceback, server, x, kind, headers,
      who)
    server.in_flight = server.in_flight - 1
    if not ok then error(why, 0) end
  end
end

-- POST /v1/cancel/{id}: the requests of that id, ours or the client's X-Request-Id, end
-- with what there is of them.
local function cancel(server, x, headers, _, id)
  local found = false
  for _, job in pairs(server.jobs) do
    if job.id == id or job.answer.id == id then
      job:cancel({})
      found = true
    end
  end
  if not found then
    return serve.refuse(x, { status = 404, headers = headers,
      message = "No such request is under way." })
  end
  reply(x, 200, json.encode(json.object("id", id, "object", "request.cancelled",
    "cancelled", true)), headers)
end

-- GET /v1/decisions: the last of them, or those of one request.
local MOST_DECISIONS, MOST_WORKERS = 100, 4096

local function decided(server, x, headers, _, id)
  local list = id and decisions.find(server.models, id)
    or decisions.last(server.models, MOST_DECISIONS)
  local data, n_workers = {}, 0
  for i = 1, math.min(#list, MOST_DECISIONS) do
    data[i] = decisions.plain(list[i])
    n_workers = n_workers + #json.array(data[i].workers)
    if n_workers >= MOST_WORKERS then break end
  end
  reply(x, 200, json.encode(json.object("object", "list", "data", json.array(data))),
    headers)
end

-- GET /v1/models/{id}: the card of a model, by any of the names it is served under.
local function model(server, x, headers, _, id)
  for _, served in ipairs(server.models.list) do
    for _, name in ipairs(#served.workers > 0 and served.names or {}) do
      if name == id then
        return reply(x, 200, json.encode(model_object(served, name)), headers)
      end
    end
  end
  serve.refuse(x, { status = 404, param = "model", headers = headers,
    message = models_of.unknown(server.models.contexts, id) })
end

local function has_admin_api(server)
  return not server.recipe.http.disable_frontend_admin_api
end

local function in_development(server) return server.dev_mode end

-- As in vLLM, an API key is wanted below /v1 only; and where thresholds are set, for with
-- these anybody could keep everybody else out. A handler is called with the server, the
-- exchange, headers for its answer, who asks (api/identity.lua), and the path's id.
local ROUTES = route_table.new {
  { "POST", "/v1/chat/completions", generate "chat", key = true },
  { "POST", "/v1/completions", generate "completion", key = true },
  { "GET", "/v1/models", models, key = true },
  { "GET", "/v1/models/{id}", model, key = true },
  { "POST", "/v1/cancel/{id}", cancel, key = true, max_body = 65536 },
  { "GET", "/v1/decisions", decided, key = true, when = has_admin_api },
  { "GET", "/v1/decisions/{id}", decided, key = true, when = has_admin_api },
  { "POST", "/tokenize", tokenize },
  { "POST", "/detokenize", detokenize },
  { "GET", "/health", health_routes.frontend_health },
  { "GET", "/live", health_routes.live },
  { "GET", "/ping", health_routes.frontend_health },
  { "POST", "/ping", health_routes.frontend_health },
  { "GET", "/metrics", health_routes.metrics },
  { "GET", "/version", version },
  { "GET", "/load", load_of },
  { "GET", "/busy_threshold", thresholds, when = has_admin_api },
  { "POST", "/busy_threshold", set_thresholds, when = has_admin_api, key = true,
    max_body = 65536 },
  { "POST", "/reset_prefix_cache", reset_prefix_cache, when = in_development },
}

-- ---- who may ------------------------------------------------------------------------

-- Compares in time that depends on the lengths alone.
local function same(a, b)
  local diff = #a == #b and 0 or 1
  for i = 1, #b do
    if a:byte((i - 1) % math.max(#a, 1) + 1) ~= b:byte(i) then diff = 1 end
  end
  return diff == 0
end

-- Whether the request brought a key, if it needs one. That key is who.key from then on.
local function authorized(server, x, row, who)
  if #server.api_keys == 0 or not row.key then return true end
  local token = (header(x, "authorization") or ""):match "^[Bb]earer (.+)$"
  for _, key in ipairs(server.api_keys) do
    if token and same(token, key) then who.key = key end
  end
  return who.key ~= nil
end

local function allowed(list, value)
  for _, v in ipairs(list) do
    if v == "*" or v == value then return true end
  end
  return false
end

-- The headers of Cross-Origin Resource Sharing; "" where the request has no origin.
local function cors(server, x)
  local origin = header(x, "origin")
  local c = server.cors
  if not origin or origin:find "[%c]" or not allowed(c.origins, origin) then return "" end
  local any = c.origins[1] == "*" and not c.credentials
  return "Access-Control-Allow-Origin: " .. (any and "*" or origin) .. "\r\n"
    .. (c.credentials and "Access-Control-Allow-Credentials: true\r\n" or "")
    .. (any and "" or "Vary: Origin\r\n")
end

local function preflight(server, x, headers)
  if headers == "" then
    return reply(x, 400, "Disallowed CORS origin", "", "text/plain")
  end
  local asked = header(x, "access-control-request-headers") or "*"
  if asked:find "[%c]" then asked = "*" end
  headers = headers .. "Access-Control-Allow-Methods: "
    .. (server.cors.methods[1] == "*" and "GET, POST, OPTIONS"
      or table.concat(server.cors.methods, ", ")) .. "\r\n"
    .. "Access-Control-Allow-Headers: "
    .. (server.cors.headers[1] == "*" and asked
      or table.concat(server.cors.headers, ", "))
    .. "\r\nAccess-Control-Max-Age: 600\r\n"
  reply(x, 200, "OK", headers, "text/plain")
end

-- Whether the body is compressed or otherwise encoded (RFC 9110, 8.4).
local function is_packed(x)
  local coding = header(x, "content-encoding")
  return coding ~= nil and coding:lower():find "^[%s,]*identity[%s,]*$" == nil
    and coding:find "[^%s,]" ~= nil
end

local function is_json(x)
  local kind = header(x, "content-type")
  if kind == JSON then return true end
  return kind ~= nil and kind:lower():match "^%s*application/json%s*%f[;%z]" ~= nil
end

-- Why a request's body is refused: a status, a message, headers; nil if it is not.
local function unfit_body(x, row, method)
  C.pl_exchange_body(x, len_out)
  local length = tonumber(len_out[0])
  if length == 0 then return nil end
  local too_long = route_table.too_long(row, length)
  if too_long then return 413, too_long end
  if is_packed(x) then
    return 415, "Unsupported Media Type: a body with a Content-Encoding is not taken",
      "Accept-Encoding: identity\r\n"
  end
  if method == "POST" and not is_json(x) then
    return 415, "Unsupported Media Type: Only 'application/json' is allowed"
  end
end

-- As vLLM has it: who brought no id learns the one that was drawn.
local function request_id(server, x, who)
  if not server.id_headers then return "" end
  return "X-Request-Id: " .. identity.settle(who, x) .. "\r\n"
end

local function no(x, headers, status, message, reason)
  return serve.refuse(x, { status = status, message = message, headers = headers,
    reason = reason })
end

-- Answers one exchange.
local function dispatch(server, x, who)
  local method = ffi.string(C.pl_exchange_method(x))
  local path = ffi.string(C.pl_exchange_path(x))
  local headers = cors(server, x)
  if method == "OPTIONS" and header(x, "access-control-request-method") then
    return preflight(server, x, headers)
  end
  headers = headers .. request_id(server, x, who)
  local row, id, why, more = ROUTES:find(server, method, path)
  if not row then
    return no(x, headers .. more, id, why, id == 404 and "no such path" or nil)
  end
  if not authorized(server, x, row, who) then
    access_log.refused(x, "no valid key")
    return reply(x, 401, '{"error":"Unauthorized"}',
      headers .. "WWW-Authenticate: Bearer\r\n")
  end
  local status, said, extra = unfit_body(x, row, method)
  if status then return no(x, headers .. (extra or ""), status, said) end
  return row.handler(server, x, headers, who, id)
end

-- The coroutine of an exchange: whatever happens, it is answered and released.
function M.handle(server, x)
  local id = C.pl_exchange_id(x)
  server.exchanges[id] = x
  local who = identity.of(x)
  local ok, why = xpcall(dispatch, debug.traceback, server, x, who)
  if not ok then
    who.log:error("%s", why)
    serve.refuse(x, { status = 500, message = "Internal server error" })
  end
  server.exchanges[id] = nil
  C.pl_exchange_release(x)
end

return M
