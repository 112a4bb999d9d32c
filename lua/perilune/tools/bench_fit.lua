-- SPDX-License-Identifier: Apache-2.0
-- tools/bench_fit.lua - how long a server's steps take, for perilune sim: a few runs of
-- the bench, each of one shape, and the timing that fits them.
--
-- Prompts alone tell what reading costs; streams that run together tell what a token
-- costs each, and what stands before it. Medians, as a client sees them.

local fit = require "perilune.sim.fit"

local M = {}

local TIMES = 5                             -- a prompt alone is sent so often

local function part(n, share) return math.max(1, math.floor(n * share)) end

-- The runs, as options that differ from those of the bench.
local function shapes(options)
  local n, most = options.input_len, options.concurrency
  local out = { { requests = 1, concurrency = 1, output_len = 2, warms_up = true } }
  for _, share in ipairs { 1 / 8, 1 / 4, 1 / 2, 1 } do
    out[#out + 1] = { requests = TIMES, concurrency = 1, input_len = part(n, share),
      output_len = 1 }
  end
  local some = math.ceil(most / 4)
  for _, pair in ipairs { { 1, 1 / 8 }, { 1, 1 }, { some, 1 / 4 }, { most, 1 / 8 },
    { most, 1 / 2 } } do
    out[#out + 1] = { requests = pair[1], concurrency = pair[1],
      input_len = part(n, pair[2]) }
  end
  return out
end

local function median(list)
  table.sort(list)
  return list[math.ceil(#list / 2)]
end

-- Adds what a run says to the points; nil and why it says nothing.
local function add(points, shape, run, output_len)
  if run.interrupted then return nil, "interrupted" end
  if run.done == 0 or run.failed > 0 then
    return nil, ("a request failed: %s"):format(next(run.errors) or "nobody knows why")
  end
  if run.uncounted > 0 then return nil, "the server reports no usage" end
  if shape.warms_up then return true end
  local n = run.input_tokens / run.done
  if shape.output_len == 1 then
    fit.prompt(points, n, median(run.ttft))
    points[#points].text = ("a prompt of %d tokens"):format(n)
    return true
  end
  local gap = #run.itl > 0 and median(run.itl) or 0
  if gap < 0.001 then return nil, "tokens come too fast to be told apart" end
  fit.step(points, run.done, run.done * (n + output_len / 2), gap)
  points[#points].text = ("a token of %d after %d"):format(run.done, n)
  return true
end

-- Lines that say how well the figures fit, the worst error last.
function M.report(points, figures)
  local out, worst = { ("  %-28s %10s %10s %8s"):format("ms", "measured", "fitted",
    "error") }, 0
  for _, p in ipairs(points) do
    local ms = fit.ms(figures, p)
    local off = (ms / p.ms - 1) * 100
    worst = math.max(worst, math.abs(off))
    out[#out + 1] = ("  %-28s %10.3f %10.3f %6.1f %%"):format(p.text, p.ms, ms, off)
  end
  out[#out + 1] = ("the timing is within %.1f %% of all of these"):format(worst)
  return table.concat(out, "\n")
end

-- measure(shape) is a run of the bench with these options; nil and why. The figures of a
-- timing file and the report; or nil and why.
function M.run(options, measure)
  if options.output_len < 2 then
    return nil, "--fit wants an --output-len of 2 or more"
  end
  local points = {}
  for _, shape in ipairs(shapes(options)) do
    local run, why = measure(shape)
    local ok
    if run then ok, why = add(points, shape, run, options.output_len) end
    if not ok then return nil, why end
  end
  local figures = fit.timing(points)
  return figures, M.report(points, figures)
end

return M
