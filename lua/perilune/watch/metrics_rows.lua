-- SPDX-License-Identifier: Apache-2.0
-- watch/metrics_rows.lua - every metric, one row: { kind, name, help text, buckets }.
--
-- Names and buckets of vllm:* are vLLM's, those of dynamo_* Dynamo's; ours are
-- perilune_*. docs/metrics.md is generated from these.

local M = {}

-- Dynamo's buckets: 0, then up to `max` in geometric steps, rounded to two digits.
function M.log_buckets(min, max, count)
  local list = { 0 }
  for i = 1, count - 1 do
    local v = tonumber(("%.1e"):format(min * (max / min) ^ (i / (count - 1))))
    if v > list[#list] then list[#list + 1] = v end
  end
  return list
end

local TTFT = { .001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10,
  20, 40, 80, 160, 640, 2560 }
local ITL = { .0005, .001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3, .4, .5,
  .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80 }
local SECONDS = { .3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240,
  480, 960, 1920, 7680 }
local COUNTS = { 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000,
  50000, 100000, 200000 }
local STEPS = { 1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384 }

local DURATION = M.log_buckets(1, 512, 10)
local INPUT = M.log_buckets(50, 128000, 12)

-- Of an engine, in the process that has it. Labels: model_name, engine.
M.engine = {
  { "gauge", "vllm:num_requests_running", "sequences in the running batch" },
  { "gauge", "vllm:num_requests_waiting", "sequences waiting to run" },
  { "gauge", "vllm:kv_cache_usage_perc", "share of KV blocks in use, 0 to 1" },
  { "gauge", "perilune_kv_blocks_cached", "free KV blocks that still hold a prefix" },
  { "counter", "vllm:num_preemptions_total", "sequences preempted to make room" },
  { "counter", "vllm:prompt_tokens_total",
    "prompt tokens computed or found in the cache" },
  { "counter", "vllm:generation_tokens_total", "tokens generated" },
  { "counter", "vllm:prefix_cache_queries_total",
    "prompt tokens looked up in the cache" },
  { "counter", "vllm:prefix_cache_hits_total", "prompt tokens found in the cache" },
  { "counter", "perilune_engine_steps_total", "steps the engine has run" },
  { "histogram", "vllm:iteration_tokens_total", "tokens per step", STEPS },
  { "gauge", "vllm:cache_config_info", "always 1; the labels describe the KV cache" },
}

-- The same, as Dynamo's worker. Labels: dynamo_namespace, dynamo_component,
-- dynamo_endpoint, model, model_name, engine.
M.component = {
  { "counter", "dynamo_component_requests_total", "sequences finished" },
  { "gauge", "dynamo_component_inflight_requests", "sequences under way" },
  { "counter", "dynamo_component_cancellation_total", "sequences cancelled" },
  { "histogram", "dynamo_component_request_duration_seconds",
    "from a sequence's arrival at the engine to its end", DURATION },
  { "gauge", "dynamo_component_total_blocks", "KV blocks" },
  { "gauge", "dynamo_component_gpu_cache_usage_percent",
    "share of the KV blocks in use, 0 to 1" },
  { "gauge", "dynamo_component_model_load_time_seconds",
    "how long the model took to load" },
  { "gauge", "dynamo_component_uptime_seconds", "time since the engine started" },
}

-- Of the choices a frontend has answered with, by model. Label: model_name.
M.choice = {
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
  { "histogram", "vllm:request_prompt_tokens", "prompt tokens per request", COUNTS },
  { "histogram", "vllm:request_generation_tokens",
    "generated tokens per request", COUNTS },
  { "histogram", "vllm:request_max_num_generation_tokens",
    "generated tokens of each request's longest choice", COUNTS },
  { "histogram", "vllm:request_params_max_tokens", "max_tokens of a request", COUNTS },
  { "histogram", "vllm:request_params_n", "n of a request", { 1, 2, 5, 10, 20 } },
  { "histogram", "vllm:inter_token_latency_seconds", "time between two tokens", ITL },
  { "counter", "vllm:request_success_total",
    "finished choices by finished_reason: stop, length, abort, error" },
}

-- Of whole requests, by model. Label: model; others if noted.
M.request = {
  { "gauge", "dynamo_frontend_active_requests",
    "requests under way, from arrival to the end of the answer" },
  { "gauge", "dynamo_frontend_inflight_requests", "the same, under its older name" },
  { "histogram", "dynamo_frontend_request_duration_seconds", "from arrival to the end",
    DURATION },
  { "histogram", "dynamo_frontend_time_to_first_token_seconds",
    "from arrival to the first token", M.log_buckets(.001, 480, 18) },
  { "histogram", "dynamo_frontend_inter_token_latency_seconds",
    "time between two tokens", M.log_buckets(.001, 80, 20) },
  { "histogram", "dynamo_frontend_input_sequence_tokens", "prompt tokens", INPUT },
  { "histogram", "dynamo_frontend_output_sequence_tokens", "generated tokens",
    M.log_buckets(50, 32000, 10) },
  { "histogram", "dynamo_frontend_cached_tokens",
    "prompt tokens found in a cache", INPUT },
  { "counter", "dynamo_frontend_output_tokens_total", "generated tokens" },
  { "gauge", "dynamo_frontend_model_total_kv_blocks", "KV blocks of a worker" },
  { "gauge", "dynamo_frontend_model_max_num_seqs", "its max_num_seqs" },
  { "gauge", "dynamo_frontend_model_max_num_batched_tokens",
    "its max_num_batched_tokens" },
  { "gauge", "dynamo_frontend_model_context_length", "its max_model_len" },
  { "gauge", "dynamo_frontend_model_kv_cache_block_size", "its block_size" },
  { "gauge", "dynamo_frontend_model_migration_limit", "migration_limit" },
}

-- Metrics with labels of their own, listed at the end of the help text.
M.counted = {
  { "counter", "dynamo_frontend_requests_started_total",
    "requests accepted: model, endpoint, request_type" },
  { "counter", "dynamo_frontend_requests_total",
    "requests answered: model, endpoint, request_type (unary, stream), status (success, "
    .. "error), error_type (validation, not_found, overload, cancelled, internal, "
    .. "not_implemented, or empty)" },
  { "counter", "dynamo_frontend_model_migration_total",
    "moves to another worker: model, migration_type (new_request, ongoing_request)" },
  { "counter", "dynamo_frontend_model_migration_max_seq_len_exceeded_total",
    "requests too long to move: model" },
  { "counter", "dynamo_frontend_model_cancellation_total",
    "requests cancelled: model, endpoint, request_type" },
  { "counter", "dynamo_frontend_model_rejection_total",
    "requests refused because of overload: model, endpoint" },
  { "counter", "perilune_moves_to_other_numerics_total",
    "moves to a worker with different numerics, or between servers of `upstream`, after "
    .. "the first token: model" },
  { "counter", "perilune_router_missed_blocks_total",
    "KV blocks that a worker was thought to have cached, but had not: model" },
  { "gauge", "perilune_workers", "workers that are ready: model, pool (worker, decode, "
    .. "or prefill, whose workers read prompts)" },
  { "gauge", "perilune_upstream_up",
    "whether a server of `upstream` takes requests, 1 or 0: worker" },
  { "gauge", "dynamo_frontend_disconnected_clients",
    "clients that disconnected before the end of their answers" },
}

-- Of a recipe's hooks. Label: hook.
M.hook = {
  { "counter", "perilune_hook_errors_total",
    "failed calls of a hook, for which the default applied" },
  { "histogram", "perilune_hook_seconds",
    "time per call of a hook, after probation",
    { 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, .1, 1 } },
}

-- Of the process. C opens these, with the same help texts.
M.process = {
  { "counter", "perilune_lua_stalls_total",
    "times that Lua did not poll for a second" },
  { "gauge", "perilune_bus_connected",
    "1 while the bus is connected; absent without one" },
  { "counter", "perilune_bus_messages_sent_total", "messages sent to the bus" },
  { "counter", "perilune_bus_messages_received_total", "messages received from the bus" },
  { "counter", "perilune_bus_resent_total", "messages sent again after a loss" },
  { "counter", "perilune_bus_dropped_total",
    "bus messages dropped because malformed or too many" },
  { "counter", "perilune_bus_malformed_messages_total",
    "malformed messages from other processes" },
  { "gauge", "perilune_direct_links",
    "links to other processes that have a socket of their own" },
  { "counter", "perilune_direct_frames_sent_total", "frames sent over such sockets; "
    .. "those over the bus count as its messages" },
  { "counter", "perilune_direct_frames_received_total", "frames received over them" },
  { "counter", "perilune_direct_refused_total",
    "connections closed because of what came, or did not come, over them" },
  { "counter", "perilune_bus_lost_total", "links to other processes lost: "
    .. "reason (gone, silent, left, reset, bus)" },
  { "counter", "dynamo_component_kv_cache_events_applied",
    "blocks that workers' caches gained or lost, by their word: status (ok), event_type "
    .. "(stored, removed, cleared)" },
  { "gauge", "perilune_kv_transfer_prompts",
    "prompts whose KV is, or may be, on its way" },
  { "counter", "perilune_kv_transfer_bytes_total",
    "bytes of KV copied from the engine that read a prompt" },
  { "histogram", "perilune_kv_transfer_seconds",
    "from when a prompt was read and its blocks had a place until they were there" },
  { "counter", "perilune_kv_transfer_failures_total",
    "prompts read again because their KV did not come: reason (ended, late, layout, "
    .. "lost, corrupt)" },
  { "gauge", "perilune_kv_index_blocks",
    "blocks that workers are known to hold, counted for each worker" },
  { "counter", "perilune_kv_index_gaps_total",
    "times that it was not known any more what a worker holds" },
  { "counter", "perilune_kv_events_published_total",
    "batches of KV events published over ZeroMQ" },
  { "counter", "perilune_kv_events_dropped_total",
    "batches of KV events dropped, as max_queue_size was reached" },
}

return M
