-- SPDX-License-Identifier: Apache-2.0
-- tools/attach.lua - perilune attach NAME: a Lua prompt inside a running process.
--
-- At a terminal lines are edited, kept and completed; what is piped in is read line by
-- line. Ctrl-C clears a line or ends what runs, Ctrl-D leaves.

local engine = require "perilune.ffi"
local cjson = require "cjson.safe"
local edited = require "perilune.tools.terminal_line"
local flags = require "perilune.recipe.command_line"
local json = require "perilune.json"
local locals = require "perilune.tools.local_processes"
local recipe = require "perilune.console.recipe"
local visit = require "perilune.tools.bus_visit"
local C = engine.C

local M = {}

local TIMEOUT_MS = 30000
local MOST_LISTED = 60

local USAGE = [[
perilune attach [NAME] [-e EXPR] [--json]

  NAME       a process that `perilune ps` shows, such as frontend/0; without it
             the only one of this machine
  -e EXPR    evaluate this, print what it is, and leave; exit code 1 where it fails

Where a bus is named, NAME is a process on it. One on another machine must let
consoles in by its recipe (allow_remote_console):
]]

local function rows()
  return flags.rows(visit.rows { { "json", false, "print values as JSON" } })
end

-- A process may be asked to print what its clients sent: nothing moves the cursor.
local function harmless(text)
  return (text:gsub("[%z\1-\8\11-\31\127]", ""):gsub("\194[\128-\159]", ""))
end

-- The words as options: name, expression, help, json and the bus's; or nil and why.
local function parse(words)
  local rest, name, expression = {}, nil, nil
  local i = 1
  while i <= #words do
    if words[i] == "-h" or words[i] == "--help" then return { help = true } end
    if words[i] == "-e" then
      i = i + 1
      expression = words[i]
      if not expression then return nil, "'-e' needs an expression" end
    elseif not name and not rest[1] and words[i]:sub(1, 1) ~= "-" then
      name = words[i]
    else
      rest[#rest + 1] = words[i]
    end
    i = i + 1
  end
  local o, why = flags.options(rows(), rest)
  if not o then return nil, why end
  o.name, o.expression = name, expression
  return o
end

-- A way to a process: post(path, text) gives a status and a text, or nil, message, name.
local function by_socket(connection)
  return { close = function() connection:close() end, post = function(path, text)
    local parts = {}
    local response, why, name = connection:request("POST", path, text,
      function(piece) parts[#parts + 1] = piece end,
      function() return C.pl_terminal_interrupts() > 0 end)
    if not response then return nil, why, name end
    return response.status, table.concat(parts)
  end }
end

local function by_bus(v, name)
  return { close = function() v:close() end, post = function(path, text)
    local answer, why = v:ask(name, "console", path .. "\n" .. text)
    if not answer then return nil, why end
    local status, body = answer:match "^(%d+)\n(.*)$"
    return tonumber(status), body
  end }
end

-- Another deployment on this machine may well use the same names, so only the bus says
-- which process is meant. One that is here is reached by its socket all the same: that
-- one lets its owner in, whatever its recipe says of consoles on the bus.
local function find_on_bus(o)
  local v, lost = visit.open(o)
  if not v then return nil, lost end
  local hello, why, hint = v:find(o.name)
  local here = hello and locals.of(hello, TIMEOUT_MS)
  if hello and not here then return by_bus(v, o.name), o.name end
  v:close()
  if here then return by_socket(here), o.name end
  return nil, why, hint
end

-- The way to the process that the options name, and its name; or nil, why, hint.
local function find(o)
  if o.bus and o.name then return find_on_bus(o) end
  local connection, name, hint = locals.find(o.name, TIMEOUT_MS)
  if connection then return by_socket(connection), name end
  return nil, name, hint
end

-- Asks the process: its answer as a table, or nil, message, name.
local function ask(console, path, body)
  body.console = console.id
  local status, text, name = console.way.post(path, assert(json.encode(body)))
  if not status then return nil, text, name end
  local answer = (path == "/eval" and console.json and json or cjson).decode(text)
  if status ~= 200 or type(answer) ~= "table" then
    return nil, type(answer) == "table" and answer.error or "the answer is not JSON"
  end
  return answer
end

local function print_answer(console, answer)
  if console.json then
    local value = answer.value
    if answer.error then value = json.object("error", answer.error) end
    io.write(assert(json.encode(value)), "\n")
  else
    if answer.text and answer.text ~= "" then io.write(harmless(answer.text), "\n") end
    if answer.error then
      io.stdout:flush()
      io.stderr:write("error: ", harmless(answer.error), "\n")
    end
  end
  io.stdout:flush()
end

-- Evaluates and prints: whether it went well; nil where more lines are wanted.
local function evaluate(console, text, interactive)
  local answer, why, name = ask(console, "/eval",
    { text = text, interactive = interactive, json = console.json })
  if answer and answer.more then return nil end
  if not answer and name == "PL_ECANCELED" then
    answer = { error = "interrupted" }
  elseif not answer then
    answer = { error = why }
    if name then console.lost = name ~= "PL_ETIMEOUT" end
  end
  print_answer(console, answer)
  return not answer.error
end

-- ---- at a terminal --------------------------------------------------------------------

local function common(list)
  local s = list[1]
  for _, other in ipairs(list) do
    while other:sub(1, #s) ~= s do s = s:sub(1, -2) end
  end
  return s
end

local function list_candidates(candidates)
  local width, lines = 0, { "" }
  for i, name in ipairs(candidates) do
    if i <= MOST_LISTED then width = math.max(width, #name + 2) end
  end
  local columns, row = math.max(1, math.floor(78 / width)), {}
  for i, name in ipairs(candidates) do
    if i > MOST_LISTED then
      row[#row + 1] = "..."
      break
    end
    row[#row + 1] = name .. (" "):rep(width - #name)
    if #row == columns then
      lines[#lines + 1], row = table.concat(row), {}
    end
  end
  lines[#lines + 1] = table.concat(row)
  io.write(harmless(table.concat(lines, "\n")), "\n")
  io.stdout:flush()
end

-- Tab: types what is certain; where nothing is, shows what could be.
local function complete(console, line, before, typed)
  local answer = ask(console, "/complete", { text = before .. typed })
  if not answer or #answer.candidates == 0 then return end
  local part = (before .. typed):sub(-1024):sub(answer.from)
  local certain = common(answer.candidates):sub(#part + 1)
  if certain:find "^[%w_.:(]+$" then return line:type(certain) end
  if #answer.candidates > 1 then
    list_candidates(answer.candidates)
    line:redraw()
  end
end

-- What names a secret is not kept.
local function remember(line, text)
  if not text:find "%S" or recipe.without_secrets(text) ~= text then return end
  line:remember(text)
end

local function converse(console, line)
  local first = console.name .. "> "
  local more = (" "):rep(math.max(#first - 5, 0)) .. "...> "
  local before = ""
  while not console.lost do
    local text, cleared = line:read(before == "" and first or more, function(typed)
      complete(console, line, before, typed)
    end)
    if not text and not cleared then return end
    if cleared then
      before = ""
    elseif (before .. text):find "%S" then
      remember(line, text)
      local whole = evaluate(console, before .. text, true) ~= nil
      before = whole and "" or before .. text .. "\n"
    else
      evaluate(console, "", true)           -- Enter alone asks for news
    end
  end
end

-- ---- from a pipe ----------------------------------------------------------------------

local function read_all(console)
  local before, ok = "", true
  for text in io.lines() do
    text = before .. text
    local went = not text:find "%S" or evaluate(console, text, true)
    before = went == nil and text .. "\n" or ""
    ok = ok and went ~= false
    if console.lost then return false end
  end
  if before ~= "" then ok = evaluate(console, before, false) and ok end
  return ok
end

local function converse_at_terminal(console)
  local line, why = edited.open "history"
  if not line then return nil, why end
  io.write(console.name, "   help() lists what there is, Ctrl-D leaves\n")
  io.stdout:flush()
  C.pl_terminal_catch(1)
  converse(console, line)
  C.pl_terminal_catch(0)
  line:close()
  return not console.lost
end

function M.run(words, complain)
  local o, why = parse(words)
  if not o then return complain(why, "perilune attach --help") end
  if o.help then
    print(USAGE .. flags.help(rows()))
    return 0
  end
  local way, name, hint = find(o)
  if not way then
    io.stderr:write("perilune: ", name, "\n", hint and "    " .. hint .. "\n" or "")
    return 1
  end
  local console = { way = way, name = name, json = o.json,
    id = not o.expression and bit.tohex(C.pl_entropy()) or nil }
  local ok
  if o.expression then
    ok = evaluate(console, o.expression, false)
  elseif C.pl_terminal_is(0) ~= 0 and C.pl_terminal_is(1) ~= 0 then
    ok, why = converse_at_terminal(console)
    if why then io.stderr:write("perilune: ", why, "\n") end
  else
    ok = read_all(console)
  end
  way.close()
  return ok and 0 or 1
end

return M
