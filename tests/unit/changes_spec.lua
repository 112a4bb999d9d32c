-- SPDX-License-Identifier: Apache-2.0
-- What a cache tells of itself: exactly what it gained and lost, whatever happens to it.
local changes = require "support.changes"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local N_BLOCKS, N_NAMES = 12, 9             -- block 0 is never given out

local namer = ffi.new "pl_namer"
assert(C.pl_namer_init(namer, C.PL_HASH_SHA256_CBOR, nil) == 0)

local function name_of(i)
  local name = ffi.new "pl_name"
  for k = 0, 31 do name.bytes[k] = C.pl_random_at(7, i, k) % 256 end
  return name
end

local NAMES = {}
for i = 1, N_NAMES do NAMES[i] = name_of(i) end

local function key(i) return tostring(C.pl_name_key(namer, NAMES[i])) end

describe("changes of a cache", function()
  local kv, log, told, one, block
  before_each(function()
    kv, log = C.pl_kv_open(N_BLOCKS, namer), ffi.new "pl_change_log"
    C.pl_kv_log(kv, log)
    told, one = 0, ffi.new "int32_t[1]"
    block = {}                              -- by its number: how often it is used
  end)
  after_each(function()
    C.pl_kv_close(kv)
    C.pl_change_log_fini(log)
  end)

  local function take()
    if not C.pl_kv_take(kv, nil, 0, 1, one) then return nil end
    block[one[0]] = 1
    return one[0]
  end

  local function put(at)
    one[0] = at
    C.pl_kv_put(kv, one, 1)
    block[at] = block[at] - 1
  end

  local function batch()
    local after = C.pl_kv_changes(kv)
    local t = changes.table_of(C.pl_change_log_take(log, told, after))
    told = after
    return t
  end

  it("are a name's first block and its last, and none between", function()
    local a, b, c = take(), take(), take()
    assert.is_true(C.pl_kv_name(kv, a, NAMES[1]))
    assert.is_false(C.pl_kv_name(kv, b, NAMES[1]))
    assert.is_false(C.pl_kv_name(kv, c, NAMES[1]))
    assert.same({ whole = false, before = 0, after = 1, { "stored", key(1) } }, batch())
    C.pl_kv_forget(kv, b)                   -- not the one that is found
    C.pl_kv_forget(kv, a)
    C.pl_kv_forget(kv, a)                   -- it has no name any more
    assert.same({ whole = false, before = 1, after = 1 }, batch())
    C.pl_kv_forget(kv, c)
    assert.same({ whole = false, before = 1, after = 2, { "removed", key(1) } }, batch())
  end)

  it("are of two hashes, even if others are told of both alike", function()
    local alike, found = ffi.new("pl_name", NAMES[1]), ffi.new "int32_t[1]"
    alike.bytes[12] = 255 - alike.bytes[12]  -- neither where it is looked for, nor told
    local a, b = take(), take()
    assert.is_true(C.pl_kv_name(kv, a, NAMES[1]))
    assert.equal(0, C.pl_kv_find(kv, alike, 1, found))
    assert.is_true(C.pl_kv_name(kv, b, alike))
    for name, block_of in pairs { [NAMES[1]] = a, [alike] = b } do
      assert.equal(1, C.pl_kv_find(kv, name, 1, found))
      assert.equal(block_of, found[0])
    end
    assert.same({ whole = false, before = 0, after = 2, { "stored", key(1), key(1) } }, batch())
  end)

  it("tell a name's loss when its block is given to another, not when it is put", function()
    local held = {}
    for i = 1, N_BLOCKS - 1 do held[i] = take() end
    C.pl_kv_name(kv, held[1], NAMES[1])
    for i = 1, N_BLOCKS - 1 do put(held[i]) end
    assert.same({ whole = false, before = 0, after = 1, { "stored", key(1) } }, batch())
    for _ = 1, N_BLOCKS - 1 do take() end
    assert.same({ whole = false, before = 1, after = 2, { "removed", key(1) } }, batch())
  end)

  it("keep their order, and lose what a reset makes void", function()
    local a, b = take(), take()
    C.pl_kv_name(kv, a, NAMES[1])
    C.pl_kv_forget(kv, a)
    C.pl_kv_name(kv, a, NAMES[2])
    C.pl_kv_name(kv, b, NAMES[3])
    assert.same({ whole = false, before = 0, after = 4, { "stored", key(1) },
      { "removed", key(1) }, { "stored", key(2), key(3) } }, batch())
    assert.is_false(C.pl_kv_reset(kv))      -- blocks are in use
    C.pl_kv_forget(kv, a)
    put(a)
    put(b)
    assert.is_true(C.pl_kv_reset(kv))
    assert.same({ whole = false, before = 4, after = 6, { "cleared" } }, batch())
    C.pl_kv_name(kv, take(), NAMES[1])
    assert.same({ whole = false, before = 6, after = 7, { "stored", key(1) } }, batch())
  end)

  it("are counted, but not logged, while nobody wants them", function()
    C.pl_kv_log(kv, nil)
    C.pl_kv_name(kv, take(), NAMES[1])
    assert.equal(0, log.n_runs)
    assert.same({ whole = true, before = 1, after = 1, { "stored", key(1) } },
      changes.table_of(C.pl_kv_whole(kv)))
  end)

  -- A twin of the cache: which block bears which name.
  it("give whoever adds them up what is there, at any time", function()
    local named, set, seed, n_resets = {}, {}, 0, 0
    local function draw(n)
      seed = seed + 1
      return tonumber(C.pl_random_at(11, seed, 0) % n)
    end
    local function some(wanted)
      local list = {}
      for at in pairs(block) do if wanted(at) then list[#list + 1] = at end end
      table.sort(list)
      return list[1] and list[draw(#list) + 1]
    end
    local function used(at) return block[at] > 0 end
    local acts = {
      function()
        local at = take()
        if at then named[at] = nil end
      end,
      function()
        local at = some(function(b) return used(b) and not named[b] end)
        if not at then return end
        named[at] = draw(N_NAMES) + 1
        C.pl_kv_name(kv, at, NAMES[named[at]])
      end,
      function()
        local at = some(used)
        if at then put(at) end
      end,
      function()
        local name = draw(N_NAMES) + 1
        if C.pl_kv_find(kv, NAMES[name], 1, one) == 0 then return end
        local at = one[0]
        assert.equal(name, named[at])
        C.pl_kv_take(kv, ffi.new("int32_t[1]", at), 1, 0, nil)
        block[at] = block[at] + 1
      end,
      function()
        local at = draw(4) == 0 and some(function(b) return named[b] end)
        if not at then return end
        C.pl_kv_forget(kv, at)
        named[at] = nil
      end,
      function()
        if draw(20) > 0 then return end
        for at in pairs(block) do
          while used(at) do put(at) end
        end
        assert.is_true(C.pl_kv_reset(kv))
        named, n_resets = {}, n_resets + 1
      end,
    }
    local n_batches = 0
    for _ = 1, 20000 do
      acts[draw(#acts) + 1]()
      if draw(3) == 0 then
        set = changes.apply(set, batch())
        local truth = {}
        for _, name in pairs(named) do truth[key(name)] = true end
        assert.same(truth, set)
        assert.same(truth, changes.apply({}, changes.table_of(C.pl_kv_whole(kv))))
        assert.equal(0, C.pl_kv_check(kv))
        n_batches = n_batches + 1
      end
    end
    assert.is_true(n_batches > 5000 and n_resets > 50)
  end)
end)
