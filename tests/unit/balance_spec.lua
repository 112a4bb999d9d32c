-- SPDX-License-Identifier: Apache-2.0
-- Whose role changes when the hook `roles` wants more prompts read elsewhere, or fewer.
local balance = require "perilune.fleet.balance"
local cluster = require "perilune.fleet.cluster"
local decide = require "perilune.fleet.decide"
local models = require "perilune.fleet.served_models"

describe("roles", function()
  local c, served, server, wanted, seen

  before_each(function()
    c = cluster.new(nil, {}, nil, function() end)
    served = models.blank({ main = "decode" }, "m")
    served.terms = { block_size = 16, max_num_batched_tokens = 512 }
    server = { recipe = { main = "decode", prefill = {}, decode = {},
      roles = function(prefill, decode)
        seen = { #prefill, #decode }
        return wanted
      end } }
    seen = nil
  end)
  after_each(function()
    c:close()
    decide.close { list = { served } }
  end)

  -- A worker of another process: with so many requests, in that pool.
  local function worker(name, n, pool)
    local w = c:add { name = name, served = served, pool = pool, peer = 1, index = 0,
      numerics = "n", knows_roles = true }
    w.n = n
    return w
  end

  local function asked(n)
    wanted = n
    return balance.ask(server, served)
  end

  it("take the least busy worker of a pool that has too many", function()
    local a, b = worker("a", 3), worker("b", 2)
    worker("c", 4)
    local w, role = asked(1)
    assert.same({ 0, 3 }, seen)
    assert.same({ b, "prefill" }, { w, role })
    cluster.set_pool(b, served.prefill)
    assert.is_nil((asked(1)))
    assert.same({ 1, 2 }, seen)
    assert.same({ a, "prefill" }, { asked(2) })
    assert.same({ b, "decode" }, { asked(0) })
    assert.is_nil((asked(nil)))
  end)

  it("leave one that answers", function()
    worker("a", 0)
    worker("b", 0, served.prefill)
    assert.is_nil((asked(2)))
  end)

  it("count only those that take requests", function()
    local a, gone = worker("a", 0), worker("b", 0, served.prefill)
    worker("c", 5)
    cluster.set_state(gone, "draining")
    assert.same({ a, "prefill" }, { asked(1) })
    assert.same({ 0, 2 }, seen)
    assert.is_nil((asked(0)))
  end)

  it("stay as they are where a process is of a release that has none", function()
    worker("older", 0).knows_roles = nil
    local b = worker("b", 5)
    assert.same({ b, "prefill" }, { asked(1) })
    b.knows_roles = nil
    assert.is_nil((asked(1)))
  end)
end)
