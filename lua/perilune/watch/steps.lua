-- SPDX-License-Identifier: Apache-2.0
-- watch/steps.lua - where an engine's time goes: its last steps, summed up.

local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local M = {}

local MOST = 1024
local infos = ffi.new("pl_step_info[?]", MOST)

-- What is told of each step, in the order in which it is printed.
M.COLUMNS = {
  { "sequences", "of a step" },
  { "tokens", "computed in a step" },
  { "prompt", "of these, read from prompts" },
  { "device ms", "from the step's submit to its results" },
  { "host ms", "planning before, sampling's bookkeeping after" },
  { "waiting ms", "since the step before: for work, or for others to read" },
}

local function ms(from, to)
  return math.max(0, tonumber(to - from)) / 1e6
end

local function columns(n)
  local out = {}
  for k = 1, #M.COLUMNS do out[k] = {} end
  for i = 0, n - 1 do
    local s = infos[i]
    local device = ms(s.submitted_ns, s.collected_ns)
    local values = { s.seqs, s.rows, s.prompt_rows, device,
      ms(s.began_ns, s.ended_ns) - device,
      i > 0 and ms(infos[i - 1].ended_ns, s.began_ns) or 0 }
    for k, v in ipairs(values) do out[k][i + 1] = v end
  end
  return out
end

local function percentile(sorted, p)
  return sorted[math.max(1, math.ceil(#sorted * p))] or 0
end

local function sum(list)
  local s = 0
  for _, v in ipairs(list) do s = s + v end
  return s
end

-- The last steps of an engine, at most `last` of them: { steps, seconds, tokens_per_s,
-- rows = { { name, p50, p90, p99, max, sum } ... }, now = pl_engine_stats as a table }.
function M.summary(engine, last)
  local n = C.pl_engine_steps(engine, infos, math.min(last or MOST, MOST))
  local out = { steps = n, seconds = 0, tokens_per_s = 0, rows = {} }
  local made = columns(n)
  if n > 0 then
    out.seconds = ms(infos[0].began_ns, infos[n - 1].ended_ns) / 1e3
    out.tokens_per_s = out.seconds > 0 and sum(made[2]) / out.seconds or 0
  end
  for k, column in ipairs(M.COLUMNS) do
    local total = sum(made[k])
    table.sort(made[k])
    out.rows[k] = { name = column[1], p50 = percentile(made[k], .5),
      p90 = percentile(made[k], .9), p99 = percentile(made[k], .99),
      max = made[k][n] or 0, sum = total }
  end
  out.now = M.stats(engine)
  return out
end

local stats = ffi.new "pl_engine_stats"
local FIELDS = { "running", "waiting", "waiting_remote", "blocks", "blocks_used",
  "blocks_cached", "steps", "preemptions", "prompt_tokens", "generation_tokens",
  "cached_tokens", "prefix_queries", "prefix_hits", "chunked", "aborted" }

-- pl_engine_stats as a table of numbers, with `idle_s`, since the last step, and `at`,
-- the clock in seconds.
function M.stats(engine)
  C.pl_engine_stats_get(engine, stats)
  local out = {}
  for _, field in ipairs(FIELDS) do out[field] = tonumber(stats[field]) end
  out.idle_s = math.max(0, tonumber(C.pl_now_ns() - stats.last_step_ns)) / 1e9
  out.busy, out.at = stats.busy_since_ns ~= 0, tonumber(C.pl_now_ns()) / 1e9
  return out
end

local function shown(v)
  return v % 1 == 0 and ("%.0f"):format(v) or ("%.3f"):format(v)
end

-- A summary's rows as cells, for a table; the head is first.
function M.cells(summary)
  local out = { { "", "p50", "p90", "p99", "max", "sum" } }
  for _, row in ipairs(summary.rows) do
    out[#out + 1] = { row.name, shown(row.p50), shown(row.p90), shown(row.p99),
      shown(row.max), shown(row.sum) }
  end
  return out
end

return M
