-- SPDX-License-Identifier: Apache-2.0
-- What a worker tells of its cache, as it may come: with gaps, twice, all of it anew.
require "support.changes"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

ffi.cdef [[
typedef struct pl_source pl_source;
typedef struct pl_source_hooks {
    void (*ask)(void *ctx);
    void (*stop)(void *ctx);
} pl_source_hooks;
pl_status pl_route_source(pl_route *x, int worker, const pl_source_hooks *hooks, void *ctx,
                          pl_source **out);
void pl_source_push(pl_source *s, pl_changes *c);
void pl_source_lost(pl_source *s);
void pl_source_put(pl_source *s);
pl_changes *pl_changes_whole(uint64_t after, int32_t n, uint64_t **keys);
void pl_free(void *p);
]]

local STORED, REMOVED, CLEARED = 1, 2, 3

describe("what a worker tells", function()
  local x, w, source
  local depths, stats = ffi.new "int32_t[64]", ffi.new "pl_route_stats"
  -- Nobody is asked: pl_free of NULL does nothing.
  local nothing = ffi.cast("void (*)(void *)", C.pl_free)

  before_each(function()
    local out = ffi.new "pl_source *[1]"
    x = C.pl_route_open(1000)
    w = C.pl_route_join(x)
    assert.equal(0, C.pl_route_source(x, w, ffi.new("pl_source_hooks", nothing, nothing), nil,
      out))
    source = out[0]
  end)
  after_each(function()
    C.pl_route_close(x)
    C.pl_source_put(source)
  end)

  local function tell(before, after, kind, ...)
    local log = ffi.new "pl_change_log"
    for _, key in ipairs { ... } do C.pl_change_log_add(log, kind, key) end
    C.pl_source_push(source, C.pl_change_log_take(log, before, after))
    C.pl_change_log_fini(log)
  end

  local function tell_all(after, ...)
    local keys, list = ffi.new "uint64_t *[1]", { ... }
    local c = C.pl_changes_whole(after, #list, keys)
    for i, key in ipairs(list) do keys[0][i - 1] = key end
    C.pl_source_push(source, c)
  end

  -- Which of the blocks 1 to 9 it is known to hold, and how many in all.
  local function held()
    C.pl_route_apply(x)
    local out = {}
    for key = 1, 9 do
      C.pl_route_match(x, ffi.new("uint64_t[1]", key), 1, depths)
      if depths[w] == 1 then out[#out + 1] = key end
    end
    assert.equal(#out, tonumber(C.pl_route_held(x, w)))
    return out
  end

  local function gaps()
    C.pl_route_stats_get(x, stats)
    return tonumber(stats.gaps)
  end

  it("is nothing until it has told all", function()
    tell(0, 1, STORED, 1)
    assert.same({}, held())
    tell_all(5, 2, 3)
    tell(5, 7, STORED, 4, 5)
    tell(7, 8, REMOVED, 2)
    assert.same({ 3, 4, 5 }, held())
    tell(8, 9, CLEARED, 0)
    tell(9, 10, STORED, 6)
    assert.same({ 6 }, held())
    assert.equal(0, gaps())
  end)

  it("is nothing from a gap on, until it has told all anew", function()
    tell_all(5, 1, 2)
    tell(5, 6, STORED, 3)
    assert.same({ 1, 2, 3 }, held())
    tell(7, 8, STORED, 4)
    assert.same({}, held())
    tell(8, 9, STORED, 5)
    assert.same({}, held())
    assert.equal(1, gaps())
    tell_all(9, 7)
    assert.same({ 7 }, held())
    assert.equal(1, gaps())
  end)

  it("counts once if it is told twice, and if it is older than all", function()
    tell_all(5, 1, 2)
    tell(5, 6, REMOVED, 1)
    tell(6, 7, STORED, 1)
    assert.same({ 1, 2 }, held())
    tell(5, 6, REMOVED, 1)
    assert.same({ 1, 2 }, held())
    assert.equal(0, gaps())
  end)

  it("is void if all is told anew, or the way is lost", function()
    tell_all(5, 1, 2)
    assert.same({ 1, 2 }, held())
    tell_all(5, 2, 3)
    assert.same({ 2, 3 }, held())
    tell(5, 6, STORED, 4)
    C.pl_source_lost(source)
    assert.same({}, held())
    assert.equal(1, gaps())
    tell(6, 7, STORED, 5)
    assert.same({}, held())
  end)

  it("is asked for anew if more comes than is waited for", function()
    tell_all(0, 1)
    assert.same({ 1 }, held())
    for i = 0, 65536 do tell(i, i + 1, STORED, 2) end
    assert.same({}, held())
    assert.equal(1, gaps())
  end)
end)
