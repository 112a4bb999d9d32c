-- SPDX-License-Identifier: Apache-2.0
-- top.lua - perilune top NAME: where a process's time goes, drawn again each second.

local engine = require "perilune.ffi"
local locals = require "perilune.local"
local object = require "perilune.console_object"
local steps = require "perilune.steps"
local C = engine.C

local M = {}

local TIMEOUT_MS, EVERY_MS = 10000, 1000
local CLEAR = "\27[H\27[2J"

local function worker_text(w)
  local now = w.now
  local head = ("%s   %d running, %d waiting   blocks %d of %d in use, %d hold a prefix")
    :format(w.name, now.running, now.waiting, now.blocks_used, now.blocks,
      now.blocks_cached)
  if not w.steps then return head .. "\nin another process: perilune top " .. w.name end
  return ("%s\nlast %d steps in %.2f s: %.1f tokens/s\n%s"):format(head, w.steps,
    w.seconds, w.tokens_per_s, object.columns(steps.cells(w), "  "))
end

local function text_of(answer)
  local parts = {}
  for i, w in ipairs(answer.workers) do parts[i] = worker_text(w) end
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
  repeat
    local answer, why = connection:get "/steps"
    if not answer then return nil, why end
    io.write(CLEAR, text_of(answer), "\nq ends\n")
    io.flush()
  until told_to_end(EVERY_MS)
  return true
end

local function show(connection)
  if C.pl_terminal_is(0) == 0 or C.pl_terminal_is(1) == 0 then
    local answer, why = connection:get "/steps"
    if answer then io.write(text_of(answer)) end
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
