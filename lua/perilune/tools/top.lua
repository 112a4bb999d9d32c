-- SPDX-License-Identifier: Apache-2.0
-- tools/top.lua - perilune top NAME: where a process's time goes, drawn again each
-- second.

local engine = require "perilune.ffi"
local locals = require "perilune.tools.local_processes"
local object = require "perilune.console.object"
local steps = require "perilune.watch.steps"
local C = engine.C

local M = {}

local TIMEOUT_MS, EVERY_MS = 10000, 1000
local CLEAR = "\27[H\27[2J"

-- What a worker has done since it was asked before: the difference of its counters, for
-- of very short steps more are made in a second than are remembered.
local function rates(now, before)
  local s = before and now.at - before.at or 0
  if s <= 0 then return "" end
  local function rate(field) return (now[field] - before[field]) / s end
  return ("\nthe last %.1f s: %.1f tokens/s made, %.1f prompt tokens/s, %.1f steps/s")
    :format(s, rate "generation_tokens", rate "prompt_tokens", rate "steps")
end

local function worker_text(w, before)
  local now = w.now
  local head = ("%s   %d running, %d waiting   blocks %d of %d in use, %d hold a prefix")
    :format(w.reads and w.name .. " (prefill)" or w.name, now.running, now.waiting,
      now.blocks_used, now.blocks, now.blocks_cached)
  if not w.steps then return head .. "\nin another process: perilune top " .. w.name end
  return ("%s%s\nlast %d steps in %.2f s: %.1f tokens/s\n%s"):format(head,
    rates(now, before), w.steps, w.seconds, w.tokens_per_s,
    object.columns(steps.cells(w), "  "))
end

-- `before`: the answer of a second ago, if there is one.
local function text_of(answer, before)
  local then_of, parts = {}, {}
  for _, w in ipairs(before and before.workers or {}) do then_of[w.name] = w.now end
  for i, w in ipairs(answer.workers) do parts[i] = worker_text(w, then_of[w.name]) end
  return answer.name .. "\n\n" .. table.concat(parts, "\n\n") .. "\n"
end

-- Whether q or Ctrl-C came within that time.
local function told_to_end(ms)
  local until_ns = C.pl_now_ns() + ms * 1000000
  repeat
    local left = tonumber(until_ns - C.pl_now_ns()) / 1e6
    local key = C.pl_terminal_key(math.max(0, math.ceil(left)))
    if key == ("q"):byte() or C.pl_terminal_interrupts() > 0 then return true end
  until C.pl_now_ns() >= until_ns
  return false
end

local function watch(connection)
  local before
  repeat
    local answer, why = connection:get "/steps"
    if not answer then return nil, why end
    io.write(CLEAR, text_of(answer, before), "\nq ends\n")
    io.flush()
    before = answer
  until told_to_end(EVERY_MS)
  return true
end

local function show(connection)
  if C.pl_terminal_is(0) == 0 or C.pl_terminal_is(1) == 0 then
    local before = connection:get "/steps"
    C.pl_client_poll(nil, 0, nil, EVERY_MS)
    local answer, why = connection:get "/steps"
    if answer then io.write(text_of(answer, before)) end
    return answer, why
  end
  C.pl_terminal_catch(1)
  C.pl_terminal_keys(1)
  local ok, why = watch(connection)
  C.pl_terminal_keys(0)
  C.pl_terminal_catch(0)
  return ok, why
end

function M.run(words, complain)
  if words[1] == "--help" then
    print "perilune top [NAME]: an engine's steps, each second; q ends"
    return 0
  end
  if words[2] or (words[1] or ""):sub(1, 1) == "-" then
    return complain(("top takes a name, not '%s'"):format(words[2] or words[1]),
      "perilune top --help")
  end
  local connection, why, hint = locals.find(words[1], TIMEOUT_MS)
  local ok = connection
  if connection then
    ok, why, hint = show(connection)
    connection:close()
  end
  if ok then return 0 end
  io.stderr:write("perilune: ", why, "\n", hint and "    " .. hint .. "\n" or "")
  return 1
end

return M
