-- SPDX-License-Identifier: Apache-2.0
-- Blocks as the engine hands them out: order, sharing, eviction.
local null = require "support.null"
local pl = require "perilune.ffi"
local C = pl.C

local function range(from, to)
  local t = {}
  for i = from, to do t[#t + 1] = i end
  return t
end

local function join(...)
  local t = {}
  for _, part in ipairs { ... } do
    for _, v in ipairs(part) do t[#t + 1] = v end
  end
  return t
end

describe("kv", function()
  local e
  local common = null.text(1, 48)

  local function open(more) e = null.engine(more) end
  after_each(function() if e then e:close() end e = nil end)

  local function start(...)
    local id = assert(e:submit(...))
    e:step()
    return id
  end

  local function stop(id)
    e:cancel(id)
    e:step()
  end

  it("hands out from the front, shares prefixes, takes back the ends first", function()
    open()
    local a = start(join(common, null.text(2, 7)))
    assert.same({ 1, 2, 3, 4 }, e:blocks(a))
    local b = start(join(common, null.text(3, 5)))
    assert.same({ 1, 2, 3, 5 }, e:blocks(b))
    assert.equal(0, e.first[a])
    assert.equal(48, e.first[b])
    assert.equal(5, e:stats().blocks_used)
    stop(a)
    stop(b)
    assert.same({ 6, 7, 8, 9, 10, 4, 5, 3, 2, 1 }, e:blocks())
    assert.equal(3, e:stats().blocks_cached)
    local c = start(join(common, null.text(4, 5)))
    assert.same({ 1, 2, 3, 6 }, e:blocks(c))
    stop(c)
    assert.same({ 7, 8, 9, 10, 4, 5, 6, 3, 2, 1 }, e:blocks())
    local all = assert(e:submit(null.text(5, 160)))
    e:step()
    assert.equal(C.PL_FINISH_LENGTH, e.ends[all]) -- its one token needs no KV
    assert.same({ 1, 2, 3, 6, 5, 4, 10, 9, 8, 7 }, e:blocks())
    assert.equal(10, e:stats().blocks_cached)
  end)

  it("keeps what was found again three times as long, and what was not by age", function()
    open { n_blocks = 21 }
    local two = null.text(1, 32)
    stop(start(join(two, null.text(2, 3))))
    local b = start(join(two, null.text(3, 3)))
    local found = e:blocks(b)
    stop(b)
    -- The other 18 go round: their oldest has seen 17 taken, so this one goes when it has
    -- seen 52.
    local n = 0
    repeat
      local id = start(null.text(100 + n, 10))
      local block = e:blocks(id)[1]
      stop(id)
      n = n + 1
    until block == found[2] or n == 100
    assert.equal(53, n)
    -- Given to another, it is like any other. Now there are 19: the prefix's first block goes
    -- when it has seen 55.
    local line = e:blocks()
    assert.same({ found[1], found[2] }, { line[3], line[#line] })
  end)

  it("takes hits out of the middle of the line", function()
    open()
    local a = start(join(null.text(1, 80), null.text(2, 7)))
    local b = start(null.text(3, 46))
    assert.same({ 1, 2, 3, 4, 5, 6 }, e:blocks(a))
    assert.same({ 7, 8, 9 }, e:blocks(b))
    stop(a)
    stop(b)
    assert.same({ 10, 6, 5, 4, 3, 2, 1, 9, 8, 7 }, e:blocks())
    local c = start(join(null.text(1, 32), null.text(6, 3)))
    assert.same({ 1, 2, 10 }, e:blocks(c))
    assert.same({ 6, 5, 4, 3, 9, 8, 7 }, e:blocks())
  end)

  it("does not count a hit that is free as room for a new block too", function()
    open()
    stop(start(join(common, null.text(2, 7))))
    local b = start(null.text(3, 90))
    local c = assert(e:submit(join(common, null.text(4, 20))))    -- 3 hits, and 2 more
    e:step()
    assert.same({}, e:blocks(c))
    assert.same({ 4, 3, 2, 1 }, e:blocks())
    stop(b)
    assert.equal(48, e.first[c])
    assert.same({ 1, 2, 3 }, { unpack(e:blocks(c), 1, 3) })
  end)

  it("adds a block only when one is full", function()
    open()
    local a = start(null.text(1, 55))
    e:step(9) -- the token of the last step is not computed yet: 64 are
    assert.same({ 1, 2, 3, 4 }, e:blocks(a))
    e:step()
    assert.same({ 1, 2, 3, 4, 5 }, e:blocks(a))
  end)

  it("finds what was generated", function()
    open()
    local prompt = null.text(1, 30)
    local a = start(prompt)
    e:step(39)
    local text = join(prompt, e.tokens[a])
    local blocks = e:blocks(a)
    stop(a)
    local b = start(text)
    assert.equal(64, e.first[b])
    assert.same({ unpack(blocks, 1, 4) }, { unpack(e:blocks(b), 1, 4) })
  end)

  it("computes one token at least, so a block of a prompt that is all there", function()
    open()
    start(common)
    assert.equal(32, e.first[start(common)])
    assert.equal(48, e.first[start(join(common, { 1 }))])
  end)

  it("keeps salts apart", function()
    open { n_blocks = 64 }
    local function salted(salt)
      return start(common, nil, function(s)
        if salt then assert.equal(0, C.pl_seq_salt(s, salt, #salt)) end
      end)
    end
    assert.equal(0, e.first[salted "a"])
    assert.equal(0, e.first[salted "b"])
    assert.equal(0, e.first[salted()])
    assert.equal(32, e.first[salted "a"])
    assert.equal(32, e.first[salted()])
  end)

  it("does not look with prompt_logprobs, and bears two blocks of one name", function()
    open()
    local a = start(join(common, null.text(2, 7)))
    local b = start(join(common, null.text(2, 7)), { prompt_logprobs = 0 })
    assert.same({ 5, 6, 7, 8 }, e:blocks(b))
    assert.equal(0, e.first[b])
    local c = start(join(common, { 1 }))
    assert.same({ 1, 2, 3 }, { unpack(e:blocks(c), 1, 3) }) -- the older
    stop(a)
    stop(c)
    assert.equal(48, e.first[start(join(common, { 1 }))])
    assert.equal(0, C.pl_engine_check(e.handle))
  end)

  it("finds the younger of two when the older is evicted", function()
    open()
    local a = start(join(common, { 1 }))
    local b = start(join(common, { 1 }), { prompt_logprobs = 0 })
    stop(a)
    e:cancel(start(null.text(7, 90))) -- 9, 10, then a's: 4, 3, 2, 1
    e:step()
    local c = start(join(common, { 1 }))
    assert.equal(48, e.first[c])
    assert.same({ unpack(e:blocks(b), 1, 3) }, { unpack(e:blocks(c), 1, 3) })
  end)

  it("shares the prompt of two that start in one step", function()
    open()
    local a = assert(e:submit(join(common, { 1 })))
    local b = assert(e:submit(join(common, { 2 })))
    e:step()
    assert.same({ 1, 2, 3, 4 }, e:blocks(a))
    assert.same({ 1, 2, 3, 5 }, e:blocks(b))
  end)

  it("does without a cache", function()
    open { enable_prefix_caching = 0 }
    start(common)
    local b = start(common)
    assert.same({ 5, 6, 7 }, e:blocks(b))
    assert.equal(0, e:stats().blocks_cached)
    assert.equal(0, tonumber(e:stats().prefix_queries))
  end)

  it("forgets when told to, unless blocks are in use", function()
    open()
    local a = start(common)
    assert.equal(C.PL_EAGAIN, C.pl_engine_reset_cache(e.handle))
    stop(a)
    assert.equal(3, e:stats().blocks_cached)
    assert.equal(0, C.pl_engine_reset_cache(e.handle))
    assert.equal(0, e:stats().blocks_cached)
    assert.equal(0, e.first[start(common)])
  end)

  it("never gives out block 0", function()
    open()
    for i = 1, 20 do
      local id = start(null.text(i, 60 + i))
      for _, b in ipairs(e:blocks(id)) do assert.is_true(b >= 1 and b <= 10) end
      stop(id)
    end
    local line = e:blocks()
    table.sort(line)
    assert.same(range(1, 10), line)
  end)
end)
