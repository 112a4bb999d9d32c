-- SPDX-License-Identifier: Apache-2.0
-- recipe/hooks.lua - asks a recipe's hooks, and answers where they do not.
--
--     local refused = hooks.ask(server, "admit", req)          nil: come in
--     local answer = hooks.ask(server, "migrate", req, lost) { fail } or { avoid, after }
--     hooks.tell(server, done, req, result)
--     local row, by = hooks.choose(server, "worker", req, view)
--
-- A hook cannot stop the world, and never breaks a request: where it fails or answers
-- what it may not, the default answers. Compiled code cannot be interrupted, so a hook is
-- first on probation, interpreted and counted; one that got through is timed.
--
--     new, swapped --64 calls, each within the budget--> trusted
--         '--------one exceeds it--> disabled: the default applies until it is replaced

local pl = require "perilune.ffi"
local fleet_view = require "perilune.recipe.fleet_view"
local log = require "perilune.log"
local memory = require "perilune.recipe.memory"
local own = require "perilune.recipe.own"
local recipe_print = require "perilune.recipe.print"
local rows = require "perilune.watch.metrics_rows"
local settings = require "perilune.recipe.resolve"
local values = require "perilune.recipe.option_value"
local verdict = require "perilune.recipe.verdict"
local view = require "perilune.recipe.hook_view"
local C, ffi = pl.C, pl.ffi

local M = {}

-- Calls that a hook is on probation for, and the instructions that each may take: some
-- milliseconds when interpreted.
M.PROBATION, M.BUDGET = 64, 1e6
local QUIET_NS = 60e9                       -- between two lines about one hook's errors
local MAX_REACHED = 4096                    -- functions and tables seen behind a hook

-- a hook's function -> its path -> its state, which does not hold the function
local states = setmetatable({}, { __mode = "k" })

-- ---- answers ------------------------------------------------------------------------

local function lost_text(lost)
  return ("Worker %s was lost (%s)"):format(lost.name, lost.reason)
end

-- What is answered where no hook does.
local DEFAULTS = {
  migrate = function(server, req, lost)
    local recipe = server.recipe
    local longest = recipe.migration_max_seq_len
    if longest and req.total > longest then
      return { too_long = true, fail = ("%s; %d tokens are more than "
        .. "migration_max_seq_len (%d)"):format(lost_text(lost), req.total, longest) }
    end
    if req.moves >= recipe.migration_limit then
      return { fail = lost_text(lost) .. "; migration limit exhausted" }
    end
    return { avoid = lost.name, after = 0 }
  end,
}

local function default(server, path, req, about)
  local answer = DEFAULTS[path]
  return answer and answer(server, req, about)
end

-- What the client is told that pl.reject turns away.
local function refusal(v)
  local again = v.retry_after
  return { status = v.status, message = v.why,
    headers = again and ("Retry-After: %.0f\r\n"):format(math.ceil(again)) or nil }
end

-- What a hook's answer means; nil and what was wanted where it means nothing.
local READERS = {
  admit = function(v)
    if v == nil then return true end
    if not verdict.is(v, "reject") then
      return nil, "nothing or pl.reject(status, why)"
    end
    return true, refusal(v)
  end,
  migrate = function(v)
    if verdict.is(v, "retry") then return true, { avoid = v.avoid, after = v.after } end
    if verdict.is(v, "fail") then return true, { fail = v.why, message = v.why } end
    return nil, "pl.retry { avoid, after } or pl.fail(why)"
  end,
  done = function() return true end,
  cost = function(v) return true, verdict.is(v, "reject") and refusal(v) or v end,
  roles = function(v)
    if v == nil or type(v) == "number" and v >= 0 and v % 1 == 0 then return true, v end
    return nil, "a number of workers, or nil"
  end,
  split = function(v)
    if type(v) == "boolean" then return true, v end
    return nil, "true or false"
  end,
  queue = function(v)
    if type(v) == "number" and v == v then return true, v end
    return nil, "a number"
  end,
  pick = function(v, fleet)
    if v == nil then return true, -1 end
    local row = fleet:row_of(v)
    if row then return true, row end
    if verdict.is(v, "reject") then return true, refusal(v) end
    return nil, "a worker of this fleet, or nil to wait, or pl.reject(status, why)"
  end,
}

-- The hooks of a pool that are asked.
local OF_POOL, IS_ASKED = {}, { admit = true, migrate = true, done = true,
  roles = true,
  ["decode.split"] = true }
for _, pool in ipairs { "worker", "prefill", "decode" } do
  OF_POOL[pool] = {}
  for _, hook in ipairs { "cost", "pick", "queue" } do
    local path = pool .. "." .. hook
    OF_POOL[pool][hook] = path
    IS_ASKED[path] = pool ~= "prefill" or hook ~= "queue"
  end
end

-- ---- asking -------------------------------------------------------------------------

local function open_metric(kind, row, path)
  local buckets = row[4] and ffi.new("double[?]", #row[4], row[4])
  return C.pl_metric_open(kind, row[2], ('hook="%s"'):format(path), row[3], buckets,
    row[4] and #row[4] or 0)
end

local function nothing() end

-- Drops what is compiled of a hook and of all it can reach, but for perilune's own: it
-- may have run before, in a console or under another hook.
local function flush(fn)
  memory.walk(fn, MAX_REACHED, nothing, function(f) jit.flush(f, true) end)
end

local function place(fn)
  local info = debug.getinfo(fn, "S")
  local file = info.source:match "^@(.*)" or info.short_src
  return info.what == "C" and "C" or ("%s:%d"):format(file, info.linedefined)
end

local latest = {}                           -- path -> the state of what was asked last

-- The loop that asks a cost: one for each, for the compiler. What it compiles holds the
-- hook, so of those that were replaced there is none.
local function loop_of(state)
  local before = latest[state.path]
  if before ~= state then
    if before then before.loop = nil end
    latest[state.path], state.loop = state, fleet_view.loop()
  end
  return state.loop
end

local function state_of(path, fn)
  local of = states[fn] or {}
  states[fn] = of
  local state = of[path]
  if state then return state end
  local where = place(fn)
  local kind, pool = path:match "[^.]*$", path:match "^(prefill)%."
  local title = ("%s (%s)"):format(path, where)
  state = { path = path, pool = pool, place = where, title = title,
    name = "the hook " .. title,
    left = M.PROBATION, calls = 0, timed = 0, time = 0, n_errors = 0, quiet_until = 0,
    unsaid = 0, read = READERS[kind], is_cost = kind == "cost",
    decides = kind == "cost" or kind == "pick",
    errors = open_metric(C.PL_COUNTER, rows.hook[1], path),
    seconds = open_metric(C.PL_HISTOGRAM, rows.hook[2], path) }
  of[path] = state
  flush(fn)
  return state
end

local function explain(e)
  if verdict.is(e, "reject") then return e end
  return type(e) == "string" and e or values.show(e, true)
end

local SPENT = {}                            -- what a hook is stopped with

-- Calls it interpreted, under the budget. Answers as pcall does, and where it was when it
-- was stopped. Once stopped it is stopped at each further instruction, for it may hold a
-- pcall; `on_probation` itself is let go on.
local on_probation
function on_probation(fn, a, b, c)
  local compiles, stopped = jit.status(), nil
  local hook, mask, count = debug.gethook()
  local function again()
    if debug.getinfo(2, "f").func ~= on_probation then error(SPENT, 0) end
  end
  jit.off()
  debug.sethook(function()
    local at = debug.getinfo(2, "Sl")
    stopped = ("%s:%d"):format(at.source:match "^@(.*)" or at.short_src, at.currentline)
    debug.sethook(again, "", 1)
    error(SPENT, 0)
  end, "", M.BUDGET)
  local ok, answer = xpcall(fn, explain, a, b, c)
  debug.sethook(hook, mask, count)
  if compiles then jit.on() end
  return ok, answer, stopped
end

-- One call of it is over. Its mean time starts anew when it is trusted, for what is
-- interpreted is slower.
local function count(state, seconds)
  state.calls, state.timed = state.calls + 1, state.timed + 1
  state.time = state.time + seconds
  if state.left == 0 then return C.pl_metric_observe(state.seconds, seconds) end
  state.left = state.left - 1
  if state.left == 0 then state.timed, state.time = 0, 0 end
end

-- Keeps what went wrong, for people, and tells who set it.
local function note_error(state, why)
  C.pl_metric_add(state.errors, 1)
  state.n_errors, state.error, state.error_ns = state.n_errors + 1, why, C.pl_now_ns()
  if state.on_error then state.on_error(why) end
end

local function refuse(state, where)
  state.refused = true
  local why = ("it took more than %d instructions, and was at %s"):format(M.BUDGET, where)
  note_error(state, why)
  log.warning("hook %s (%s) is disabled: %s; the default applies until it is replaced",
    state.path, state.place, why)
end

local function failed(state, why)
  note_error(state, why)
  local now = tonumber(C.pl_now_ns())
  if now < state.quiet_until then
    state.unsaid = state.unsaid + 1
    return
  end
  local more = state.unsaid > 0 and (" (and %d times since the last such line)"):format(
    state.unsaid) or ""
  log.error("hook %s (%s) failed, the default applies: %s%s", state.path,
    state.place, why, more)
  state.quiet_until, state.unsaid = now + QUIET_NS, 0
end

-- A cost is asked about all workers in one call of its loop.
local function run(state, fn, req, about, more)
  local trusted = state.left == 0
  if state.is_cost then
    local loop = loop_of(state)
    if trusted then return xpcall(loop, explain, fn, req, about) end
    return on_probation(loop, fn, req, about)
  end
  if trusted then return xpcall(fn, explain, req, about, more) end
  return on_probation(fn, req, about, more)
end

local function call(state, fn, req, about, more)
  local began = C.pl_now_ns()
  local ok, answer, stopped = run(state, fn, req, about, more)
  count(state, tonumber(C.pl_now_ns() - began) * 1e-9)
  if not stopped then return ok, answer end
  refuse(state, stopped)
  return nil
end

-- The same, while io and the log know what Lua is in: nobody but io can name a hook that
-- does not come back. `kept`: what its recipe keeps.
local function watched(process, kept, state, fn, req, about, more)
  recipe_print.hook = state.name
  if process then process:doing(state.name) end
  local was, was_of = own.enter(kept, state.pool)
  local ok, answer = call(state, fn, req, about, more)
  own.enter(was, was_of)
  if process then process:doing "" end
  recipe_print.hook = nil
  return ok, answer
end

-- What a hook's answer means: true, that, and who it is; false where it gave none that is
-- of use.
-- `fleet`: the view that a pick is told about; `more`: what else the hook is told.
local function answer_of(server, path, fn, req, about, fleet, more)
  local state = state_of(path, fn)
  if state.refused then return false end
  local ok, v = watched(server.process, settings.kept(server.recipe), state, fn, req,
    about, more)
  -- A cost that a pick asks about refuses from within.
  if ok == false and state.decides and verdict.is(v, "reject") then ok = true end
  if ok then
    local good, means = state.read(v, fleet)
    if good then return true, means, state.title end
    v = ("it returned %s; wanted %s"):format(values.show(v, true), means)
  end
  if ok ~= nil then failed(state, v) end
  return false
end

-- The answer of the hook at a path, or the default where there is none, or none that is
-- of use. `req`: of recipe/hook_view.lua; `about`: what the hook is told besides. Of
-- admit: nil, come in, or { status, message, headers }; of migrate: { fail, message } or
-- { avoid, after }; message is for the client.
function M.ask(server, path, req, about)
  local fn, good, means = settings.get(server.recipe, path), nil, nil
  if fn then good, means = answer_of(server, path, fn, req, about) end
  view.close(req)
  if good then return means end
  return default(server, path, req, about)
end

-- Tells a hook `done`, which may have been replaced since, what became of a request.
function M.tell(server, fn, req, result)
  answer_of(server, "done", fn, req, result)
  view.close(req)
end

-- The row of the view, of recipe/fleet_view.lua, that a pool's pick or cost has chosen;
-- -1: the request waits; -2: it is refused; nil: there is no hook, or none that gives an
-- answer of use. And which hook that is, and of a refusal { status, message, headers }.
function M.choose(server, pool, req, fleet)
  local of, paths = server.recipe[pool], OF_POOL[pool]
  local _, row, by
  if of.pick then
    _, row, by = answer_of(server, paths.pick, of.pick, req, fleet:fleet(), fleet)
  elseif of.cost then
    _, row, by = answer_of(server, paths.cost, of.cost, req, fleet)
  end
  view.close(req)
  if type(row) == "table" then return -2, by, row end
  return row, by
end

-- Whether decode's split wants a prefill worker to read the prompt: `w` goes on,
-- `prefill` is a fleet. Without the hook, or an answer of use, always.
function M.split(server, req, w, prefill)
  local pool = server.recipe[server.recipe.main]
  local fn = pool.split
  if not fn then return true end
  local ok, reads = answer_of(server, "decode.split", fn, req, w, nil, prefill)
  view.close(req)
  return not ok or reads
end

-- How many workers should read prompts, by the hook `roles`, which is told of both pools;
-- nil: as many as there are, or it does not say.
function M.roles(server, fn, prefill, decode)
  local _, n = answer_of(server, "roles", fn, prefill, decode)
  return n
end

-- Where in line a pool's queue puts a request; nil: there is no hook, or none that says.
function M.rank(server, pool, req)
  local _, rank = answer_of(server, OF_POOL[pool].queue, server.recipe[pool].queue, req)
  view.close(req)
  return rank
end

-- Whether the hook at a path is asked in this release.
function M.is_asked(path)
  return IS_ASKED[path] == true
end

local function standing(state)
  if state.refused then return "disabled" end
  return state.left > 0 and "on probation" or "trusted"
end

-- Of the hook at a path, for people: standing ("trusted", "on probation", "disabled"),
-- left (calls of its probation), calls, mean (seconds), errors, and of the last one
-- `error` and error_ago (seconds). nil while it was not asked.
function M.about(recipe, path)
  local fn = settings.get(recipe, path)
  local state = fn and states[fn] and states[fn][path]
  if not state or state.calls == 0 then return nil end
  return { standing = standing(state), left = state.left, calls = state.calls,
    mean = state.timed > 0 and state.time / state.timed or nil, errors = state.n_errors,
    error = state.error, error_ago = state.error
      and tonumber(C.pl_now_ns() - state.error_ns) * 1e-9 or nil }
end

-- From now on calls on_error(why) each time that the hook which stands at a path fails.
function M.watch(recipe, path, on_error)
  state_of(path, settings.get(recipe, path)).on_error = on_error
end

return M
