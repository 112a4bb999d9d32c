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
local function say_here(word, name)
  local list, why = locals.list()
  if not list then return nil, why end
  for _, process in ipairs(list) do
    local c = locals.connection(process.path, TIMEOUT_MS)
    if c:open() then
      local about = c:get "/about"
      local here = type(about) == "table" and (about.name == name
        or about.role == "frontend" and name:find "^worker/" and not about.bus)
      local answer = here and post(c, word, name)
      c:close()
      if answer then return answer end
    end
  end
  return nil, ("no process '%s' of yours runs here"):format(name)
end

local function say(word, name, options)
  local answer, why = say_here(word, name)
  if type(answer) == "table" then return answer.text, answer.error end
  if not options.bus then return nil, why end
  return visit.ask(options, name, word, name)
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
