-- SPDX-License-Identifier: Apache-2.0
-- What editors are told of recipes is what there is: fields, functions, options.
local fields = require "perilune.recipe.hook_fields"
local fleet_view = require "perilune.recipe.fleet_view"
local help = require "perilune.console.manual"
local hint_names = require "perilune.recipe.hints"
local hook_view = require "perilune.recipe.hook_view"
local metric = require "perilune.recipe.metric"
local pl = require "perilune"
local schema = require "perilune.recipe.schema"
local root = require("perilune.host").root

local text = help.about "meta"

-- The fields of a class in it, as a set: name -> its type.
local function class(name)
  local body = text:match("\n%-%-%-@class perilune" .. name .. "\n(.-)\n[^-]") or text:match(
    "\n%-%-%-@class perilune" .. name .. "\n(.-)$")
  local out = {}
  for field, kind in (body .. "\n"):gmatch "%-%-%-@field ([%w_]+)%?? (%S+)" do out[field] = kind end
  return out
end

local function names(t)
  local out = {}
  for name in pairs(t) do out[#out + 1] = name end
  table.sort(out)
  return out
end

describe("what editors are told", function()
  it("is the file that is shipped, which is Lua", function()
    local file = assert(io.open(root .. "/lua/meta/perilune.lua"))
    assert.equal(text .. "\n", file:read "*a", "write it anew: perilune help meta > lua/meta/perilune.lua")
    file:close()
    assert.same({}, assert(loadstring(text))())
  end)

  it("names each class that it speaks of once", function()
    local known = {}
    for name in text:gmatch "%-%-%-@[ca]l[ia]a?s?s (perilune[%w.]*)" do
      assert.is_nil(known[name], name)
      known[name] = true
    end
    for name in text:gmatch "perilune%.%u%w*" do assert.is_true(known[name], name) end
  end)

  it("has the fields of a request", function()
    local one = hook_view.new { id = "r", model = "m", tenant = "t", tokens = 1, total = 1, max_tokens = 1,
      n = 1, stream = true, priority = 0, moves = 0, block_size = 16, recorded = {} }
    for name in pairs(class ".Request") do assert.is_not_nil(one[name], name) end
    for _, name in ipairs { "block_size", "seq", "exchange", "naming", "key" } do
      assert.is_nil(class ".Request"[name])
      assert.has_error(function() return one[name] end, ("req has no '%s'"):format(name))
    end
    for name in pairs(class ".Hints") do
      assert.is_true(pcall(function() return one.hints[name] end), name)
    end
    assert.same(names(hint_names.TYPES), names(class ".Hints"))
  end)

  it("has what docs/hooks.md explains", function()
    local file = assert(io.open(root .. "/docs/hooks.md"))
    local page = file:read "*a"
    file:close()
    for _, group in ipairs { "Request", "Hints", "Worker", "Fleet", "Lost", "Result", "Choice", "cost",
        "pick", "queue", "pl" } do
      for _, row in ipairs(fields[group]) do
        local there = page:find("[`:.]" .. row[1] .. "%f[^%w_]") ~= nil
        assert.is_true(there or row[1] == "version", group .. "." .. row[1])
      end
    end
  end)

  it("has the fields of a worker and the methods of a fleet", function()
    local fleet = pl.fleet { { name = "a" } }
    local columns = class ".Worker"
    for name in pairs(columns) do assert.is_not_nil(fleet[1][name], name) end
    for _, name in ipairs { "cost", "number", "worker", "keys" } do
      assert.is_nil(columns[name])
      assert.has_error(function() return fleet[1][name] end)
    end
    assert.same(names(fleet_view.METHODS), names(class ".Fleet"))
  end)

  it("has all of pl, and nothing else", function()
    for name in pairs(class "") do assert.is_not_nil(pl[name] or name == "keep" and pl.keep, name) end
    for group, class_name in pairs { cost = ".Costs", pick = ".Picks", queue = ".Queues",
        split = ".Splits" } do
      assert.same(names(pl[group]), names(class(class_name)))
    end
    local declared = {}
    local init = assert(io.open(root .. "/lua/perilune/init.lua")):read "*a"
    for name in init:gmatch "\nfunction pl%.(%w+)" do declared[#declared + 1] = name end
    for name in init:match "local pl = (%b{})":gmatch "([%w_]+) = " do declared[#declared + 1] = name end
    table.sort(declared)
    assert.same(declared, names(class ""))
    assert.same(names(metric.METHODS), names(class ".Metric"))
  end)

  it("has each option and hook, with what it may be", function()
    local sections = { top = ".Recipe", http = ".Http", pool = ".Pool" }
    for section, class_name in pairs(sections) do
      local wanted = {}
      for _, row in ipairs(schema.rows[section]) do wanted[row.name] = true end
      for hook in pairs(schema.hooks[section]) do wanted[hook] = true end
      if section == "top" then
        wanted.http, wanted.worker, wanted.prefill, wanted.decode = true, true, true, true
      end
      assert.same(names(wanted), names(class(class_name)))
    end
    assert.equal('"debug"|"info"|"warning"|"error"', class ".Recipe".log_level)
    assert.equal("integer", class ".Http".port)
    assert.truthy(text:find("---@field cost? fun(req: perilune.Request, w: perilune.Worker, "
      .. "fleet: perilune.Fleet): number|perilune.Reject ", 1, true))
    assert.truthy(text:find("---@field approx perilune.Cost|fun(options: { decode_active_request_weight?: "
      .. "number, ", 1, true))
    for _, group in ipairs { "Request", "Worker", "Fleet", "Lost", "Result", "Choice", "cost", "pick",
        "queue", "pl" } do
      for _, row in ipairs(fields[group]) do assert.is_true(#row[3] > 0, row[1]) end
    end
  end)
end)
