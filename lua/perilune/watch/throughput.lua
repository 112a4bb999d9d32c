-- SPDX-License-Identifier: Apache-2.0
-- watch/throughput.lua - vLLM's line for each engine, every ten seconds that bring
-- something.

local pl = require "perilune.ffi"
local flow = require "perilune.flow"
local log = require "perilune.log"
local C = pl.C

local M = {}

local SECONDS = 10

local function tell(e, before, seconds)
  local s = e.stats
  local prompt, out = tonumber(s.prompt_tokens), tonumber(s.generation_tokens)
  local active = s.running + s.waiting > 0 or prompt + out > before.prompt + before.out
  log[active and "info" or "debug"]("Engine %03d: "
    .. "Avg prompt throughput: %.1f tokens/s, "
    .. "Avg generation throughput: %.1f tokens/s, Running: %d reqs, Waiting: %d reqs, "
    .. "KV cache usage: %.1f%%, Prefix cache hit rate: %.1f%%", e.index,
    (prompt - before.prompt) / seconds, (out - before.out) / seconds, s.running,
    s.waiting, 100 * s.blocks_used / math.max(s.blocks, 1),
    100 * tonumber(s.prefix_hits) / math.max(tonumber(s.prefix_queries), 1))
  before.prompt, before.out = prompt, out
end

-- In a task of its own. `recipe`: says whether the line is wanted.
function M.run(metrics, recipe)
  local before, last = {}, C.pl_now_ns()
  while true do
    flow.sleep(SECONDS)
    metrics:refresh()
    local now = C.pl_now_ns()
    for _, e in ipairs(metrics.engines) do
      before[e.index] = before[e.index] or { prompt = 0, out = 0 }
      if not recipe.disable_log_stats then
        tell(e, before[e.index], tonumber(now - last) / 1e9)
      end
    end
    last = now
  end
end

return M
