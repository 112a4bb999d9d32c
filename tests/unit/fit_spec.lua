-- SPDX-License-Identifier: Apache-2.0
-- A timing is found again from what an engine that keeps it takes.
local fit = require "perilune.sim.fit"
local null = require "support.null"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local TRUE = { prefill = 3, prefill_token = 0.05, prefill_back = 0.002, decode = 2,
  decode_seq = 0.3, decode_back = 0.004 }

-- One engine that takes as long as the figures say, given b prompts of n tokens at once:
-- in ms, when the last of them had its first token, and its mean gap from there on.
local function run(figures, b, n, max_tokens)
  local sim, events = C.pl_sim_open(), ffi.new "pl_event[16]"
  local t = ffi.new "pl_timing"
  for k, v in pairs(figures) do t[k] = v * 1e6 end
  local model, device = null.model()
  assert.equal(0, C.pl_sim_join(sim, model, null.options { n_blocks = 64 }, t))
  for i = 1, b do
    local seq = null.seq(null.text(100 * i, n), { max_tokens = max_tokens })
    assert.equal(0, C.pl_sim_submit(sim, 0, seq, nil, 0))
  end
  local first, gap
  while true do
    local count = C.pl_sim_run(sim, 1e12, events, 16)
    if count == 0 then break end
    for i = 0, count - 1 do
      local a = ffi.cast("pl_sim_answer *", events[i].object)
      if events[i].kind == C.PL_EV_DONE then
        first = tonumber(a.first_ns - a.came_ns) / 1e6
        gap = tonumber(a.last_ns - a.first_ns) / 1e6 / math.max(a.n_tokens - 1, 1)
      end
    end
  end
  C.pl_sim_close(sim)
  C.pl_model_close(model)
  C.pl_device_close(device)
  return first, gap
end

local function measured(figures, off)
  local points = {}
  for i, n in ipairs { 6, 12, 24, 48 } do
    fit.prompt(points, n, run(figures, 1, n, 1) * (1 + off * (-1) ^ i))
  end
  for i, p in ipairs { { 1, 6 }, { 1, 48 }, { 2, 12 }, { 4, 6 }, { 4, 24 } } do
    local b, n = p[1], p[2]
    local _, gap = run(figures, b, n, 5)
    -- Four gaps, before whose tokens n to n + 3 stand.
    fit.step(points, b, b * (n + 1.5), gap * (1 + off * (-1) ^ i))
  end
  return points
end

describe("a timing that is fitted", function()
  it("is that of the engine that was measured", function()
    local points = measured(TRUE, 0)
    local figures = fit.timing(points)
    for name, v in pairs(TRUE) do assert.near(v, figures[name], 0.001 * v, name) end
    for _, p in ipairs(points) do assert.near(p.ms, fit.ms(figures, p), 0.001 * p.ms) end
  end)

  it("gives its points back no worse than they were measured", function()
    local points = measured(TRUE, 0.03)
    local figures = fit.timing(points)
    for _, p in ipairs(points) do
      assert.near(p.ms, fit.ms(figures, p), 0.06 * p.ms)
    end
  end)

  it("has no figure below 0, and none that nothing speaks for", function()
    local points = {}
    for _, n in ipairs { 10, 100, 1000 } do fit.prompt(points, n, 20 - n / 1000) end
    for _ = 1, 3 do fit.step(points, 1, 50, 7) end
    local figures = fit.timing(points)
    for name, v in pairs(figures) do assert.is_true(v >= 0, name) end
    for _, p in ipairs(points) do
      assert.near(p.ms, fit.ms(figures, p), 0.05 * p.ms)
    end
  end)
end)
