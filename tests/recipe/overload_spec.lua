-- SPDX-License-Identifier: Apache-2.0
-- When all workers count as too busy for one more, and how the thresholds are set.
local cjson = require "cjson"
local log = require "perilune.log"
local overload = require "perilune.fleet.overload"
local recipe = require "perilune.recipe.resolve"

local function resolve(...)
  return assert(recipe.resolve("agg", { ... }, function() end))
end

-- A worker with so many of 100 blocks in use and so many prompt tokens waiting.
local function worker(used, waiting)
  return { blocks = 100, blocks_used = used, waiting_tokens = waiting,
    max_num_batched_tokens = 100 }
end

describe("all workers are busy", function()
  local function busy(flags, ...)
    local server = { recipe = resolve(unpack(flags)) }
    return overload.is_on(server) and overload.check(server, { ... }) ~= nil
  end

  it("never, where no threshold is set", function()
    assert.is_false(busy({}, worker(100, 1e6)))
    assert.is_false(busy({ "--active-decode-blocks-threshold", "None" }, worker(100, 1e6)))
  end)

  it("by any of the three, strictly beyond it", function()
    local blocks = { "--active-decode-blocks-threshold", "0.5" }
    assert.is_false(busy(blocks, worker(50, 1e6)))
    assert.is_true(busy(blocks, worker(51, 0)))
    local tokens = { "--active-prefill-tokens-threshold", "1000" }
    assert.is_false(busy(tokens, worker(100, 1000)))
    assert.is_true(busy(tokens, worker(0, 1001)))
    local frac = { "--active-prefill-tokens-threshold-frac", "1.5" }
    assert.is_false(busy(frac, worker(100, 150)))
    assert.is_true(busy(frac, worker(0, 151)))
    local two = { unpack(blocks) }
    two[3], two[4] = unpack(tokens)
    assert.is_true(busy(two, worker(51, 0)))
    assert.is_true(busy(two, worker(0, 1001)))
    assert.is_false(busy(two, worker(50, 1000)))
  end)

  it("only if each is, and there is one", function()
    local flags = { "--active-decode-blocks-threshold", "0.5" }
    assert.is_false(busy(flags, worker(51, 0), worker(50, 0)))
    assert.is_true(busy(flags, worker(51, 0), worker(52, 0)))
    assert.is_false(busy(flags))
    local unknown = { blocks = 0, blocks_used = 0, waiting_tokens = 0 }
    assert.is_false(busy(flags, worker(51, 0), unknown))
  end)

  it("and then a request is refused with the status of the recipe", function()
    local workers = { worker(51, 0) }
    local flags = { "--active-decode-blocks-threshold", "0.5" }
    assert.same({ status = 503, headers = "Retry-After: 1\r\n", error_type = "overload", message = "Service "
      .. "temporarily unavailable: All workers are busy, please retry later" },
      overload.check({ recipe = resolve(unpack(flags)) }, workers))
    flags[3], flags[4] = "--overload-status", "529"
    assert.equal(529, overload.check({ recipe = resolve(unpack(flags)) }, workers).status)
    assert.is_nil(overload.check({ recipe = resolve() }, workers))
  end)
end)

describe("/busy_threshold", function()
  local server, info
  setup(function()
    info = log.info
    log.info = function() end
  end)
  teardown(function() log.info = info end)
  before_each(function()
    local served = { key = "m", ctx = { names = { m = true, n = true },
      served_names = { "m", "n" } } }
    server = { recipe = resolve("--active-decode-blocks-threshold", "0.25"),
      models = { list = { served }, contexts = { served.ctx } } }
    server.process = { recipe = server.recipe }
  end)

  local function post(body)
    local text, refused = overload.post(server, body)
    if text then return cjson.decode(text) end
    return nil, refused.status .. " " .. refused.message, refused.param
  end

  it("lists the thresholds of each model", function()
    assert.equal('{"thresholds":[{"model":"m","active_decode_blocks_threshold":0.25,'
      .. '"active_prefill_tokens_threshold":null,'
      .. '"active_prefill_tokens_threshold_frac":null}]}', (overload.list(server)))
  end)

  it("sets those that are named, and tells all", function()
    assert.same({ model = "n", active_decode_blocks_threshold = 0.25,
      active_prefill_tokens_threshold = 5000,
      active_prefill_tokens_threshold_frac = cjson.null },
      post '{"model":"n","active_prefill_tokens_threshold":5000}')
    assert.same({ model = "m", active_decode_blocks_threshold = cjson.null,
      active_prefill_tokens_threshold = 5000, active_prefill_tokens_threshold_frac = 2 },
      post [[{"model":"m","active_decode_blocks_threshold":null,
        "active_prefill_tokens_threshold_frac":2.0}]])
    assert.equal("/busy_threshold",
      recipe.origin(server.recipe, "active_prefill_tokens_threshold"))
    assert.equal(5000, post('{"model":"m"}').active_prefill_tokens_threshold)
  end)

  it("refuses what it cannot set, and then sets nothing", function()
    local function refused(body)
      local _, why, param = post(body)
      return why, param
    end
    assert.equal("400 The body must be a JSON object.", (refused "[]"))
    assert.equal("400 The body must be a JSON object.", (refused "{"))
    assert.equal("400 model is required.", (refused "{}"))
    assert.equal("404 The model `x` does not exist. Served here: `m`, `n`.", (refused '{"model":"x"}'))
    local why, param = refused [[{"model":"m","active_decode_blocks_threshold":0.5,
      "active_prefill_tokens_threshold":-1}]]
    assert.equal("400 active_prefill_tokens_threshold is -1; it wants an integer, at "
      .. "least 0, or 'None'", why)
    assert.equal("active_prefill_tokens_threshold", param)
    for _, v in ipairs { '"x"', "[]", "{}", "true", "1.5" } do
      assert.matches("^400 active_decode_blocks_threshold is ",
        (refused('{"model":"m","active_decode_blocks_threshold":' .. v .. "}")))
    end
    assert.equal(0.25, server.recipe.active_decode_blocks_threshold)
  end)
end)
