-- SPDX-License-Identifier: Apache-2.0
-- What an engine's log says of sequences that wait: by a clock that the test sets.
local captured = require "support.captured"
local null = require "support.null"
local pl = require "perilune.ffi"
local C = pl.C

local SECOND = 1000000000LL

describe("an engine's log", function()
  local e, clock

  local function open(more)
    clock = C.pl_clock_open()
    more.clock = clock
    e = null.engine(more)
  end
  before_each(function() C.pl_log_json(0) C.pl_log_level(C.PL_LOG_INFO) end)
  after_each(function()
    if e then e:close() end
    C.pl_clock_close(clock)
    e = nil
  end)

  -- What is said at that second: the lines, without what stands before their text.
  local function said_at(second)
    C.pl_clock_set(clock, second * SECOND)
    local list = {}
    for line in captured(function() C.pl_engine_tell_waits(e.handle) end):gmatch "[^\n]+" do
      list[#list + 1] = line:match "^INFO %S+ %S+ (.*)$"
    end
    return list
  end

  local function labeled(id)
    return function(s)
      local fields = "request_id\0" .. id .. "\0"
      assert.equal(0, C.pl_seq_label(s, fields, #fields))
    end
  end

  it("says what a prompt in line waits for, with back-off, until it has its token", function()
    open {}                                 -- 10 blocks of 16
    e:submit(null.text(1, 100), { max_tokens = 50 })
    e:step()
    assert(e:submit(null.text(2, 90), nil, labeled "late"))
    e:step()
    assert.same({}, said_at(4))
    local line = "a prompt of 90 tokens has waited %d s in line: it needs up to 6 blocks, 7 of 10 are in "
      .. "use; running 1 of at most 16, waiting 1 [request_id=late]"
    assert.same({ line:format(5) }, said_at(5))
    assert.same({}, said_at(9))
    assert.same({ line:format(10) }, said_at(10))
    assert.same({}, said_at(19))
    assert.same({ line:format(21) }, said_at(21))
    e:step(60)
    assert.equal(1, e:stats().running)      -- it answers
    assert.same({}, said_at(200))
  end)

  it("says how far a long prompt is read", function()
    open { n_blocks = 101, max_num_batched_tokens = 16 }
    e:submit(null.text(1, 1000))
    e:step(3)
    assert.same({ "a prompt of 1000 tokens is being read: 32 tokens after 7 s; running 1" }, said_at(7))
    e:step(80)
    assert.same({}, said_at(100))
  end)

  it("says that one lost its place, from then on", function()
    open {}
    local a = e:submit(null.text(1, 64), { max_tokens = 60 })
    local b = e:submit(null.text(2, 64), { max_tokens = 60 })
    e:step()
    C.pl_clock_set(clock, 100 * SECOND)
    e:step(32)
    assert.same({ 1, 1 }, { e:stats().running, e:stats().waiting })
    assert.is_true(#e.tokens[a] > 0 and #e.tokens[b] > 0)
    assert.same({}, said_at(104))
    assert.matches("^a prompt of 64 tokens has waited 6 s in line: ", said_at(106)[1])
  end)

  it("counts from the arrival, though it was put back before its first token", function()
    open { max_num_batched_tokens = 48 }
    e:submit(null.text(1, 40), { max_tokens = 100 })
    e:step(20)
    local long = e:submit(null.text(2, 150))
    for second = 1, 40 do
      C.pl_clock_set(clock, second * SECOND)
      e:step()
    end
    assert.is_true(e:stats().preemptions > 0)
    assert.is_nil(e.tokens[long])
    assert.matches("^a prompt of 150 tokens .* 50 s", said_at(50)[1])
  end)

  it("names four, the oldest, and counts the others", function()
    open { max_num_seqs = 1, max_num_batched_tokens = 16 }
    for i = 1, 10 do e:submit(null.text(i, 15 + i), { max_tokens = 100 }) end
    e:step(3)
    local lines = said_at(6)
    assert.equal(5, #lines)
    for i = 1, 4 do
      assert.matches(("^a prompt of %d tokens has waited 6 s in line"):format(16 + i), lines[i])
    end
    assert.equal("5 more sequences have waited as long", lines[5])
  end)

  it("says nothing of trials, and that KV is awaited", function()
    open {}
    e:submit(null.text(1, 40), nil, function(s) C.pl_seq_remote(s, 32) end)
    e:submit(null.text(2, 40), nil, C.pl_seq_uncounted)
    e:step()
    assert.same({ "a prompt of 40 tokens has waited 5 s for its KV from elsewhere" },
      said_at(5))
  end)
end)
