-- SPDX-License-Identifier: Apache-2.0
-- console/run.lua - runs what a person typed so that it ends, whatever it is.
--
-- Serving waits meanwhile, so there is a budget of time and of memory, and whoever asked
-- may stop it. A hook looks at them every few instructions; hooks do not fire in compiled
-- code, so nothing is compiled while it runs, and what was compiled before and is not
-- perilune's own must be forgotten before it is called (`forget`).
--
-- Functions of C cannot be interrupted: those that could run for long with little to do
-- are bounded here, and strings' methods are these while it runs.

local pl = require "perilune.ffi"
local C = pl.C
local byte, gsub = string.byte, string.gsub
local sethook, gethook, getinfo = debug.sethook, debug.gethook, debug.getinfo
local getmetatable = debug.getmetatable

local M = {}

local disarm

local EVERY = 10                            -- instructions between two looks at memory
local LOOK = 10000                          -- between two looks at the time
local MOST_KB = 64 * 1024                   -- that may be allocated
local MOST_STRING = 4 * 2 ^ 20
local MOST_MATCHING = 1e11                  -- tries of a pattern, at worst

M.SECONDS = 2

local function show_count(n)
  return n < 1e6 and ("%.0f"):format(n) or ("%.0f million"):format(n / 1e6)
end

-- The hook, and a table whose `why` says by what it ended it. Whoever catches the error
-- and goes on is ended at the next instruction.
local function watch(gone, seconds)
  local count, look_at = 0, LOOK
  local deadline = tonumber(C.pl_now_ns()) + seconds * 1e9
  local most = collectgarbage "count" + MOST_KB
  local state = {}
  local function stop(why)
    if not state.why then sethook(state.hook, "", 1) end
    state.why = state.why or why
    error(state.why, 0)
  end
  function state.hook()
    if state.why then
      local fn = getinfo(2, "f").func
      if fn ~= M.run and fn ~= disarm then stop() end
      return                                -- it is over, and being put away
    end
    count = count + EVERY
    if collectgarbage "count" > most then
      collectgarbage()                      -- perhaps it was waste; it took time, too
      look_at = 0
      if collectgarbage "count" > most then
        stop(("stopped: it took more than the console's %d MiB of memory")
          :format(MOST_KB / 1024))
      end
    end
    if count < look_at then return end
    look_at = count + LOOK
    if gone() then stop "stopped: interrupted" end
    if tonumber(C.pl_now_ns()) > deadline then
      stop(("stopped: it ran for %g s, the console's budget (%s instructions)")
        :format(seconds, show_count(count)))
    end
  end
  return state
end

-- ---- functions of C that would not end ------------------------------------------------

local function check_size(size)
  if size > MOST_STRING then
    error(("a string of %.0f bytes; the console makes at most %.0f")
      :format(size, MOST_STRING), 3)
  end
end

local function rep(s, n, between)
  check_size((#tostring(s) + #tostring(between or "")) * (tonumber(n) or 0))
  return string.rep(s, n, between)
end

function M.concat(list, between, from, to)
  from, to = from or 1, to or #list
  local size = #tostring(between or "") * (to - from)
  for i = from, to do size = size + #tostring(list[i]) end
  check_size(size)
  return table.concat(list, between, from, to)
end

-- Each `*`, `+`, `-` may try every length, and a match every place.
local function check_pattern(s, pattern)
  s, pattern = tostring(s), tostring(pattern)
  local _, repeats = gsub(pattern, "[%*%+%-]", "")
  if byte(pattern) ~= 94 then repeats = repeats + 1 end    -- no ^: at every place
  if math.max(#s, 1) ^ repeats > MOST_MATCHING then
    error(("a pattern with so many repeats on %d bytes might not end"):format(#s), 3)
  end
end

local function guarded(name)
  local fn = string[name]
  return function(s, pattern, ...)
    check_pattern(s, pattern)
    return fn(s, pattern, ...)
  end
end

local strings = {}
for name in ("byte char format len lower reverse sub upper"):gmatch "%a+" do
  strings[name] = string[name]
end
for name in ("gmatch gsub match"):gmatch "%a+" do strings[name] = guarded(name) end
strings.rep = rep
function strings.find(s, pattern, init, plain)
  if not plain then check_pattern(s, pattern) end
  return string.find(s, pattern, init, plain)
end
M.strings = strings

-- ---- running --------------------------------------------------------------------------

-- Before a function that is not perilune's own is called: it may have been compiled.
function M.forget()
  jit.flush()
end

local active                                -- the state of what runs
local before                                -- how things were

local function arm(state)
  local meta = getmetatable ""
  before = { jit = jit.status(), strings = meta.__index, hook = { gethook() } }
  jit.off()
  meta.__index = strings
  active = state
  sethook(state.hook, "", EVERY)
end

function disarm()
  sethook(unpack(before.hook, 1, 3))
  getmetatable("").__index = before.strings
  if before.jit then jit.on() end
  active = nil
end

-- From what runs here, calls a function of perilune's own that may take its time, compile
-- and watch for itself.
function M.outside(fn, ...)
  local state = active
  if not state then return fn(...) end
  disarm()
  local results = { pcall(fn, ...) }
  arm(state)
  if not results[1] then error(results[2], 0) end
  return unpack(results, 2, table.maxn(results))
end

-- What is called once nothing runs any more, however it ended.
function M.at_end(fn)
  if not active then return end
  active.ends = active.ends or {}
  table.insert(active.ends, fn)
end

-- Calls fn(...): true and what it answers, or false and why not. gone(): whether whoever
-- asked has left.
function M.run(gone, fn, ...)
  local state = watch(gone, M.SECONDS)
  arm(state)
  local results = { pcall(fn, ...) }
  disarm()
  for _, last in ipairs(state.ends or {}) do last() end
  if state.why then return false, state.why end   -- even where it caught the error
  return unpack(results, 1, table.maxn(results))
end

return M
