-- SPDX-License-Identifier: Apache-2.0
-- The recipes and policies that are shipped: each loads, decides, and does what it says.
local fleet_view = require "perilune.recipe.fleet_view"
local hook_view = require "perilune.recipe.hook_view"
local hooks = require "perilune.recipe.hooks"
local recipe = require "perilune.recipe.resolve"
local root = require("perilune.host").root

local function files()
  local list = io.popen(("cd '%s' && ls recipes/*.lua recipes/policies/*.lua"):format(root))
  local out = {}
  for name in list:lines() do out[#out + 1] = name end
  list:close()
  return out
end

local FILES = files()

local function server(file)
  local r, problems = recipe.resolve(root .. "/" .. file, { "--model", "m" }, function() end)
  return { recipe = assert(r, problems and problems[1] and problems[1].text) }
end

-- Four workers in turn, w/0 to w/3; `fill(columns, row, i)` says what is known of w/i.
local function fleet(view, turn, fill)
  view:begin()
  for k = 0, 3 do
    local i = (turn + k) % 4
    view:add(nil, -1, 0, i, "w/" .. i)
    view.columns.capacity[k], view.columns.free[k] = 1000, 1000
    if fill then fill(view.columns, k, i) end
  end
end

-- A request whose first block is everyone's, and the rest its own.
local function request(i, headers)
  return hook_view.new { id = "r" .. i, tokens = 384, total = 384, block_size = 16, priority = 0,
    moves = 0, recorded = headers or {},
    key = function(_, k) return k > 1 and 0x9e3779b97f4a7c15ULL * i or 7ULL end }
end

local function choose(s, view, req, pool)
  local row = hooks.choose(s, pool or "worker", req, view)
  return row and row >= 0 and view.names[row + 1]
end

-- The pools of a recipe: name, entry.
local function deciding(r)
  local i = 0
  return function()
    i = i + 1
    return r.pools[i], r.pools[i] and r[r.pools[i]]
  end
end

describe("a shipped recipe", function()
  local view
  before_each(function() view = fleet_view.new() end)
  after_each(function() view:close() end)

  it("is there", function() assert.is_true(#FILES >= 15) end)

  for _, file in ipairs(FILES) do
    local name = file:match "([%w_]+)%.lua$"
    it("decides without an error: " .. file, function()
      local s = server(file)
      for i = 1, 200 do
        fleet(view, i, function(c, row, k)
          c.cached[row], c.running[row], c.prefilling[row] = (i * k) % 24, (i + k) % 5, i % 7 * k
          c.decoding[row], c.waiting[row] = (3 * i + k) % 50, i % 3
        end)
        for pool, of in deciding(s.recipe) do
          local req = request(i, { ["x-session-id"] = "s" .. i % 9 })
          if of.split then
            assert.is_boolean(hooks.split(s, req, view:worker(0), view:fleet()))
          end
          if of.queue then assert.is_number(hooks.rank(s, pool, req)) end
          if of.pick or of.cost then assert.matches("^w/%d$", choose(s, view, req, pool)) end
        end
      end
      for pool in deciding(s.recipe) do
        for _, hook in ipairs { "pick", "cost", "queue", "split" } do
          local about = hooks.about(s.recipe, pool .. "." .. hook)
          assert.equal(0, about and about.errors or 0, about and about.error)
        end
      end
    end)

    -- At most one request at a time: nobody ever has anything to do. Dynamo's own formula is
    -- as it is.
    if name ~= "dynamo" then
      it("uses all workers, however alike prompts begin: " .. file, function()
        local s = server(file)
        for pool, of in deciding(s.recipe) do
          local seen = {}
          for i = 1, (of.pick or of.cost) and 40 or 0 do
            fleet(view, i, function(c, row, k) c.cached[row] = k == 2 and 1 or 0 end)
            seen[choose(s, view, request(i), pool)] = true
          end
          assert.same(next(seen) and { ["w/0"] = true, ["w/1"] = true, ["w/2"] = true,
            ["w/3"] = true } or {}, seen)
        end
      end)
    end
  end

  -- Which worker a policy takes, where w/1 holds that much of a prompt of 24 blocks.
  local function warm(file, cached, load)
    local s = server("recipes/" .. file .. ".lua")
    fleet(view, 0, function(c, row, k)
      if k ~= 1 then return end
      c.cached[row] = cached
      for column, v in pairs(load or {}) do c[column][row] = v end
    end)
    return choose(s, view, request(1))
  end

  it("goes where it is warm, unless there is too much to do", function()
    for _, file in ipairs { "agg_router", "sticky", "policies/dynamo", "policies/ttft", "policies/explore",
        "policies/two_tier", "policies/sessions", "policies/fair" } do
      assert.equal("w/1", warm(file, 20), file)
      local load = { prefilling = 60, decoding = 500, running = 30, waiting = 9 }
      assert.not_equal("w/1", warm(file, 20, load), file)
    end
  end)

  it("waits a little for what is cached, but not without room: warm", function()
    assert.equal("w/1", warm("policies/warm", 20, { prefilling = 100, decoding = 500 }))
    assert.not_equal("w/1", warm("policies/warm", 20, { prefilling = 300 }))
    assert.not_equal("w/1", warm("policies/warm", 2, { prefilling = 10 }))
    assert.not_equal("w/1", warm("policies/warm", 20, { free = 3 }))
  end)

  it("keeps a session where it is: sticky, sessions", function()
    for _, file in ipairs { "recipes/sticky.lua", "recipes/policies/sessions.lua" } do
      local s = server(file)
      fleet(view, 2)
      local first = choose(s, view, request(1, { ["x-session-id"] = "me" }))
      for i = 1, 8 do
        fleet(view, i)
        assert.equal(first, choose(s, view, request(i, { ["x-session-id"] = "me" })), file)
      end
    end
  end)

  it("has requests wait, and whose deadline is first goes first: deadline", function()
    local s = server "recipes/policies/deadline.lua"
    fleet(view, 0, function(c, row) c.prefilling[row] = 65 end)
    assert.is_false(choose(s, view, request(1)))
    local soon = hooks.rank(s, "worker", request(1, { ["x-deadline"] = "0.5" }))
    assert.is_true(soon < hooks.rank(s, "worker", request(2)))
  end)

  it("goes by how a prompt begins, and passes by who has more than its share: bounded_load", function()
    local s = server "recipes/policies/bounded_load.lua"
    local at = {}
    for i = 1, 8 do
      fleet(view, i)
      at[i] = choose(s, view, request(5))
      assert.equal(at[1], at[i])
    end
    fleet(view, 0, function(c, row, k) c.running[row] = "w/" .. k == at[1] and 9 or 1 end)
    assert.not_equal(at[1], choose(s, view, request(5)))
  end)

  it("stops sending to canaries that fail: canary", function()
    local s = server "recipes/canary.lua"
    local share = 0
    for i = 1, 400 do
      fleet(view, i)
      view.tags[1] = { "canary" }
      local req = request(i)
      local canary = choose(s, view, req) == view.names[1]
      if canary then
        share = share + 1
        hooks.tell(s, s.recipe.done, req, { finish = "error" })
      end
    end
    assert.equal(3, share)
  end)
end)
