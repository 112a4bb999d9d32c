-- SPDX-License-Identifier: Apache-2.0
-- tools/drain_resume.lua - perilune drain NAME, resume NAME, role NAME ROLE: a word to a
-- process, here or on a bus.
--
-- Where a bus is named only that is asked: another deployment on this machine may well
-- use the same names. A *way* to a process is { ask(word), close() }: what it answers, or
-- nil and why.

local engine = require "perilune.ffi"
local flags = require "perilune.recipe.command_line"
local json = require "cjson.safe"
local locals = require "perilune.tools.local_processes"
local visit = require "perilune.tools.bus_visit"

local M = {}

local TIMEOUT_MS = 10000
local IS_WORKER = { worker = true, prefill = true, decode = true }
-- How much longer than its drain_timeout a drain may take: what is left is handed over.
local GRACE_SECONDS = 15

local ABOUT = {
  drain = "take no new requests, finish within drain_timeout, hand over the rest",
  resume = "take requests again",
  role = "prefill, and it reads prompts; or decode, and it answers",
}

local function post(path, word, name, role)
  local parts, c = {}, locals.connection(path, TIMEOUT_MS)
  local body = json.encode { worker = name, role = role }
  local response = c:request("POST", "/" .. word, body,
    function(piece) parts[#parts + 1] = piece end)
  c:close()
  local answer = response and json.decode(table.concat(parts))
  if type(answer) ~= "table" then return nil, "it did not answer" end
  return answer.text, answer.error
end

-- The process that a name means. Roles are of single engines too: these are called as
-- their process is, with a number behind it.
local function process_of(name, options)
  return options.role and name:gsub("%.%d+$", "") or name
end

-- The way to a process of this machine. Where all is one process its frontend is asked
-- for a worker.
local function way_here(name, options)
  local list, why = locals.about()
  if not list then return nil, why end
  local found, path = {}, nil
  for _, p in ipairs(list) do
    local worker_of = p.role == "frontend" and not p.bus
      and IS_WORKER[name:match "^(%l+)/"]
    if p.name == process_of(name, options) or worker_of then
      path = p.path
      found[#found + 1] = locals.told_apart(p, name)
    end
  end
  if #found == 0 then
    return nil, ("you have no process '%s' running here"):format(name)
  end
  if #found > 1 then return nil, locals.ambiguous(name, found) end
  return { close = function() end,
    ask = function(word) return post(path, word, name, options.role) end }
end

local function way_on_bus(name, options)
  local v, lost = visit.open(options)
  if not v then return nil, lost end
  local process = process_of(name, options)
  local hello, why, hint = v:find(process)
  if hello then
    return { close = function() v:close() end,
      ask = function(word)
        return v:ask(process, word, options.role and name .. " " .. options.role or name)
      end }
  end
  v:close()
  return nil, why, hint
end

local function now()
  return tonumber(engine.C.pl_now_ns()) * 1e-9
end

-- How far its drain is: { drained, state, drain_timeout }; or nil and why.
local function look(way)
  local text, why = way.ask "drained"
  local answer = text and json.decode(text)
  if type(answer) == "table" then return answer end
  return nil, why or "it did not answer"
end

-- Drains it, unless that is under way, and waits for the end.
local function drain_all(way, name)
  local answer, why = look(way)
  if not answer then return nil, why end
  if answer.state == "ready" then
    local ok
    ok, why = way.ask "drain"
    if not ok then return nil, why end
  end
  local deadline = now() + GRACE_SECONDS + (tonumber(answer.drain_timeout) or 0)
  repeat
    answer, why = look(way)
    if not answer then return nil, why end
    if answer.drained == true then return ("%s is drained"):format(name) end
    if answer.state == "ready" then return nil, ("%s was resumed"):format(name) end
  until now() > deadline
  return nil, ("%s is still not drained"):format(name)
end

-- Says it: what to print; or nil, why, hint.
local function say(word, name, options)
  local open = options.bus and way_on_bus or way_here
  local way, why, hint = open(name, options)
  if not way then return nil, why, hint end
  local text
  if options.wait then
    text, why = drain_all(way, name)
  else
    text, why = way.ask(word)
  end
  way.close()
  return text, why
end

function M.run(word, words, complain)
  local rows = flags.rows(visit.rows(word == "drain" and {
    { "wait", false, "return once nothing runs there any more, or fail" } } or {}))
  local name = table.remove(words, 1)
  if not name or name:find "^%-" then
    if name == "--help" then
      local more = word == "role" and " ROLE" or ""
      print(("perilune %s NAME%s: %s\n\n%s"):format(word, more, ABOUT[word],
        flags.help(rows)))
      return 0
    end
    return complain(("'%s' needs the name of a process"):format(word),
      ("perilune %s worker/0"):format(word))
  end
  local role = word == "role" and table.remove(words, 1) or nil
  if word == "role" and role ~= "prefill" and role ~= "decode" then
    return complain(("'%s' is no role"):format(role or ""),
      ("perilune role %s prefill, or decode"):format(name))
  end
  local options, wrong, hint = flags.options(rows, words)
  if not options then return complain(wrong, hint) end
  options.role = role
  local text, why
  text, why, hint = say(word, name, options)
  if text then
    print(text)
    return 0
  end
  io.stderr:write("perilune: ", tostring(why), "\n")
  if hint then io.stderr:write("    ", hint, "\n") end
  return 1
end

return M
