-- SPDX-License-Identifier: Apache-2.0
-- Engines in virtual time: what a step takes, when its tokens come, and that a leap says
-- what the steps in it would have said.
local null = require "support.null"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local MS = 1e6

local Sim = {}
Sim.__index = Sim

-- A simulation of n workers. `timing`: fields of pl_timing, in ms.
local function open(n, timing, options)
  local self = setmetatable({ handle = C.pl_sim_open(), models = {}, told = {},
    events = ffi.new "pl_event[16]", load = C.pl_load_open(null.BLOCK),
    naming = C.pl_naming_open(C.PL_HASH_SHA256_CBOR, nil, null.BLOCK) }, Sim)
  local t = ffi.new "pl_timing"
  for k, v in pairs(timing) do t[k] = v * MS end
  for i = 1, n do
    local model, device = null.model()
    self.models[i] = { model, device }
    assert.equal(i - 1, C.pl_sim_join(self.handle, model, null.options(options), t))
  end
  return self
end

function Sim:close()
  C.pl_sim_close(self.handle)
  C.pl_load_close(self.load)
  C.pl_naming_close(self.naming)
  for _, m in ipairs(self.models) do
    C.pl_model_close(m[1])
    C.pl_device_close(m[2])
  end
end

-- A sequence of n tokens, of which the names of full blocks are given, for a worker.
function Sim:submit(worker, n, max_tokens, names)
  local seq = null.seq(null.text(0, n), { max_tokens = max_tokens })
  local id = C.pl_seq_id(seq)
  names = names or {}
  local given = ffi.new("uint64_t[?]", #names + 1)
  for i, name in ipairs(names) do given[i - 1] = name end
  if names[1] then C.pl_naming_give(self.naming, seq, given, #names) end
  assert.equal(0, C.pl_sim_submit(self.handle, worker, seq, self.load, 0))
  return id
end

-- Runs to a time in ms; what was told: { ms, "first" or "done", id, ... }.
function Sim:run(to)
  while true do
    local n = C.pl_sim_run(self.handle, to * MS, self.events, 16)
    if n == 0 then break end
    for i = 0, n - 1 do
      local e = self.events[i]
      local a = ffi.cast("pl_sim_answer *", e.object)
      local now = tonumber(C.pl_sim_now(self.handle)) / MS
      if e.kind == C.PL_EV_PIECE then
        self.told[#self.told + 1] = { now, "first", e.id }
      else
        self.told[#self.told + 1] = { now, "done", e.id, a.n_tokens, a.n_cached,
          a.worker, tonumber(a.came_ns) / MS, tonumber(a.first_ns) / MS,
          tonumber(a.last_ns) / MS }
      end
    end
  end
  return self.told
end

describe("engines in virtual time", function()
  it("take what the timing says for a prompt and for each token", function()
    local sim = open(1, { prefill = 10, prefill_token = 1, decode = 5, decode_seq = 1 })
    local id = sim:submit(0, 20, 4)
    -- 10 + 20 for the prompt, which brings the first token; then 3 steps of 5 + 1.
    assert.same({ { 30, "first", id }, { 48, "done", id, 4, 0, 0, 0, 30, 48 } },
      sim:run(1000))
    assert.near(6 * MS, C.pl_sim_gap_mean(sim.handle), 1)
    sim:close()
  end)

  it("charge for squares, for what stands before a row, and for used blocks", function()
    local sim = open(1, { prefill_square = 0.5, prefill_back = 0.25, decode_back = 2,
      decode_used = 100, decode_used_square = 1000 })
    local id = sim:submit(0, 4, 3)
    local first = 0.5 * 16 + 0.25 * (0 + 1 + 2 + 3)
    local used = 1 / 10                     -- of 10 blocks
    local function step(before) return 2 * before + 100 * used + 1000 * used * used end
    local told = sim:run(1000)
    assert.near(first, told[1][1], 1e-5)
    -- The last one gives its block back before it is charged.
    assert.near(first + step(4) + 2 * 5, told[2][1], 1e-5)
    assert.equal(id, told[2][3])
    sim:close()
  end)

  it("count for a worker's load, as streams of a server do", function()
    local sim = open(1, { prefill = 100, decode = 10 }, { max_num_seqs = 1 })
    sim:submit(0, 20, 20)
    sim:submit(0, 16, 1)
    local fleet = C.pl_fleet_open()
    local function look()
      C.pl_fleet_clear(fleet)
      C.pl_fleet_add(fleet, sim.load, -1, 0, 0)
      return { fleet.running[0], fleet.waiting[0], fleet.prefilling[0], fleet.decoding[0] }
    end
    assert.same({ 0, 2, 3, 3 }, look())
    sim:run(99)
    assert.same({ 1, 1, 3, 3 }, look())
    sim:run(101)
    assert.same({ 1, 1, 1, 3 }, look())
    sim:run(230)                            -- the 13th token was the 33rd in all: a block
    assert.same({ 1, 1, 1, 4 }, look())
    assert.near(0.1, fleet.ttft[0], 1e-4)
    assert.near(0.01, fleet.itl[0], 1e-4)
    sim:run(5000)
    assert.same({ 0, 0, 0, 0 }, look())
    C.pl_fleet_close(fleet)
    sim:close()
  end)

  it("find blocks by the names that are given, as far as they are equal", function()
    local sim = open(1, { prefill_token = 1 })
    sim:submit(0, 40, 1, { 7, 8 })
    sim:submit(0, 40, 1, { 7, 9 })
    local told = sim:run(1000)
    assert.same({ 0, 16 }, { told[2][5], told[4][5] })
    assert.equal(40 + 24, told[4][1])       -- in one step, the second's first block once
    sim:close()
  end)

  it("let a sequence in after the step that is under way, also within a leap", function()
    local sim = open(1, { decode = 10 }, { n_blocks = 200 })
    local a = sim:submit(0, 2, 100)
    sim:run(45)                             -- in the fifth step of ten
    local b = sim:submit(0, 2, 2)
    sim:run(85)
    -- a's fifth step ends at 50; b's prompt is read in the sixth, which takes as long.
    assert.same({ { 0, "first", a }, { 60, "first", b } }, { sim.told[1], sim.told[2] })
    assert.same({ 70, "done", b }, { unpack(sim.told[3], 1, 3) })
    sim:run(5000)
    assert.same({ 990, "done", a, 100 }, { unpack(sim.told[4], 1, 4) })
    sim:close()
  end)

  it("run side by side, each by its own clock, in the order of time", function()
    local sim = open(3, { prefill = 1, decode = 4, decode_seq = 0.5 })
    local ids = {}
    for i = 1, 3 do ids[i] = sim:submit(i - 1, 3, 5 * i) end
    local told, last = sim:run(1000), 0
    assert.equal(6, #told)
    for _, e in ipairs(told) do
      assert.is_true(e[1] >= last)
      last = e[1]
    end
    for i = 1, 3 do
      assert.same({ 1 + 4.5 * (5 * i - 1), "done", ids[i] }, { unpack(told[3 + i], 1, 3) })
    end
    sim:close()
  end)

  -- Leaps save time and must change nothing: the same requests at an engine that is
  -- stepped one by one, by a clock of the test's own.
  it("say in a leap what single steps would have said", function()
    local sim = open(1, { prefill = 3, prefill_token = 0.1, decode = 2, decode_seq = 0.25,
      decode_back = 0.01, decode_used = 5 }, { n_blocks = 40, max_num_batched_tokens = 64 })
    local e = null.engine { n_blocks = 40, max_num_batched_tokens = 64 }
    math.randomseed(7)
    local arrivals, t = {}, 0
    for i = 1, 60 do
      t = t + math.random(0, 60)
      arrivals[i] = { t, math.random(1, 100), math.random(1, 90) }
    end
    local ids, of = {}, {}
    for i, a in ipairs(arrivals) do
      sim:run(a[1])
      local names = {}                      -- all its own: no prefix is found
      for k = 1, a[2] / 16 do names[k] = i * 100 + k end
      ids[i] = sim:submit(0, a[2], a[3], names)
      of[ids[i]] = i
    end
    local leapt = {}
    for _, d in ipairs(sim:run(1e6)) do
      leapt[of[d[3]] .. d[2]] = d[1]
    end

    local stepped, now, next_at, mine = {}, 0, 1, {}
    local infos = ffi.new "pl_step_info[1]"
    local stats = ffi.new "pl_engine_stats"
    local n_ended, last = 0, 0
    while n_ended < #arrivals do
      while arrivals[next_at] and arrivals[next_at][1] <= now do
        local a = arrivals[next_at]
        mine[e:submit(null.text(0, a[2]), { max_tokens = a[3] }, function(s)
          C.pl_seq_salt(s, tostring(next_at), #tostring(next_at))
        end)] = next_at
        next_at = next_at + 1
      end
      local told = e:step(1)
      C.pl_engine_steps(e.handle, infos, 1)
      local s = infos[0]
      if s.number ~= last then
        last = s.number
        local decoding = s.rows - s.prompt_rows
        C.pl_engine_stats_get(e.handle, stats)
        if s.prompt_rows > 0 then now = now + 3 + 0.1 * s.prompt_rows end
        if decoding > 0 then
          now = now + 2 + 0.25 * decoding + 5 * s.blocks_used / stats.blocks
            + 0.01 * tonumber(s.looked_back - s.prompt_looked_back)
        end
      else
        now = arrivals[next_at][1]
      end
      for id, tokens in pairs(told) do
        if e.first[id] == nil then
          e.first[id] = now
          stepped[mine[id] .. "first"] = now
        end
        if e.ends[id] then
          n_ended = n_ended + 1
          stepped[mine[id] .. "done"] = now
        end
        assert(tokens)
      end
    end
    for what, at in pairs(stepped) do assert.near(at, leapt[what], 0.01, what) end
    local n = 0
    for _ in pairs(leapt) do n = n + 1 end
    assert.equal(2 * #arrivals, n)
    sim:close()
    e:close()
  end)

  it("count the gaps between tokens, to within one in a hundred", function()
    local sim = open(1, { decode = 10, prefill = 300 }, { n_blocks = 200 })
    sim:submit(0, 2, 100)
    sim:run(300 + 495)
    sim:submit(0, 2, 1)                     -- one gap of 310 ms among 98 of 10
    sim:run(1e5)
    assert.near(10 * MS, C.pl_sim_gap(sim.handle, 0.5), 0.1 * MS)
    assert.near(310 * MS, C.pl_sim_gap(sim.handle, 1), 3.1 * MS)
    assert.near((98 * 10 + 310) / 99 * MS, C.pl_sim_gap_mean(sim.handle), 1e-3 * MS)
    sim:close()
  end)

  it("refuse what an engine refuses, and the sequence stays the caller's", function()
    local sim = open(1, { decode = 1 })
    local seq = null.seq(null.text(0, 2000))
    assert.equal(C.PL_EINVAL, C.pl_sim_submit(sim.handle, 0, seq, sim.load, 0))
    assert.equal(C.PL_ENOTFOUND, C.pl_sim_submit(sim.handle, 1, seq, sim.load, 0))
    C.pl_seq_close(seq)
    assert.same({}, sim:run(10))
    sim:close()
  end)
end)
