-- SPDX-License-Identifier: Apache-2.0
-- Which worker holds which blocks: against tables that say the same slowly.
local pl = require "perilune.ffi"
local process = require "support.process"
local C, ffi = pl.C, pl.ffi

local function names_of(list)
  local names = ffi.new("uint64_t[?]", math.max(#list, 1))
  for i, name in ipairs(list) do names[i - 1] = name end
  return names, #list
end

-- An index and the same as tables: held[worker][name].
local Twin = {}
Twin.__index = Twin

local function twin(limit)
  return setmetatable({ x = assert(C.pl_route_open(limit or 1e6)), held = {}, depths =
    ffi.new "int32_t[8192]" }, Twin)
end

function Twin:close() C.pl_route_close(self.x) end

function Twin:join()
  local w = C.pl_route_join(self.x)
  assert.is_true(w >= 0)
  assert.is_nil(self.held[w])
  self.held[w] = {}
  return w
end

function Twin:leave(w)
  C.pl_route_leave(self.x, w)
  self.held[w] = nil
end

function Twin:store(w, list)
  local new = 0
  for _, name in ipairs(list) do
    if not self.held[w][name] then new = new + 1 end
    self.held[w][name] = true
  end
  assert.equal(new, tonumber(C.pl_route_store(self.x, w, names_of(list))))
end

function Twin:remove(w, list)
  local old = 0
  for _, name in ipairs(list) do
    if self.held[w][name] then old = old + 1 end
    self.held[w][name] = nil
  end
  assert.equal(old, tonumber(C.pl_route_remove(self.x, w, names_of(list))))
end

function Twin:check(list)
  local names, n = names_of(list)
  local workers = C.pl_route_match(self.x, names, n, self.depths)
  for w = 0, workers - 1 do
    local depth = 0
    while self.held[w] and list[depth + 1] and self.held[w][list[depth + 1]] do
      depth = depth + 1
    end
    if depth ~= self.depths[w] then assert.same({ w, depth }, { w, self.depths[w] }) end
  end
end

function Twin:check_counts()
  local stats, all = ffi.new "pl_route_stats", {}
  C.pl_route_stats_get(self.x, stats)
  for w, names in pairs(self.held) do
    local n = 0
    for name in pairs(names) do n, all[name] = n + 1, true end
    assert.equal(n, tonumber(C.pl_route_held(self.x, w)))
  end
  return tonumber(stats.blocks), all
end

describe("an index", function()
  local t
  after_each(function()
    if t then t:close() end
    t = nil
  end)

  it("finds how much of a prompt each worker holds", function()
    t = twin()
    local a, b, c = t:join(), t:join(), t:join()
    t:store(a, { 1, 2, 3, 4 })
    t:store(b, { 1, 2 })
    t:store(c, { 2, 3, 4 })                  -- not the first: nothing
    local far = 2 ^ 32                       -- names that differ in their upper half alone
    for _, prompt in ipairs { { 1, 2, 3, 4, 5 }, { 1 }, { 2, 3 }, { 9 }, {}, { far + 1 },
      { 1, far + 2 } } do
      t:check(prompt)
    end
    t:remove(a, { 2 })                       -- a gap: what follows does not count
    t:check { 1, 2, 3, 4 }
    t:store(a, { 2, 2 })
    t:check { 1, 2, 3, 4 }
  end)

  it("forgets a worker that leaves, and gives its number to a new one that holds nothing", function()
    t = twin()
    local first, seen = t:join(), {}
    t:store(first, { 1, 2 })
    t:leave(first)
    for _ = 1, 130 do
      local w = t:join()
      seen[w] = true
      t:check { 1, 2 }
    end
    assert.is_true(seen[first] or false)
    t:check_counts()
  end)

  it("says so if a worker is not there, and counts what it never held", function()
    t = twin()
    local w = t:join()
    for _, other in ipairs { -1, w + 1, 8191, 2 ^ 31 - 1 } do
      assert.equal(C.PL_ENOTFOUND, tonumber(C.pl_route_store(t.x, other, names_of { 1 })))
      assert.equal(C.PL_ENOTFOUND, tonumber(C.pl_route_remove(t.x, other, names_of { 1 })))
      C.pl_route_leave(t.x, other)
    end
    t:remove(w, { 5, 6 })
    local stats = ffi.new "pl_route_stats"
    C.pl_route_stats_get(t.x, stats)
    assert.equal(2, tonumber(stats.missed))
  end)

  it("leaves out what it has no room for, and has room again when a worker has left", function()
    t = twin(100)
    local a, b, list = t:join(), t:join(), {}
    for i = 1, 150 do list[i] = i end
    assert.equal(100, tonumber(C.pl_route_store(t.x, a, names_of(list))))
    assert.equal(100, tonumber(C.pl_route_store(t.x, b, names_of(list))))   -- of the same blocks
    local names, n = names_of(list)
    C.pl_route_match(t.x, names, n, t.depths)
    assert.equal(100, t.depths[a])
    local stats = ffi.new "pl_route_stats"
    C.pl_route_stats_get(t.x, stats)
    assert.equal(100, tonumber(stats.dropped))
    C.pl_route_leave(t.x, a)
    C.pl_route_leave(t.x, b)
    local c = t:join()
    assert.equal(100, tonumber(C.pl_route_store(t.x, c, names_of(list))))
  end)

  -- Prompts share beginnings, workers come and go, blocks are removed from the end or the
  -- middle, again and again.
  it("is what tables say after anything that may happen", function()
    t = twin()
    local rounds = process.slow and 2000 or 20000
    math.randomseed(os.getenv "PERILUNE_SEED" or 7)
    local random = math.random
    local function prompt()
      local list, at = {}, random(1, 40)
      for i = 1, random(1, 40) do
        list[i] = at * 4096ULL * 0x9e3779b97f4a7c15ULL + i
        if random() < 0.1 then at = random(1, 40) end
      end
      for i = 1, #list do list[i] = tonumber(list[i] % 2ULL ^ 53) end
      return list
    end
    local workers = {}
    for i = 1, 70 do workers[i] = t:join() end
    for round = 1, rounds do
      local k = random(#workers)
      local w, dice = workers[k], random()
      if dice < 0.5 then
        t:store(w, prompt())
      elseif dice < 0.8 then
        t:remove(w, prompt())
      elseif dice < 0.81 then
        t:leave(w)
        workers[k] = t:join()
      else
        t:check(prompt())
      end
      if round % 1000 == 0 then t:check_counts() end
    end
    -- When all have left, a new one finds an empty index.
    for _, w in ipairs(workers) do t:leave(w) end
    t:store(t:join(), { 1 })
    t:check { 1 }
  end)

  it("wants a size", function()
    t = twin()
    assert.is_true(C.pl_route_open(0) == nil)
    assert.equal("an index of 0 blocks", ffi.string(C.pl_error_text()))
  end)
end)
