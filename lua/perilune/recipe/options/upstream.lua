-- SPDX-License-Identifier: Apache-2.0
-- recipe/options/upstream.lua - a pool whose workers are servers elsewhere, of any make.
-- schema.lua explains the rows.

return {
  section = "pool",
  { "upstream", nil, "URLs of OpenAI servers that are the workers of this pool",
    kind = "strings", unset = "engines of perilune's own", address = true },
  { "upstream_api_key", nil, "key that these servers want", kind = "string",
    env = { "PERILUNE_UPSTREAM_API_KEY" }, secret = true,
    unset = "the client's, unless it is one of http.api_key" },
  { "upstream_tls_ca", nil, "PEM file with the CAs trusted for upstream by https",
    kind = "string", unset = "the system's" },
  { "kv_events_replay", nil, "where each server repeats KV events (replay_endpoint)",
    kind = "strings", unset = "nowhere" },
  { "connect_timeout", 5, "seconds to reach a server", kind = "number", min = 0.001,
    max = 86400, live = true },
  { "first_byte_timeout", 600, "seconds until its answer begins", kind = "number",
    min = 0.001, max = 86400, live = true },
  { "read_timeout", 60, "seconds of silence in the middle of its answer",
    kind = "number", min = 0.001, max = 86400, live = true },
}
