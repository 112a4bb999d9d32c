-- SPDX-License-Identifier: Apache-2.0
-- recipe/options/process.lua - what a process logs and measures. schema.lua explains the
-- rows.

return {
  section = "top",
  { "log_level", "info", "lowest level that is logged", also = { "uvicorn_log_level" },
    choices = { "debug", "info", "warning", "error" }, live = true },
  { "log_format", "auto", "auto: text on a terminal, JSON lines otherwise",
    choices = { "auto", "text", "json" } },
  { "disable_log_stats", false, "do not log throughput every ten seconds", live = true },
  { "watch", false, "reload the recipe when its file, or one that it loads, changes" },
  { "record", nil, "a file for requests as they end, without text, for perilune sim",
    kind = "string", unset = "none" },
  { "metrics_endpoint_port", nil, "a worker's own port for /metrics, /health and /live",
    kind = "integer", min = 0, max = 65535, unset = "none" },
}
