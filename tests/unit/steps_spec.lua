-- SPDX-License-Identifier: Apache-2.0
-- The engine's last steps, and their sum.
local engine = require "support.engine"
local pl = require "perilune.ffi"
local steps = require "perilune.watch.steps"
local C, ffi = pl.C, pl.ffi

describe("an engine's steps", function()
  local e
  setup(function()
    e = engine.open("tests/golden/llama", { device = "null", load_format = "dummy" },
      { max_num_batched_tokens = 64 })
  end)
  teardown(function() e:close(true) end)

  local function read(max)
    local out = ffi.new("pl_step_info[?]", 1100)
    return out, C.pl_engine_steps(e.engine, out, max or 1100)
  end

  it("are none at first", function()
    local _, n = read()
    assert.equal(0, n)
    local s = steps.summary(e.engine)
    assert.equal(0, s.steps)
    assert.equal(0, s.rows[1].max)
  end)

  it("are told with what they computed, in order", function()
    local ids = {}
    for i = 1, 100 do ids[i] = i % 50 end
    e:submit(ids, { max_tokens = 5, ignore_eos = 1 })
    e:step()
    e:submit({ 1, 2, 3 }, { max_tokens = 2, ignore_eos = 1 })
    e:run()
    local s, n = read()
    local rows, prompt, seqs = {}, {}, {}
    for i = 0, n - 1 do
      rows[#rows + 1], prompt[#prompt + 1] = s[i].rows, s[i].prompt_rows
      seqs[#seqs + 1] = s[i].seqs
      assert.equal(i + 1, tonumber(s[i].number))
      assert.is_true(s[i].began_ns <= s[i].submitted_ns)
      assert.is_true(s[i].submitted_ns <= s[i].collected_ns)
      assert.is_true(s[i].collected_ns <= s[i].ended_ns)
      assert.is_true(i == 0 or s[i - 1].ended_ns <= s[i].began_ns)
    end
    assert.same({ 64, 39, 2, 1, 1, 1 }, rows)   -- 64 of 100, then 36 and a new one's 3
    assert.same({ 64, 39, 0, 0, 0, 0 }, prompt)
    assert.same({ 1, 2, 2, 1, 1, 1 }, seqs)
    assert.equal(0, s[n - 1].running)
    e:step()                                    -- it computes nothing, so it is none
    assert.equal(n, select(2, read()))
    assert.equal(0, select(2, read(0)))
    assert.equal(0, select(2, read(-1)))
    s, n = read(2)
    assert.equal(2, n)
    assert.equal(6, tonumber(s[1].number))
  end)

  it("are the last thousand", function()
    for _ = 1, 3 do e:submit({ 1 }, { max_tokens = 500, ignore_eos = 1 }) e:run() end
    local s, n = read()
    assert.equal(1024, n)
    assert.equal(tonumber(e:statistics().steps), tonumber(s[n - 1].number))
    assert.equal(1023, tonumber(s[n - 1].number - s[0].number))
  end)

  it("are summed up", function()
    local s = steps.summary(e.engine, 100)
    assert.equal(100, s.steps)
    assert.equal("sequences", s.rows[1].name)
    assert.equal(100, s.rows[1].sum)
    assert.equal(1, s.rows[2].p50)
    assert.is_true(s.rows[4].p50 <= s.rows[4].p99 and s.rows[4].p99 <= s.rows[4].max)
    assert.equal(0, s.now.running)
    assert.equal(#steps.COLUMNS + 1, #steps.cells(s))
  end)
end)
