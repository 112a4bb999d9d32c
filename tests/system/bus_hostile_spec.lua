-- SPDX-License-Identifier: Apache-2.0
-- Someone on the bus who talks nonsense: it is dropped, counted and logged, and requests
-- under way do not notice.
--
-- What is sent under a process's own name is what no process would send: garbage, pieces
-- of frames, frames of another version, frames once more. Whoever may use the bus is
-- trusted not to forge good ones.
local deployment = require "support.deployment"
local load = require "stress.load"
local process = require "support.process"
local requests = require "stress.requests"
local traffic = require "support.traffic"

local SEED = 5
local STRANGER = "00000000deadbeef"

local function garbage(roll, n)
  local out = {}
  for i = 1, n do out[i] = string.char(roll(0, 255)) end
  return table.concat(out)
end

-- The frames' subjects are pl.<namespace>.p.<to>.<from>.
local function under_another_name(subject, id)
  return (subject:gsub("%.%x+$", "." .. id))
end

-- What a frame that was overheard is made into: subject, reply, bytes.
local twists = {
  function(m) return m.subject, m.reply, m.bytes end,
  function(m, roll) return m.subject, m.reply, m.bytes:sub(1, roll(0, #m.bytes - 1)) end,
  function(m, roll) return m.subject, m.reply, string.char(roll(2, 255)) .. m.bytes:sub(2) end,
  function(m, roll)
    local at = roll(1, #m.bytes)
    local bytes = m.bytes:sub(1, at - 1) .. garbage(roll, 1) .. m.bytes:sub(at + 1)
    return under_another_name(m.subject, STRANGER), "", bytes
  end,
  function(m, roll)
    return under_another_name(m.subject, STRANGER), m.reply, garbage(roll, roll(0, 200))
  end,
  function(m) return under_another_name(m.subject, "no-id"), "", m.bytes end,
  function(m) return m.subject:gsub("%.%x+$", ""), "", m.bytes end,
  function(m)
    return under_another_name(m.subject, STRANGER), "", ("\1"):rep(2 ^ 20)   -- all NATS takes
  end,
}

-- What presence is made into: hellos of processes that are none, and no hellos at all.
local HELLOS = { "", "{", "[]", "null", "{}", '{"hello":{}}', '{"id":"x","hello":7}',
  '{"id":"' .. STRANGER .. '","hello":null,"engines":{}}', ("["):rep(100000),
  '{"id":"' .. STRANGER .. '","hello":{"role":"worker"},"engines":[{"running":1e999}]}',
  '"' .. ("x"):rep(500000) .. '"' }

-- And heartbeats: cut short, with another byte, of a stranger, of a process that is there.
local beats = {
  function(m, roll) return m.subject, "", m.bytes:sub(1, roll(0, #m.bytes - 1)) end,
  function(m, roll)
    local at = roll(9, #m.bytes)
    return m.subject, "", m.bytes:sub(1, at - 1) .. garbage(roll, 1) .. m.bytes:sub(at + 1)
  end,
  function(m, roll)
    return under_another_name(m.subject, STRANGER), "", garbage(roll, roll(0, 200))
  end,
  function(m) return under_another_name(m.subject, STRANGER), "", m.bytes end,
}

local function disturb(bare, heard, roll)
  for _, m in ipairs(heard) do
    if m.subject:find "^pl%.[%w_-]+%.p%." then
      bare:publish(twists[roll(1, #twists)](m, roll))
    elseif m.subject:find "^%$KV%." and roll(1, 4) == 1 then
      bare:publish(under_another_name(m.subject, STRANGER), "", HELLOS[roll(1, #HELLOS)])
    elseif m.subject:find "%.b%.%x+$" then
      bare:publish(beats[roll(1, #beats)](m, roll))
    elseif m.subject:find "%.who$" then
      bare:publish(m.subject, "not.yours", garbage(roll, 50))
    end
  end
end

describe("nonsense on the bus", function()
  it("is dropped, counted and logged, and harms nothing", function()
    local list = load.record(load.ENGINE, SEED)
    local f = deployment.start { workers = 2, worker = load.ENGINE }
    finally(function() f:remove() end)
    local l = load.open { list = list, streams = #requests.KINDS, seed = SEED,
      port = function() return f.frontends[1].port end }
    local bare, roll = f.nats:connect(), requests.dice(SEED)
    bare:listen "pl.>"
    bare:listen "$KV.>"
    local sent, heard_own = 0, 20
    local stop = traffic.now() + 15
    while traffic.now() < stop or sent == 0 do
      l:tick(true)
      local heard = bare:take(0)
      while #heard > heard_own do table.remove(heard, roll(1, #heard)) end
      disturb(bare, heard, roll)
      sent = sent + #heard
    end
    bare:close()
    l:settle(120)
    assert.same({}, l.failures)
    for _, one in ipairs { f.frontends[1], f.workers[1], f.workers[2] } do
      assert.is_true(one:metric "perilune_bus_dropped_total" > 0)
      assert.is_truthy(one.process:log():find("dropped", 1, true))
    end
    for _, w in ipairs(f.workers) do
      assert.is_truthy(process.wait_for(10, function() return w:is_idle() end))
    end
    f:close()
  end)
end)
