-- SPDX-License-Identifier: Apache-2.0
-- fleet/moves.lua - where a choice runs: it is given to a worker, and when that is lost,
-- to another one, or not.
--
-- A choice's stream keeps its sequence, prompt and tokens so far, so whoever takes it
-- goes on where it stood, with the same seed at the same position: the client sees a
-- pause, and the text it would have seen.

local pl = require "perilune.ffi"
local cluster = require "perilune.fleet.cluster"
local flow = require "perilune.flow"
local hooks = require "perilune.recipe.hooks"
local line = require "perilune.fleet.line"
local requests = require "perilune.watch.requests"
local upstream = require "perilune.fleet.upstream"
local C, ffi = pl.C, pl.ffi

local M = {}

local seq_ptr = ffi.typeof "pl_seq *"

-- How long a new request waits for a worker where none can take it now.
local WAIT_SECONDS = 10
local UNAVAILABLE = "Service temporarily unavailable"
local NOT_KNOWN = UNAVAILABLE .. ": %s refused the request: %s"
local SAID = UNAVAILABLE .. ": %s: %s"
local CUT = UNAVAILABLE .. ": %s: %s; the answer so far is no plain text of a single "
  .. "choice, so no other server can go on with it"
local FULL = UNAVAILABLE .. ": All workers are busy, please retry later"
-- What is said of one that was ended before it began.
local CANCELLED = { status = 499, message = "The request was cancelled.",
  cancelled = true }
local STOPPING = { status = 503, message = "The server is stopping.", cancelled = true }

-- ---- giving it away -----------------------------------------------------------------

-- An engine's log, here or elsewhere, calls it as this one does.
local function label(job, seq)
  local fields = job.log:packed()
  if #fields > 0 then C.pl_seq_label(seq, fields, #fields) end
end

-- The worker has it.
local function enter(choice, w, at)
  choice.sent_ns = at
  choice.waits, choice.lost = nil, nil
  choice.worker, choice.worker_name = w, w.name
  choice.reader_name = choice.reader and choice.reader.name
  w.n = w.n + 1
  return true
end

local function put_upstream(server, job, choice, w)
  local at = C.pl_now_ns()
  local status = upstream.send(server, job, choice, w)
  if status < 0 then return pl.refusal(status) end
  w.relays[choice.id] = choice.relay
  return enter(choice, w, at)
end

local reads, goes_on = ffi.new "pl_target", ffi.new "pl_target"

local function aim(target, w)
  target.engine, target.peer, target.index = w.engine, w.peer or 0, w.index or 0
end

-- Hands it to worker `w`, or to choice.reader and then to that.
local function start(choice, w, seq)
  local stream, reader = choice.stream, choice.reader
  C.pl_stream_charge(stream, w.load, choice.n_cached or 0)
  if reader then
    C.pl_stream_charge_reader(stream, reader.load, choice.reader_cached or 0)
    aim(reads, reader)
    aim(goes_on, w)
    return C.pl_stream_split(stream, reads, goes_on, seq)
  end
  if w.engine then return C.pl_stream_start(stream, w.engine, seq) end
  return C.pl_stream_send(stream, w.peer, w.index, seq)
end

local function put(server, job, choice, w)
  if w.url then return put_upstream(server, job, choice, w) end
  local seq = choice.seq and ffi.cast(seq_ptr, choice.seq) or nil
  if seq then label(job, seq) end
  local at = C.pl_now_ns()
  local status = start(choice, w, seq)
  if status < 0 then return pl.refusal(status) end
  choice.seq = nil                          -- the stream's, or the engine's
  w.streams[choice.id] = choice.stream
  return enter(choice, w, at)
end

local function leave(choice)
  local w = choice.worker
  if w.url then w.relays[choice.id] = nil else w.streams[choice.id] = nil end
  w.n = w.n - 1
  choice.worker = nil
end

-- Its worker, if it has one, has done with it: that has room for another.
function M.left(choice)
  local w = choice.worker
  if not w then return end
  leave(choice)
  if w.served.line then w.served.line:room(w, 1) end
end

-- For people: what a choice waits for while no worker has it (watch/requests.lua).
local FOR_WORKER, FOR_ROOM = "waits for a worker", "waits for room: every worker is full"

-- The workers that had no room for a choice: nobody, at first. As long as that is so all
-- choices share this.
local NOBODY = {}

local function found_full(choice, w)
  if choice.full == NOBODY then choice.full = {} end
  choice.full[w] = true
end

-- Whether all that take requests had no room for the choice.
local function all_full(job, choice)
  if choice.full == NOBODY then return false end
  local n = 0
  for _, w in ipairs(job.served.workers) do
    if w.state == "ready" then
      if not choice.full[w] then return false end
      n = n + 1
    end
  end
  return n > 0
end

-- `full`: every worker has refused the choice, for lack of room or because it is of
-- another version and does not know what the choice asks for.
local function unavailable(server, full, choice)
  if full and choice.unknown then
    return false, { status = 503, message = choice.unknown,
      headers = "Retry-After: 1\r\n" }
  end
  return false, { status = full and server.recipe.http.overload_status or 503,
    message = full and FULL or UNAVAILABLE, headers = "Retry-After: 1\r\n",
    error_type = full and "overload" or nil }
end

-- The request is over: its stream ends, if it has begun.
local function give_up(server, job, choice)
  if not choice.seq and choice.stream then
    C.pl_stream_cancel(choice.stream)
    return true
  end
  return false, job.over and job.over.status and job.over
    or server.stopping and STOPPING or CANCELLED
end

-- One attempt: true: it runs, or has ended; false and the refusal; or nil: a worker said
-- no.
local function try(server, job, choice, avoid, numerics)
  local full = all_full(job, choice)
  if full and not numerics then return unavailable(server, true, choice) end
  choice.waits = full and FOR_ROOM or FOR_WORKER
  local w, refused = line.of(server, job.served):wait(job, choice, avoid, numerics)
  if refused then return false, refused end
  if not w and line.is_over(job) then return give_up(server, job, choice) end
  if not w then return unavailable(server, all_full(job, choice), choice) end
  local ok, why, name = put(server, job, choice, w)
  if ok or name == "PL_ECANCELED" then return true end
  if name == "PL_EINVAL" then return false, { status = 400, message = why } end
  found_full(choice, w)                     -- its line is full, or it is no longer here
end

-- Gives a choice to a worker that takes it, waited for in line. true: it runs, or has
-- ended; or false and the refusal. `avoid`: not to this one. `numerics`: it has tokens
-- already, made with this id; then it waits for as long as the bus may be away, and for
-- room too. That time does not begin anew when one says no from afar.
function M.place(server, job, choice, avoid, numerics)
  choice.deadline = choice.deadline
    or flow.now() + (numerics and server.recipe.bus_patience or WAIT_SECONDS)
  choice.full = choice.full or NOBODY
  local done, refused = try(server, job, choice, avoid, numerics)
  while done == nil do
    done, refused = try(server, job, choice, avoid, numerics)
  end
  return done, refused
end

-- ---- losing it ----------------------------------------------------------------------

-- What a drain hands over and what a worker had no room for is not the request's fault.
local UNCOUNTED = { [C.PL_LOST_RECALLED] = true, [C.PL_LOST_LEFT] = true,
  [C.PL_LOST_REFUSED] = true }

-- Nor is it one if the worker that was to read the prompt did not: the other reads it.
local function is_counted(ev, lost, by_reader)
  if by_reader then return false end
  local leaving = lost.was_leaving or lost.state == "draining" or lost.state == "leaving"
  return not UNCOUNTED[ev.a] and not leaving
end

local function refused_for_good(ev)
  return ev.a == C.PL_LOST_REFUSED and ev.b == C.PL_EINVAL
end

-- The worker, or the one that was to read the prompt for it, and true. Then nobody else
-- is asked to.
local function who_is_lost(choice)
  if choice.relay or C.pl_stream_by_reader(choice.stream) == 0 then
    return choice.worker, false
  end
  choice.unsplit = true
  return choice.reader, true
end

-- Asks whether the choice may move, and how: the answer of recipe/hooks.lua.
local function ask(server, job, choice, ev, lost)
  local answer = hooks.ask(server, "migrate", job:look(choice), { name = lost.name,
    reason = cluster.LOST[ev.a], numerics = lost.numerics })
  if answer.too_long then server.metrics:too_long(job) end
  return answer
end

-- As long as the hook wants it to wait, if anybody still does.
local function pause(job, choice, seconds)
  local over = flow.now() + seconds
  choice.waits = ("waits %.4g s, as migrate says"):format(seconds)
  while flow.now() < over and not line.is_over(job) do
    line.park(job, over - flow.now())
  end
end

local function tell(server, job, n, w, lost)
  job.log:info("recreating stream on %s, %d tokens so far", w.name, n)
  server.metrics:moved(job, n > 0 and "ongoing_request" or "new_request")
  if n > 0 and w.url then
    job.log:warning("%s goes on with the text so far, and not exactly as %s would have",
      w.name, lost.name)
    server.metrics:moved_numerics(job)
  elseif n > 0 and w.numerics ~= lost.numerics then
    job.log:warning("%s rounds differently (%s, not %s)", w.name, w.numerics,
      lost.numerics)
    server.metrics:moved_numerics(job)
  end
end

-- Who had no room is not asked again; after a loss everybody is.
local function set_out(choice, ev, lost, why)
  if ev.a ~= C.PL_LOST_REFUSED then
    choice.full, choice.unknown, choice.deadline = NOBODY, nil, nil
    return
  end
  found_full(choice, lost)
  if ev.b == C.PL_EUNSUPPORTED then
    choice.unknown = NOT_KNOWN:format(lost.name, why)
  elseif choice.relay then
    choice.unknown = SAID:format(lost.name, why)
  end
end

-- The choice's worker was lost (`ev`). true: it runs elsewhere, or has ended otherwise;
-- or nil and what is to be said of it.
function M.move(server, job, choice, ev)
  local lost, by_reader = who_is_lost(choice)
  local why = ffi.string(choice.relay and C.pl_relay_why(choice.relay)
    or C.pl_stream_why(choice.stream))
  local n = requests.so_far(choice).n_tokens   -- nobody adds to it while it is lost
  leave(choice)
  if choice.relay and not upstream.can_go_on(choice) then
    return nil, { status = 503, message = CUT:format(lost.name, why) }
  end
  local why_lost = ("%s: %s"):format(lost.name, cluster.LOST[ev.a])
  choice.lost = why_lost
  if refused_for_good(ev) and not by_reader then
    return nil, { status = 400, message = why }
  end
  if not UNCOUNTED[ev.a] then cluster.suspect(lost) end
  job.log:info("Stream disconnected (%s: %s)... recreating stream...", lost.name,
    why ~= "" and why or cluster.LOST[ev.a])
  local counts = is_counted(ev, lost, by_reader)
  local answer = counts and ask(server, job, choice, ev, lost) or {}
  if answer.fail then
    job.log:warning("Cannot recreate stream: %s", answer.fail)
    return nil, { status = 503, message = answer.message
      or choice.relay and SAID:format(lost.name, why) or UNAVAILABLE }
  end
  if (answer.after or 0) > 0 then pause(job, choice, answer.after) end
  set_out(choice, ev, lost, why)
  local ok, refused = M.place(server, job, choice, answer.avoid == lost.name and lost,
    n > 0 and lost.numerics or nil)
  if not ok then
    job.log:warning("Cannot recreate stream: %s", refused.message)
    return nil, refused
  end
  if not choice.worker then return true end   -- it was over before it could go on
  if counts then choice.moves = (choice.moves or 0) + 1 end
  tell(server, job, n, choice.worker, lost)
  requests.note(job, ("moved to %s (%s)"):format(choice.worker_name, why_lost),
    choice.sent_ns)
  return true
end

return M
