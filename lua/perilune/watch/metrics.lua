-- SPDX-License-Identifier: Apache-2.0
-- watch/metrics.lua - what a process counts, by the names that vLLM's and Dynamo's users
-- know.
--
--   local m = metrics.new { model = "name", namespace = "perilune" }
--   m:add_engine(0, engine, { cache = { { "block_size", 16 } } })    -- before it starts
--   m:started(job) ... m:moved(job, "ongoing_request") ... m:done(job, choices)
--
-- What C counts (an engine's statistics) is read when /metrics is asked for or the log
-- line is due; what belongs to a request is counted at its end. A frontend may have no
-- engine, a worker no requests. watch/metrics_rows.lua says what there is.

local pl = require "perilune.ffi"
local rows = require "perilune.watch.metrics_rows"
local C, ffi = pl.C, pl.ffi

local M = {}
M.__index = M

-- All rows in the order of docs/metrics.md.
M.ROWS = {}
local row_of = {}
for _, group in ipairs { "engine", "choice", "request", "counted", "component",
    "hook", "process" } do
  for _, row in ipairs(rows[group]) do
    M.ROWS[#M.ROWS + 1] = row
    row_of[row[2]] = row
  end
end

local CONFIG = "vllm:cache_config_info"
local REASONS = { "stop", "length", "abort", "error" }
local KINDS = { counter = C.PL_COUNTER, gauge = C.PL_GAUGE, histogram = C.PL_HISTOGRAM }

local function escape(s)
  return (tostring(s):gsub('[\\"]', "\\%0"):gsub("\n", "\\n"))
end

-- Pairs of names and values as they are printed.
local function labels_of(pairs_)
  local out = {}
  for i, pair in ipairs(pairs_) do
    out[i] = ('%s="%s"'):format(pair[1], escape(pair[2]))
  end
  return table.concat(out, ",")
end

-- The series of a row's name under these labels: its id.
local function open(name, labels)
  local kind, _, help, buckets = unpack(row_of[name])
  local list = buckets and ffi.new("double[?]", #buckets, buckets)
  local id = C.pl_metric_open(KINDS[kind], name, labels, help, list,
    buckets and #buckets or 0)
  if id < 0 then error(name .. ": " .. ffi.string(C.pl_error_text()), 2) end
  return id
end

local function open_all(group, labels, ids)
  for _, row in ipairs(group) do ids[row[2]] = open(row[2], labels) end
  return ids
end

-- `model`: what requests are for unless they say; nil where that is not known yet.
function M.new(o)
  local self = setmetatable({ model = o.model, namespace = o.namespace or "perilune",
    models = {}, engines = {} }, M)
  if o.model then self:add_model(o.model) end
  return self
end

-- ---- engines -------------------------------------------------------------------------

-- An engine of this process, before it starts. `o`: model; cache, how the KV cache is set
-- (pairs); load_seconds, how long the model took to load.
function M:add_engine(index, engine, o)
  local model = o.model or self.model
  local own = { { "model_name", model }, { "engine", index } }
  local ids = {}
  for _, row in ipairs(rows.engine) do
    local labels = labels_of(own)
    if row[2] == CONFIG and o.cache then
      labels = labels .. "," .. labels_of(o.cache)
    end
    ids[row[2]] = open(row[2], labels)
  end
  open_all(rows.component, labels_of { { "dynamo_namespace", self.namespace },
    { "dynamo_component", "backend" }, { "dynamo_endpoint", "generate" },
    { "model", model }, { "model_name", model }, { "engine", index } }, ids)
  C.pl_metric_set(ids[CONFIG], 1)
  C.pl_metric_set(ids["dynamo_component_model_load_time_seconds"], o.load_seconds or 0)
  C.pl_engine_observe(engine, C.PL_OBSERVE_STEP_TOKENS,
    ids["vllm:iteration_tokens_total"])
  C.pl_engine_observe(engine, C.PL_OBSERVE_SECONDS,
    ids["dynamo_component_request_duration_seconds"])
  self.engines[#self.engines + 1] = { index = index, engine = engine, id = ids,
    last = {}, stats = ffi.new "pl_engine_stats", since = C.pl_now_ns() }
end

local COUNTED = {
  preemptions = { "vllm:num_preemptions_total" },
  prompt_tokens = { "vllm:prompt_tokens_total" },
  generation_tokens = { "vllm:generation_tokens_total" },
  prefix_queries = { "vllm:prefix_cache_queries_total" },
  prefix_hits = { "vllm:prefix_cache_hits_total" },
  steps = { "perilune_engine_steps_total" },
  finished = { "dynamo_component_requests_total" },
  aborted = { "dynamo_component_cancellation_total" },
}

local function refresh_engine(e)
  local s, id = e.stats, e.id
  C.pl_engine_stats_get(e.engine, s)
  local waiting = s.waiting + s.waiting_remote
  local used = s.blocks > 0 and s.blocks_used / s.blocks or 0
  C.pl_metric_set(id["vllm:num_requests_running"], s.running)
  C.pl_metric_set(id["vllm:num_requests_waiting"], waiting)
  C.pl_metric_set(id["dynamo_component_inflight_requests"], s.running + waiting)
  C.pl_metric_set(id["vllm:kv_cache_usage_perc"], used)
  C.pl_metric_set(id["dynamo_component_gpu_cache_usage_percent"], used)
  C.pl_metric_set(id["dynamo_component_total_blocks"], s.blocks)
  C.pl_metric_set(id["perilune_kv_blocks_cached"], s.blocks_cached)
  C.pl_metric_set(id["dynamo_component_uptime_seconds"],
    tonumber(C.pl_now_ns() - e.since) / 1e9)
  for field, names in pairs(COUNTED) do
    local now = tonumber(s[field])
    C.pl_metric_add(id[names[1]], now - (e.last[field] or 0))
    e.last[field] = now
  end
end

-- Brings what is read, not told, up to date: self.engines[i].stats too.
function M:refresh()
  for _, e in ipairs(self.engines) do refresh_engine(e) end
  for _, m in pairs(self.models) do
    C.pl_metric_set(m.id["dynamo_frontend_active_requests"], m.active)
    C.pl_metric_set(m.id["dynamo_frontend_inflight_requests"], m.active)
  end
end

-- All series as Prometheus reads them.
function M:render()
  local buf = ffi.new "pl_buf"
  self:refresh()
  C.pl_metric_render(buf)
  return pl.take(buf)
end

-- ---- models --------------------------------------------------------------------------

local ENDPOINTS = { chat = "chat_completions", completion = "completions" }

-- The ids of what is counted for requests like this one: by how they end, by "started"
-- and "cancelled"; opened as they are needed.
local function cells_of(m, plan)
  local by = m.by[plan.kind]
  local cells = plan.stream and by.stream or by.unary
  if cells then return cells end
  local kind = plan.stream and "stream" or "unary"
  local labels = { m.label, { "endpoint", ENDPOINTS[plan.kind] },
    { "request_type", kind } }
  cells = { ends = {}, labels = labels,
    started = open("dynamo_frontend_requests_started_total", labels_of(labels)) }
  by[kind] = cells
  return cells
end

local function open_end(cells, error_type)
  local labels = { unpack(cells.labels) }
  labels[4] = { "status", error_type == "" and "success" or "error" }
  labels[5] = { "error_type", error_type }
  local id = open("dynamo_frontend_requests_total", labels_of(labels))
  cells.ends[error_type] = id
  return id
end

-- What is rare needs no ids at hand.
local function count(name, by, ...)
  C.pl_metric_add(open(name, labels_of { ... }), by)
end

local CANCELLED, REJECTED = "dynamo_frontend_model_cancellation_total",
  "dynamo_frontend_model_rejection_total"
local MOVED, LONG = "dynamo_frontend_model_migration_total",
  "dynamo_frontend_model_migration_max_seq_len_exceeded_total"
local NUMERICS, GONE = "perilune_moves_to_other_numerics_total",
  "dynamo_frontend_disconnected_clients"
local MISSED = "perilune_router_missed_blocks_total"

-- All that may be counted of a model stands at 0 first: what begins at 1 shows no growth.
local function open_counted(m)
  for kind, endpoint in pairs(ENDPOINTS) do
    count(REJECTED, 0, m.label, { "endpoint", endpoint })
    for _, stream in ipairs { true, false } do
      local cells = cells_of(m, { kind = kind, stream = stream })
      open_end(cells, "")
      count(CANCELLED, 0, unpack(cells.labels))
    end
  end
  for _, kind in ipairs { "new_request", "ongoing_request" } do
    count(MOVED, 0, m.label, { "migration_type", kind })
  end
  for _, name in ipairs { LONG, NUMERICS, MISSED } do count(name, 0, m.label) end
  count(GONE, 0)
end

local function open_model(name)
  local own = labels_of { { "model_name", name } }
  local m = { id = {}, finished = {}, by = { chat = {}, completion = {} }, active = 0,
    label = { "model", name } }
  for _, row in ipairs(rows.choice) do
    if row[1] == "histogram" then m.id[row[2]] = open(row[2], own) end
  end
  for _, reason in ipairs(REASONS) do
    m.finished[reason] = open("vllm:request_success_total",
      labels_of { { "model_name", name }, { "finished_reason", reason } })
  end
  open_all(rows.request, labels_of { m.label }, m.id)
  C.pl_metric_also(m.id["vllm:inter_token_latency_seconds"],
    m.id["dynamo_frontend_inter_token_latency_seconds"])
  open_counted(m)
  return m
end

-- A model that requests may be for. `config`, as far as it is known: total_kv_blocks,
-- max_num_seqs, max_num_batched_tokens, context_length, kv_cache_block_size,
-- migration_limit. Known models may be told anew.
function M:add_model(name, config)
  local m = self.models[name] or open_model(name)
  self.models[name] = m
  for field, value in pairs(config or {}) do
    C.pl_metric_set(m.id["dynamo_frontend_model_" .. field], value)
  end
  return m
end

local function model_of(self, job)
  local name = job.model or self.model or ""
  return self.models[name] or self:add_model(name)
end

-- What observes the seconds between a stream's tokens (pl_stream_observe).
function M:gap(job)
  return model_of(self, job).id["vllm:inter_token_latency_seconds"]
end

-- ---- requests ------------------------------------------------------------------------

local function count_end(m, job, error_type)
  local cells = cells_of(m, job.plan)
  C.pl_metric_add(cells.ends[error_type] or open_end(cells, error_type), 1)
  if job.is_active then
    m.active, job.is_active = m.active - 1, false
  end
end

-- The gauge of whether a server elsewhere is there.
function M.upstream(_, name)
  return open("perilune_upstream_up", labels_of { { "worker", name } })
end

-- So many workers of a model's pool are ready.
function M.workers(_, model, pool, n)
  C.pl_metric_set(open("perilune_workers", labels_of { { "model", model },
    { "pool", pool } }), n)
end

-- It is taken on. `job`: plan (kind, stream) and, where it is not the one, model; done or
-- refused will follow.
function M:started(job)
  local m = model_of(self, job)
  m.active, job.is_active = m.active + 1, true
  C.pl_metric_add(cells_of(m, job.plan).started, 1)
end

local ERRORS = { [404] = "not_found", [429] = "overload", [499] = "cancelled",
  [501] = "not_implemented", [503] = "overload", [529] = "overload" }

-- It was answered with an error, whether it had been taken on or not. `error_type`:
-- where the status does not say enough.
function M:refused(job, status, error_type)
  local m = model_of(self, job)
  error_type = error_type or ERRORS[status]
    or (status < 500 and "validation" or "internal")
  if error_type == "overload" then
    count(REJECTED, 1, m.label, { "endpoint", ENDPOINTS[job.plan.kind] })
  end
  count_end(m, job, error_type)
end

-- It goes on elsewhere; `kind`: new_request while it had no token, or ongoing_request.
function M:moved(job, kind)
  count(MOVED, 1, model_of(self, job).label, { "migration_type", kind })
end

-- It had tokens and went to a worker of another numerics id: it may go on with other
-- bits.
function M:moved_numerics(job)
  count(NUMERICS, 1, model_of(self, job).label)
end

-- So many blocks of its prompt were thought to be cached where it went, and were not.
function M:missed(job, blocks)
  count(MISSED, blocks, model_of(self, job).label)
end

-- It may not move any more: it is longer than migration_max_seq_len.
function M:too_long(job)
  count(LONG, 1, model_of(self, job).label)
end

-- It was stopped before its end, by its client's going (`gone`) or otherwise. Once a
-- request; done does it for one that ends by abort, where job.over (api/serve.lua) tells
-- who stopped it.
function M:cancelled(job, gone)
  if job.is_cancelled then return end
  job.is_cancelled = true
  count(CANCELLED, 1, unpack(cells_of(model_of(self, job), job.plan).labels))
  if gone then count(GONE, 1) end
end

local function seconds(from, to)
  return (math.max(0, tonumber(to - from) / 1e9))
end

local function observe(id, value)
  C.pl_metric_observe(id, value)
end

-- Of one choice; answers its seconds to the first token, or nil.
local function observe_choice(m, job, last, age)
  local id, n = m.id, last.n_tokens
  C.pl_metric_add(m.finished[job.answer.FINISH[last.finish]], 1)
  observe(id["vllm:request_generation_tokens"], n)
  observe(id["vllm:e2e_request_latency_seconds"], age)
  if n == 0 then return nil end
  local first = seconds(job.arrived, last.first_ns)
  local decode = seconds(last.first_ns, last.last_ns)
  observe(id["vllm:time_to_first_token_seconds"], first)
  observe(id["vllm:request_queue_time_seconds"],
    seconds(last.submitted_ns, last.scheduled_ns))
  observe(id["vllm:request_prefill_time_seconds"],
    seconds(last.scheduled_ns, last.first_ns))
  observe(id["vllm:request_decode_time_seconds"], decode)
  observe(id["vllm:request_inference_time_seconds"],
    seconds(last.scheduled_ns, last.last_ns))
  if n > 1 then
    observe(id["vllm:request_time_per_output_token_seconds"], decode / (n - 1))
  end
  return first
end

-- What a request is as a whole. `first`: seconds to its first token, or nil.
local function observe_request(m, age, n_in, n_out, cached, first)
  local id = m.id
  observe(id["dynamo_frontend_request_duration_seconds"], age)
  observe(id["dynamo_frontend_input_sequence_tokens"], n_in)
  observe(id["dynamo_frontend_output_sequence_tokens"], n_out)
  observe(id["dynamo_frontend_cached_tokens"], cached)
  C.pl_metric_add(id["dynamo_frontend_output_tokens_total"], n_out)
  if first then observe(id["dynamo_frontend_time_to_first_token_seconds"], first) end
end

local ENDS = { [C.PL_FINISH_ABORT] = "cancelled", [C.PL_FINISH_ERROR] = "internal" }

-- Its choices have ended. How it went: "", "cancelled" or "internal".
function M:done(job, choices)
  local m, age = model_of(self, job), seconds(job.arrived, C.pl_now_ns())
  local id, n, how = m.id, job.plan.n, ""
  local longest, n_in, n_out, cached, soonest = 0, 0, 0, 0, nil
  observe(id["vllm:request_params_n"], n)
  for i, c in ipairs(choices) do
    local last, prompt = c.last, c.prompt
    if (i - 1) % n == 0 then
      n_in, cached = n_in + prompt.n_tokens, cached + last.n_cached
      observe(id["vllm:request_prompt_tokens"], prompt.n_tokens)
      observe(id["vllm:request_params_max_tokens"], prompt.max_tokens)
    end
    local first = observe_choice(m, job, last, age)
    if first and first < (soonest or math.huge) then soonest = first end
    longest, n_out = math.max(longest, last.n_tokens), n_out + last.n_tokens
    if how ~= "internal" then how = ENDS[last.finish] or how end
  end
  observe(id["vllm:request_max_num_generation_tokens"], longest)
  observe_request(m, age, n_in, n_out, cached, soonest)
  if how == "cancelled" then self:cancelled(job, job.over == nil) end
  count_end(m, job, how)
  return how
end

return M
