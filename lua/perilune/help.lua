-- SPDX-License-Identifier: Apache-2.0
-- help.lua - what `perilune help` says: the commands, one option, or all of them.

local hook_help = require "perilune.hook_help"
local metrics = require "perilune.metrics"
local nearest = require "perilune.nearest"
local schema = require "perilune.schema"
local values = require "perilune.values"

local M = {}

local USAGE = [[
perilune serves language models.

  perilune serve MODEL [--option value]    serve a model: a GGUF file, a folder, Org/Name
  perilune run RECIPE [ROLE] [--option v]  serve by a recipe, a Lua file such as agg;
                                           ROLE: frontend or worker, alone, on a bus
  perilune check RECIPE [--option value]   say every value and who set it
  perilune ps [--bus URL]                  the processes that run here, or on a bus
  perilune drain NAME                      empty one: worker/1
  perilune resume NAME                     let it take requests again
  perilune attach [NAME] [-e EXPR]         a Lua prompt inside one: frontend/0
  perilune top [NAME]                      where its time goes
  perilune chat [--url URL]                talk to a server
  perilune bench [--url URL]               measure a server
  perilune help [OPTION]                   an option's row; `options`, `metrics`: all
  perilune version
  perilune lua FILE                        run a Lua file in this program]]

function M.usage()
  return USAGE
end

-- The options that most people change first.
local COMMON = { "served_model_name", "host", "port", "api_key", "max_model_len",
  "kv_cache_memory_bytes", "max_num_seqs", "threads", "chat_template", "log_level" }

-- They as flags, and how to see the rest.
function M.common()
  local out = {}
  for _, name in ipairs(COMMON) do
    local row = schema.find(name)
    local default = row.unset and "" or (" (%s)"):format(values.show(row.default))
    out[#out + 1] = ("  --%-22s %s%s"):format(name:gsub("_", "-"), row.doc, default)
  end
  out[#out + 1] = "\nperilune help OPTION says more of one; all: perilune help options"
  return table.concat(out, "\n")
end

M.serve = [[
perilune serve MODEL [--option value]

  MODEL   a GGUF file; a folder with config.json and safetensors; or what `hf download`
          left in its cache: Org/Name, Org/Name/FILE.gguf

It runs recipes/serve.lua. The flags that matter most:
]]

M.run = [[
perilune run RECIPE [ROLE] [--option value]

  RECIPE  a Lua file, or the name of one that came with perilune: agg
  ROLE    frontend or worker: that part of it alone, on a bus (--bus)
  --model says which model, unless the recipe does

`perilune run RECIPE --help` says what a recipe is for, and its own flags.
The flags that matter most:
]]

M.check = [[
perilune check RECIPE [ROLE] [--option value]

It takes the same words as `perilune run` and starts nothing: it prints each setting, its
value and what set it, or what is wrong.]]

local WHERE = {
  top = "at the top of a recipe", http = "in http = { ... }",
  pool = "in a pool: worker = { ... }",
}

local function default_of(row)
  if row.unset then return row.unset end
  return values.show(row.default)
end

local function row_text(row)
  local out = {
    ("%s   --%s"):format(row.name, row.name:gsub("_", "-")),
    "  " .. row.doc,
    "  wants    " .. values.wants(row),
    "  default  " .. default_of(row),
    "  stands   " .. WHERE[row.section],
  }
  if row.env then out[#out + 1] = "  or       $" .. table.concat(row.env, ", $") end
  out[#out + 1] = row.live and "  live: changes while running, by console or reload"
                  or "  fixed while running"
  return table.concat(out, "\n")
end

local TITLES = {
  top = "At the top of a recipe", http = "In `http = { ... }`",
  pool = "In a pool, `worker = { ... }`",
}

local HEAD = [[
# Options

<!-- `perilune help options > docs/options.md` writes this, from schema.lua. -->

Each stands in a recipe under its name, and on the command line with dashes:
`max_num_seqs = 64` and `--max-num-seqs 64`. A flag of a pool's option means every pool;
`--worker.max-num-seqs 64` means one. A boolean is `--name` or `--no-name`; an integer may
be written `1k` (1000) or `1K` (1024); a table is JSON, or one field of it:
`--hf-overrides.rope_theta 1e6`.

A value comes from the default, the environment, the recipe or a flag; the later wins.
`perilune check RECIPE` shows every value and who set it. Options that are *live* change
under a running server: by its console, or by a reload of the recipe (SIGHUP).]]

local function cell(text)
  return (text:gsub("|", "\\|"):gsub("<", "&lt;"))
end

local function table_row(row)
  local default = row.unset or "`" .. values.show(row.default) .. "`"
  local doc = row.doc
  if row.env then doc = doc .. " (`$" .. table.concat(row.env, "`, `$") .. "`)" end
  if row.also then doc = doc .. "; also `" .. table.concat(row.also, "`, `") .. "`" end
  return ("| `%s` | %s | %s | %s | %s |"):format(
    row.name, cell(default), cell(values.wants(row)), row.live and "live" or "",
    cell(doc))
end

-- docs/options.md, whole.
function M.options()
  local out = { HEAD }
  for _, section in ipairs(schema.sections) do
    out[#out + 1] = "\n## " .. TITLES[section]
    out[#out + 1] = "\n| option | default | wants | live | meaning |"
    out[#out + 1] = "|---|---|---|---|---|"
    for _, row in ipairs(schema.rows[section]) do out[#out + 1] = table_row(row) end
  end
  return table.concat(out, "\n")
end

local METRICS_HEAD = [[
# Metrics

*Made from `lua/perilune/metrics_rows.lua` by `perilune help metrics`.*

`/metrics` answers in Prometheus's text format, at a frontend's port and at a worker's
`metrics_endpoint_port`. Names that begin with `vllm:` mean what they mean in vLLM, those
with `dynamo_` what they mean in Dynamo, so their dashboards work; `perilune_` are ours.

A process that has engines tells of each, with the labels `model_name` and `engine` (0, 1,
...); as `dynamo_component_*` also with `dynamo_namespace`, `dynamo_component` (`backend`)
and `dynamo_endpoint` (`generate`). A process that answers requests tells of them by
`model_name`, as `dynamo_frontend_*` by `model`: they are measured where the client is,
whichever engines served them. Trials of an idle engine (`canary_wait`) are counted
nowhere.

| name | type | meaning |
|---|---|---|]]

-- docs/metrics.md, whole.
function M.metrics()
  local out = { METRICS_HEAD }
  for _, row in ipairs(metrics.ROWS) do
    out[#out + 1] = ("| `%s` | %s | %s |"):format(row[2], row[1], row[3])
  end
  return table.concat(out, "\n")
end

-- What there is to say about a word; nil, why, hint where there is nothing.
function M.about(word)
  if word == "options" then return M.options() end
  if word == "metrics" then return M.metrics() end
  local name = word:gsub("^%-%-", ""):gsub("-", "_"):match "[^.]*$"
  local row = schema.find(name)
  if row then return row_text(row) end
  for section, hooks in pairs(schema.hooks) do
    if hooks[name] then
      return hook_help.text(name, WHERE[section], section == "top")
    end
  end
  local names = {}
  for _, section in ipairs(schema.sections) do
    for _, known in ipairs(schema.names(section)) do names[#names + 1] = known end
  end
  local near = nearest(name, names)
  return nil, ("no option '%s'"):format(word),
         near and ("did you mean '%s'?"):format(near) or "perilune help options"
end

return M
