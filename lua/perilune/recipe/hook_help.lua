-- SPDX-License-Identifier: Apache-2.0
-- recipe/hook_help.lua - help for writing hooks: when each is called, its arguments and
-- return values, the default without it, and an example recipe.

local fields = require "perilune.recipe.hook_fields"

local WIDTH = 68

-- A name and its meaning, one string per line, the last of which are some fields' names.
local function of_fields(name, what, rows)
  return { name, what, unpack(fields.names(rows, WIDTH)) }
end

local REQ = of_fields("req", "the request; `perilune help meta` explains all fields:",
  fields.Request)
local WORKER = of_fields("w", "a worker:", fields.Worker)
local FLEET = of_fields("fleet", "the workers that can take it: #fleet, fleet[i], and :",
  fields.Fleet)
local REJECT = { "pl.reject(status, why, after)", "refuse the request, as admit does" }

local hooks = {}
local M = { hooks = hooks }

hooks.admit = {
  call = "admit(req)", asked = "once, when a request has arrived",
  given = { REQ },
  answers = { { "nothing", "accept it" },
    { "pl.reject(status, why, after)", "reject it: a status from 400 to 599, a message",
      "to the client and, optionally, seconds to wait" } },
  absent = "every request is accepted; the same if it fails",
  example = [[
local pl = require "perilune"

local function admit(req)
  if req.tokens > 4096 and req.priority >= 0 then
    return pl.reject(429, "long prompts need a priority below 0", 30)
  end
end

return { admit = admit, worker = {} }]],
}

hooks.migrate = {
  call = "migrate(req, lost)",
  asked = "each time a worker with a request is lost, for each choice of the request",
  given = { REQ, of_fields("lost", "the worker; reason: gone, silent, reset, bus away:",
    fields.Lost) },
  answers = {
    { "pl.retry { avoid =, after = }", "continue on another worker than avoid,",
      "after that many seconds" },
    { "pl.fail(why)", "end the request, with a message to the client" } },
  absent = "pl.retry, up to migration_limit times; the same if it fails",
  example = [[
local pl = require "perilune"

local function migrate(req, lost)
  if req.moves >= 2 then return pl.fail("moved twice, then " .. lost.reason) end
  return pl.retry { avoid = lost.name, after = 0.1 * 2 ^ req.moves }
end

return { migrate = migrate, worker = {} }]],
}

hooks.done = {
  call = "done(req, result)",
  asked = "once for every accepted request, at its end",
  given = { REQ, of_fields("result", "how it ended:", fields.Result) },
  answers = { { "nothing", "the return value is ignored" } },
  absent = "nothing is called",
  example = [[
local pl = require "perilune"

local used = pl.keep("used", pl.lru(1000))      -- tenant -> tokens

local function done(req, result)
  local who = req.tenant or "nobody"
  used:put(who, (used:get(who) or 0) + result.tokens)
end

return { done = done, worker = {} }]],
}

hooks.cost = {
  call = "cost(req, w, fleet)",
  asked = "when a request needs a worker, for each that can take it",
  given = { REQ, WORKER, FLEET },
  answers = { { "a number", "the worker with the lowest takes the request;",
    "math.huge: not this one" }, REJECT },
  absent = "pl.cost.kv { prefill_load_scale = 16 }, costs within 5 % being equal; "
    .. "the same if it fails",
  example = [[
local function cost(req, w)
  return req.blocks - w.cached + w.prefilling + w.decoding
end

return { worker = { cost = cost } }]],
}

hooks.pick = {
  call = "pick(req, fleet)", asked = "when a request needs a worker, instead of cost",
  given = { REQ, FLEET },
  answers = { { "a worker", "it takes the request" },
    { "nil", "the request waits, and the hook is asked again" }, REJECT },
  absent = "as without cost; the same if it fails",
  example = [[
local pl = require "perilune"

local function pick(req, fleet)
  if fleet:min "waiting" > 8 then return nil end
  return fleet:cheapest(req, pl.cost.kv)
end

return { worker = { pick = pick } }]],
}

hooks.queue = {
  call = "queue(req)", asked = "once, when a request begins to wait for a worker",
  given = { REQ },
  answers = { { "a number", "the lowest goes first; of equals, who came first" } },
  absent = "by priority, the lowest first; the same if it fails",
  example = [[
local pl = require "perilune"

return { worker = { queue = pl.queue.wspt } }]],
}

hooks.roles = {
  call = "roles(prefill, decode)", asked = "every 5 seconds, by one frontend",
  given = { { "prefill", "the workers that read prompts, a fleet" },
    { "decode", "those that answer" } },
  answers = { { "a number", "so many should read prompts; one changes at a time" },
    { "nil", "as many as there are" } },
  absent = "nobody changes",
  example = [[
local function roles(prefill, decode)
  local n = #prefill + #decode
  return prefill:sum "prefilling" > decode:sum "decoding" and n / 2 or 1
end

return { roles = roles, prefill = {}, decode = {} }]],
}

hooks.split = {
  call = "split(req, w, prefill)", asked = "once for each request in the decode pool",
  given = { REQ, WORKER, { "prefill", "the workers of that pool" } },
  answers = { { "true or false", "whether one of them reads the prompt" } },
  absent = "always",
  example = [[
local function split(req, w)
  return req.blocks - w.cached >= 32
end

return { prefill = {}, decode = { split = split } }]],
}

local function add_list(out, title, rows)
  local widest = 0
  for _, row in ipairs(rows) do widest = math.max(widest, #row[1]) end
  out[#out + 1] = "  " .. title
  for _, row in ipairs(rows) do
    for i = 2, #row do
      local name = i == 2 and row[1] or ""
      out[#out + 1] = ("    %s%s  %s"):format(name, (" "):rep(widest - #name), row[i])
    end
  end
end

-- The whole help text; `where`: at the top of a recipe or in a pool; `is_asked`: whether
-- this release calls it.
function M.text(name, where, is_asked)
  local h = hooks[name]
  local out = { ("%s   a hook: a function %s"):format(h.call, where),
    ("  %s %s"):format(is_asked and "called" or "not called yet; it will be", h.asked) }
  add_list(out, "arguments", h.given)
  add_list(out, "returns", h.answers)
  out[#out + 1] = "  without it: " .. h.absent
  out[#out + 1] = "  example"
  for line in (h.example .. "\n"):gmatch "(.-)\n" do
    out[#out + 1] = line ~= "" and "    " .. line or ""
  end
  return table.concat(out, "\n")
end

return M
