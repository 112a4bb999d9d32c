-- SPDX-License-Identifier: Apache-2.0
-- metrics.lua - vLLM's metrics, by vLLM's names; ours are perilune_*.
--
-- What C counts (the engine's statistics) is read when /metrics is asked for or the log
-- line is due; what belongs to a request is counted at its end.

local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local M = {}
M.__index = M

local TTFT = { .001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10,
  20, 40, 80, 160, 640, 2560 }
local ITL = { .0005, .001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3, .4, .5,
  .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80 }
local SECONDS = { .3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240,
  480, 960, 1920, 7680 }
local COUNTS = { 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000,
  50000, 100000, 200000 }

local STEPS = { 1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384 }

-- kind, name, what it says; histograms have buckets. docs/metrics.md is made from these.
M.ROWS = {
  { "gauge", "vllm:num_requests_running", "sequences in the running batch" },
  { "gauge", "vllm:num_requests_waiting", "sequences in line" },
  { "gauge", "vllm:kv_cache_usage_perc", "share of the KV blocks in use, 0 to 1" },
  { "gauge", "perilune_kv_blocks_cached", "free KV blocks that still hold a prefix" },
  { "counter", "vllm:num_preemptions_total", "sequences put back to make room" },
  { "counter", "vllm:prompt_tokens_total",
    "prompt tokens computed or found in the cache" },
  { "counter", "vllm:generation_tokens_total", "tokens generated" },
  { "counter", "vllm:prefix_cache_queries_total",
    "prompt tokens looked up in the cache" },
  { "counter", "vllm:prefix_cache_hits_total", "prompt tokens found in the cache" },
  { "counter", "perilune_engine_steps_total", "steps that the engine has made" },
  { "histogram", "vllm:time_to_first_token_seconds",
    "from arrival to the first token", TTFT },
  { "histogram", "vllm:request_time_per_output_token_seconds",
    "mean time between a request's tokens", ITL },
  { "histogram", "vllm:e2e_request_latency_seconds", "from arrival to the end", SECONDS },
  { "histogram", "vllm:request_queue_time_seconds",
    "from arrival to the first step", SECONDS },
  { "histogram", "vllm:request_prefill_time_seconds",
    "from the first step to the first token", SECONDS },
  { "histogram", "vllm:request_decode_time_seconds", "from the first token to the last",
    SECONDS },
  { "histogram", "vllm:request_inference_time_seconds",
    "from the first step to the last token", SECONDS },
  { "histogram", "vllm:request_prompt_tokens", "prompt tokens of a request", COUNTS },
  { "histogram", "vllm:request_generation_tokens",
    "generated tokens of a request", COUNTS },
  { "histogram", "vllm:request_max_num_generation_tokens",
    "generated tokens of a request's longest choice", COUNTS },
  { "histogram", "vllm:request_params_max_tokens", "max_tokens of a request", COUNTS },
  { "histogram", "vllm:request_params_n", "n of a request", { 1, 2, 5, 10, 20 } },
  { "histogram", "vllm:inter_token_latency_seconds", "time between two tokens", ITL },
  { "histogram", "vllm:iteration_tokens_total", "tokens of a step", STEPS },
  { "gauge", "vllm:cache_config_info", "1; its labels say how the KV cache is set" },
  { "counter", "vllm:request_success_total", "requests that ended, by how" },
}

local BY_REASON, CONFIG = "vllm:request_success_total", "vllm:cache_config_info"
local REASONS = { "stop", "length", "abort", "error" }

local KINDS = { counter = C.PL_COUNTER, gauge = C.PL_GAUGE, histogram = C.PL_HISTOGRAM }

local function open(kind, name, labels, help, buckets)
  local list = buckets and ffi.new("double[?]", #buckets, buckets)
  local id = C.pl_metric_open(KINDS[kind], name, labels, help, list,
    buckets and #buckets or 0)
  if id < 0 then error(name .. ": " .. ffi.string(C.pl_error_text()), 2) end
  return id
end

local function escape(s)
  return (s:gsub('[\\"]', "\\%0"):gsub("\n", "\\n"))
end

local function config_labels(cache)
  local out = {}
  for _, pair in ipairs(cache) do
    out[#out + 1] = ('%s="%s"'):format(pair[1], escape(tostring(pair[2])))
  end
  return table.concat(out, ",")
end

-- For one model.
function M.new(model_name)
  local labels = ('model_name="%s",engine="0"'):format(escape(model_name))
  local self = setmetatable({ id = {}, last = {}, labels = labels,
    stats = ffi.new "pl_engine_stats", finished = {} }, M)
  for _, row in ipairs(M.ROWS) do
    local kind, name, help, buckets = unpack(row)
    if name ~= BY_REASON and name ~= CONFIG then
      self.id[name] = open(kind, name, labels, help, buckets)
    end
    for _, reason in ipairs(name == BY_REASON and REASONS or {}) do
      self.finished[reason] = open(kind, name,
        labels .. (',finished_reason="%s"'):format(reason), help)
    end
  end
  self.gap = self.id["vllm:inter_token_latency_seconds"]
  return self
end

function M:add_engine(_, engine, cache)
  self.engine = engine
  self.id[CONFIG] = open("gauge", CONFIG, self.labels .. "," .. config_labels(cache), "")
  C.pl_metric_set(self.id[CONFIG], 1)
  C.pl_engine_observe(engine, self.id["vllm:iteration_tokens_total"])
end

function M.moved() end
function M.too_long() end

local COUNTED = {
  preemptions = "vllm:num_preemptions_total", prompt_tokens = "vllm:prompt_tokens_total",
  generation_tokens = "vllm:generation_tokens_total",
  prefix_queries = "vllm:prefix_cache_queries_total",
  prefix_hits = "vllm:prefix_cache_hits_total", steps = "perilune_engine_steps_total",
}

-- Brings what the engine counts up to date; returns its statistics.
function M:refresh()
  local s = self.stats
  if not self.engine then return s end
  C.pl_engine_stats_get(self.engine, s)
  local function set(name, v) C.pl_metric_set(self.id[name], v) end
  set("vllm:num_requests_running", s.running)
  set("vllm:num_requests_waiting", s.waiting + s.waiting_remote)
  set("vllm:kv_cache_usage_perc", s.blocks > 0 and s.blocks_used / s.blocks or 0)
  set("perilune_kv_blocks_cached", s.blocks_cached)
  for field, name in pairs(COUNTED) do
    local now = tonumber(s[field])
    C.pl_metric_add(self.id[name], now - (self.last[field] or 0))
    self.last[field] = now
  end
  return s
end

function M:observe(name, v)
  C.pl_metric_observe(self.id[name], v)
end

local function seconds(from, to)
  return math.max(0, tonumber(to - from) / 1e9)
end

local function observe_choice(self, job, last)
  C.pl_metric_add(self.finished[job.answer.FINISH[last.finish]], 1)
  self:observe("vllm:request_generation_tokens", last.n_tokens)
  self:observe("vllm:e2e_request_latency_seconds", seconds(job.arrived, C.pl_now_ns()))
  if last.n_tokens == 0 then return end
  local decode = seconds(last.first_ns, last.last_ns)
  self:observe("vllm:time_to_first_token_seconds", seconds(job.arrived, last.first_ns))
  self:observe("vllm:request_queue_time_seconds",
    seconds(last.submitted_ns, last.scheduled_ns))
  self:observe("vllm:request_prefill_time_seconds",
    seconds(last.scheduled_ns, last.first_ns))
  self:observe("vllm:request_decode_time_seconds", decode)
  self:observe("vllm:request_inference_time_seconds",
    seconds(last.scheduled_ns, last.last_ns))
  if last.n_tokens == 1 then return end
  self:observe("vllm:request_time_per_output_token_seconds",
    decode / (last.n_tokens - 1))
end

-- A request's choices have ended.
function M:done(job, choices)
  local n, longest = job.plan.n, 0
  self:observe("vllm:request_params_n", n)
  for i, c in ipairs(choices) do
    longest = math.max(longest, c.last.n_tokens)
    if (i - 1) % n == 0 then
      self:observe("vllm:request_prompt_tokens", c.prompt.n_tokens)
      self:observe("vllm:request_params_max_tokens", c.prompt.max_tokens)
    end
    observe_choice(self, job, c.last)
  end
  self:observe("vllm:request_max_num_generation_tokens", longest)
end

return M
