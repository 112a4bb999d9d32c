-- SPDX-License-Identifier: Apache-2.0
-- order.lua - perilune drain NAME, resume NAME: a word to a process, here or on a bus.

local flags = require "perilune.flags"
local json = require "cjson.safe"
local locals = require "perilune.local"
local visit = require "perilune.visit"

local M = {}

local TIMEOUT_MS = 10000

local ABOUT = {
  drain = "it takes nobody new, finishes within drain_timeout, hands the rest over",
  resume = "it takes requests again",
}

local function post(c, word, name)
  local parts = {}
  local response = c:request("POST", "/" .. word, json.encode { worker = name },
    function(piece) parts[#parts + 1] = piece end)
  return response and json.decode(table.concat(parts))
end

-- Says it to a process of this machine: { text } or { error }; nil, why: it is not here.
-- Where all is one process its frontend is asked for a worker.
local function say_here(word, name)
  local list, why = locals.about()
  if not list then return nil, why end
  for _, p in ipairs(list) do
    local worker_of = p.role == "frontend" and name:find "^worker/" and not p.bus
    if p.name == name or worker_of then
      local c = locals.connection(p.path, TIMEOUT_MS)
      local answer = post(c, word, name)
      c:close()
      return answer or { error = "it did not answer" }
    end
  end
  return nil, ("no process '%s' of yours runs here"):format(name)
end

local function say(word, name, options)
  local answer, why = say_here(word, name)
  if type(answer) == "table" then return answer.text, answer.error end
  if not options.bus then return nil, why end
  local v
  v, why = visit.open(options)
  if not v then return nil, why end
  local text
  text, why = v:ask(name, word, name)
  v:close()
  return text, why
end

function M.run(word, words, complain)
  local rows = flags.rows(visit.rows {})
  local name = table.remove(words, 1)
  if not name or name:find "^%-" then
    if name == "--help" then
      print(("perilune %s NAME: %s\n\n%s"):format(word, ABOUT[word], flags.help(rows)))
      return 0
    end
    return complain(("'%s' needs the name of a process"):format(word),
      ("perilune %s worker/0"):format(word))
  end
  local options, wrong, hint = flags.options(rows, words)
  if not options then return complain(wrong, hint) end
  local text, why = say(word, name, options)
  if text then
    print(text)
    return 0
  end
  io.stderr:write("perilune: ", tostring(why), "\n")
  return 1
end

return M
