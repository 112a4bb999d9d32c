-- SPDX-License-Identifier: Apache-2.0
-- recipe/flags_elsewhere.lua - flags that people know from vLLM and llama-server and that
-- have another name here, or none.
--
-- A row: the flags, then `to` (what to say instead) or `why` (there is none). A flag that
-- means the same here under the same name has no row.

local M = {}

local PER_REQUEST = "set it per request; for a default: --override-generation-config.%s"
local ONE_DEVICE = "a worker runs on the CPU of one machine; --worker.count runs several"
local CPU_ONLY = "a worker runs on the CPU in this release"
local FROM_FILE = "weights keep the type that they have in the file"
local NOT_YET = "not in this release"

local ROWS = {
  { "-m", to = "serve MODEL, or --model" },
  { "-a", "--alias", to = "--served-model-name" },
  { "-hf", "-hfr", "--hf-repo", "--hf-file", "-hff", "-mu", "--model-url",
    "--download-dir",
    why = "nothing is downloaded here: hf download ORG/NAME, then serve ORG/NAME" },
  { "-c", "--ctx-size", "--n-ctx", "--max-seq-len", to = "--max-model-len" },
  { "-t", "-tb", "--threads-batch", "--n-threads", to = "--threads" },
  { "-np", "--parallel", "--max-running-requests", to = "--max-num-seqs" },
  { "-b", "--batch-size", "-ub", "--ubatch-size", to = "--max-num-batched-tokens" },
  { "-ctk", "--cache-type-k", "-ctv", "--cache-type-v", to = "--kv-cache-dtype" },
  { "--chat-template-file", to = "--chat-template" },
  { "--api-key-file", to = "--api-key, or $PERILUNE_API_KEY" },
  { "-to", "--timeout", to = "--request-timeout" },
  { "-v", "--verbose", "-lv", "--log-verbosity", to = "--log-level debug" },
  { "--rope-scaling", "--rope-theta", "--rope-scale", "--rope-freq-base",
    "--rope-freq-scale", "--yarn-orig-ctx", "--yarn-ext-factor",
    to = "--hf-overrides, fields of the model's config.json" },
  { "--mem-fraction-static", to = "--gpu-memory-utilization" },
  { "--swap-space", to = "--kv-cache-memory-bytes, the memory of the KV cache" },
  { "-tp", "--tensor-parallel-size", "-pp", "--pipeline-parallel-size", "-ep",
    "--enable-expert-parallel", "-sm", "--split-mode", "-ts", "--tensor-split",
    why = ONE_DEVICE },
  { "-dp", "--data-parallel-size", to = "--worker.count, or more workers on a bus" },
  { "-ngl", "--gpu-layers", "--n-gpu-layers", "-mg", "--main-gpu", "-dev",
    "--compilation-config", "-O", "--cpu-offload-gb", why = CPU_ONLY },
  { "--dtype", "--quantization", "-q", why = FROM_FILE .. "; see --activations" },
  { "--speculative-config", "-md", "--model-draft", "--enable-lora", "--lora",
    "--lora-modules", "--ssl-keyfile", "--ssl-certfile", "--ssl-key-file",
    "--ssl-cert-file", "--enable-auto-tool-choice", "--tool-call-parser",
    "--reasoning-parser", "--reasoning-format", "--grammar", "--json-schema",
    "--embedding", "--embeddings", "--rerank", "--reranking", "-mm", "--mmproj",
    why = NOT_YET },
  { "--router-mode", to = "nothing: the least busy worker takes a request" },
  { "-fa", "--flash-attn", "-cb", "--cont-batching", "--jinja", "--metrics",
    "--async-scheduling", to = "nothing: it is always on" },
  { "--mlock", "--no-mmap", "--numa", "--use-tqdm-on-load",
    to = "nothing: weights are read once and packed for the CPU" },
  { "--cache-reuse", "--cache-prompt",
    to = "--enable-prefix-caching, which is the default" },
  { "--trust-remote-code", to = "nothing: a model's code is never run" },
  { "--disable-log-requests", to = "nothing: --enable-log-requests is off by default" },
  { "--tokenizer-mode", "--config-format", to = "nothing: the model's files say so" },
  { "--root-path", "--api-prefix", "--uds", why = "a proxy in front of it does that" },
  { "-n", "--predict", "--n-predict", why = PER_REQUEST:format "max_new_tokens" },
  { "--temp", "--temperature", why = PER_REQUEST:format "temperature" },
  { "--top-k", why = PER_REQUEST:format "top_k" },
  { "--top-p", why = PER_REQUEST:format "top_p" },
  { "--min-p", why = PER_REQUEST:format "min_p" },
  { "--repeat-penalty", "--repetition-penalty",
    why = PER_REQUEST:format "repetition_penalty" },
  { "-s", why = "the seed is set per request" },
}

local index = {}
for _, row in ipairs(ROWS) do
  for _, flag in ipairs(row) do index[flag] = row end
end

-- What to say of a flag, or nil where nobody else's is known by that word.
function M.hint(flag)
  local row = index[flag:gsub("_", "-")]
  if not row then return nil end
  return row.to and "here: " .. row.to or row.why
end

M.ROWS = ROWS

return M
