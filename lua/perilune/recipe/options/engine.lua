-- SPDX-License-Identifier: Apache-2.0
-- recipe/options/engine.lua - a pool of workers and its engines. schema.lua explains the
-- rows.

local machine = require "perilune.recipe.machine"

return {
  section = "pool",
  { "count", 1, "workers in the pool; with a role given, in this process", min = 1,
    max = 64 },
  { "tags", nil, "words that hooks know its workers by", kind = "strings",
    unset = "none" },
  { "max_model_len", nil, "most tokens of prompt and answer; auto, -1: what memory holds",
    kind = "integer", min = 2, max = 2 ^ 24, words = { "auto", -1 },
    unset = "as the model was trained" },
  { "seed", 0, "seed of dummy weights", min = 0 },
  { "load_format", "auto", "auto: from files; dummy: random weights, for benchmarks",
    choices = { "auto", "dummy" } },
  { "device", "auto", "where to run; auto: on a usable GPU, otherwise on the CPU; "
    .. "null computes nothing and answers at once; others are plug-ins, "
    .. "libperilune_NAME.so beside the program",
    like = "^[%l%d]+$", wants = "auto, cpu, cuda, null, or a plug-in's name" },
  { "threads", 0, "threads of the CPU device; 0: one per core", min = 0, max = 1024 },
  { "kernels", "auto", "instruction set for the CPU device; auto: the best available",
    choices = { "auto", "scalar", "avx2", "avx512", "avx512bf16" } },
  { "enforce_eager", false, "launch a GPU's kernels one by one, without graphs: slower, "
    .. "same answers" },
  { "activations", "auto", "arithmetic with quantized weights; auto: int8x2, which "
    .. "answers as float32 does; int8: faster, but logprobs are off by up to 1.0",
    choices = { "auto", "float32", "int8x2", "int8" } },
  { "block_size", 16, "tokens per block of the KV cache; a multiple of 16",
    min = 1, max = 1024 },
  -- vLLM takes nine tenths of a device that it has to itself. A CPU's memory is shared.
  { "kv_cache_memory_bytes", machine.kv_bytes, "memory of the KV cache", kind = "integer",
    min = 1, unset = "4 GiB, or a quarter of memory if that is less; on a GPU as "
      .. "gpu_memory_utilization says" },
  { "gpu_memory_utilization", 0.9, "share of a GPU's memory for weights, steps and KV "
    .. "cache, where kv_cache_memory_bytes is not set", kind = "number", min = 0.01,
    max = 1 },
  { "num_kv_blocks", nil, "blocks in the KV cache, regardless of kv_cache_memory_bytes",
    kind = "integer", min = 2, max = 2 ^ 24, also = { "num_gpu_blocks_override" },
    unset = "as many as kv_cache_memory_bytes holds" },
  { "kv_cache_dtype", "auto", "type of keys and values in the cache; auto: int16, with a "
    .. "scale per head and token",
    choices = { "auto", "float32", "int16" } },
  { "enable_prefix_caching", true, "reuse the KV blocks of prompts seen before" },
  { "kv_events", true, "tell frontends which blocks are cached; off: they go by what "
    .. "they have sent. With upstream: where each server publishes its KV events",
    urls = true },
  { "kv_events_config", {}, "vLLM's KV events over ZeroMQ: enable_kv_cache_events, "
    .. "publisher, endpoint, replay_endpoint, topic, buffer_steps, hwm, max_queue_size" },
  { "kv_load_failure_policy", "recompute", "what becomes of a request whose KV does not "
    .. "come from the worker that read its prompt", choices = { "recompute", "fail" } },
  { "kv_transfer_config", {}, "vLLM's: kv_connector (NixlConnector), kv_role, "
    .. "kv_load_failure_policy; other fields change nothing" },
  -- vLLM: sha256, which hashes the output of Python's pickle; CBOR is a standard.
  { "prefix_caching_hash_algo", "sha256_cbor", "hash of a block",
    choices = { "sha256_cbor", "sha256", "xxhash_cbor" } },
  -- vLLM: 2048 and more. Far fewer rows saturate a CPU, and every running request waits
  -- for the step: 512 bounds that wait and costs no throughput.
  { "max_num_batched_tokens", 512, "maximum tokens in one step", min = 1, max = 2 ^ 20 },
  { "max_num_seqs", 256, "maximum sequences running at once", min = 1, max = 65536 },
  { "enable_chunked_prefill", true, "split a long prompt over several steps" },
  { "long_prefill_token_threshold", 0, "most tokens of one prompt in a step; 0: no limit",
    min = 0, max = 2 ^ 24 },
  { "scheduling_policy", "fcfs", "first come first served, or by priority, lowest first",
    choices = { "fcfs", "priority" } },
  { "stream_interval", 1, "tokens per event of a stream", min = 1, max = 2 ^ 24,
    live = true },
}
