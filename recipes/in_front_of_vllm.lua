-- SPDX-License-Identifier: Apache-2.0
-- in_front_of_vllm.lua - running vLLM servers; a request goes where its prefix is warm,
-- unless that server has too much to do. The model's tokenizer is needed here, its
-- weights are not.
--
--   vllm serve Qwen/Qwen3-8B --port 8001 --kv-events-config \
--     '{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:5557"}'
--   perilune run in_front_of_vllm --model Qwen/Qwen3-8B \
--     --upstream http://gpu1:8001 http://gpu2:8001 \
--     --kv-events tcp://gpu1:5557 tcp://gpu2:5557
--
-- Without --kv-events it goes by what it has sent where, for router_ttl_secs: so does any
-- OpenAI server.

return {
  http   = { port = 8000 },
  worker = {
    upstream = { "http://127.0.0.1:8001", "http://127.0.0.1:8002" },
    prefix_caching_hash_algo = "sha256",    -- vLLM's default; block_size is 16, as there
  },
  migration_limit = 1,
}
