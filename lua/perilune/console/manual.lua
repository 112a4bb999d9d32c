-- SPDX-License-Identifier: Apache-2.0
-- console/manual.lua - what `perilune help` says: the commands, one option, or all of
-- them.

local fields = require "perilune.recipe.hook_fields"
local hook_help = require "perilune.recipe.hook_help"
local hooks = require "perilune.recipe.hooks"
local meta = require "perilune.console.meta"
local metrics = require "perilune.watch.metrics"
local nearest = require "perilune.recipe.nearest"
local params = require "perilune.api.params"
local pl = require "perilune.ffi"
local schema = require "perilune.recipe.schema"
local values = require "perilune.recipe.option_value"
local C = pl.C

local M = {}

local USAGE = [[
perilune serves language models.

  perilune serve MODEL [--option value]    serve a model: a GGUF file, a folder, Org/Name
  perilune run RECIPE [ROLE] [--option v]  run a recipe, a Lua file such as agg;
                                           ROLE: only frontend or worker, on a bus
  perilune check RECIPE [--option value]   show every option's value and its origin
  perilune ps [--bus URL]                  list processes on this machine, or on a bus
  perilune drain NAME                      take a process such as worker/1 out of service
  perilune resume NAME                     put it back into service
  perilune role NAME prefill|decode        have a worker read prompts, or answer
  perilune attach [NAME] [-e EXPR]         a Lua prompt inside a process: frontend/0
  perilune explain ID [NAME]               why a request went to its worker
  perilune top [NAME]                      watch where a process spends its time
  perilune chat [--url URL]                chat with a server
  perilune bench [--url URL]               benchmark a server
  perilune sim RECIPE --trace FILE         try a recipe on recorded requests
  perilune new FILE [--from RECIPE]        begin a recipe of your own from a shipped one
  perilune test SPEC...                    run tests of a recipe, without a server
  perilune help [OPTION]                   explain an option; or all of them: `options`,
                                           `sampling`, `metrics`; `meta`: for editors
  perilune version
  perilune lua FILE                        run a Lua file in this program]]

function M.usage()
  return USAGE
end

-- The options that most people change first.
local COMMON = { "served_model_name", "host", "port", "api_key", "max_model_len",
  "kv_cache_memory_bytes", "max_num_seqs", "threads", "chat_template", "log_level" }

-- These as flags, and how to see the rest.
function M.common()
  local out = {}
  for _, name in ipairs(COMMON) do
    local row = schema.find(name)
    local default = row.unset and "" or (" (%s)"):format(values.show(row.default))
    out[#out + 1] = ("  --%-22s %s%s"):format(name:gsub("_", "-"), row.doc, default)
  end
  out[#out + 1] = "\nperilune help OPTION explains one; perilune help options lists all"
  return table.concat(out, "\n")
end

M.serve = [[
perilune serve MODEL [--option value]

  MODEL   a GGUF file; a folder with config.json and safetensors; or what `hf download`
          left in its cache: Org/Name, Org/Name/FILE.gguf

This runs recipes/serve.lua. The most important flags:
]]

M.run = [[
perilune run RECIPE [ROLE] [--option value]

  RECIPE  a Lua file, or the name of one installed with perilune: agg
  ROLE    frontend or worker: run only that part, on a bus (--bus)
  --model names the model, unless the recipe does
  --watch reloads the recipe when its file, or one that it loads, changes

`perilune run RECIPE --help` describes a recipe and its own flags.
The most important flags:
]]

M.explain = [[
perilune explain ID [NAME]

  ID     a request's id, or how that begins: its X-Request-Id, or the id of the answer
  NAME   the frontend that had it, such as frontend/0; without it the only process here

It shows which worker the request was given, and what was known of all of them then. The
last thousand decisions are kept. The flags are those of `perilune attach`: --bus,
--json.]]

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
    "  values   " .. values.wants(row),
    "  default  " .. default_of(row),
    "  set      " .. WHERE[row.section],
  }
  if row.env then out[#out + 1] = "  or       $" .. table.concat(row.env, ", $") end
  out[#out + 1] = row.live and "  live: can change while running, by console or reload"
                  or "  fixed while running"
  return table.concat(out, "\n")
end

local TITLES = {
  top = "At the top of a recipe", http = "In `http = { ... }`",
  pool = "In a pool, `worker = { ... }`",
}

local HEAD = [[
# Options

<!-- Generated from recipe/schema.lua: perilune help options > docs/options.md -->

A recipe sets an option by its name, `max_num_seqs = 64`; on the command line it has
dashes, `--max-num-seqs 64`. A pool option given as a flag applies to every pool;
`--worker.max-num-seqs 64` to one. Booleans are `--name` or `--no-name`; integers may be
written `1k` (1000) or `1K` (1024); tables are JSON, or one field at a time:
`--hf-overrides.rope_theta 1e6`.

A value comes from the default, the environment, the recipe or a flag; the last one wins.
`perilune check RECIPE` shows every value and its origin. *Live* options can be changed
while the server runs, from its console or by reloading the recipe (SIGHUP).]]

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
    out[#out + 1] = "\n| option | default | values | live | meaning |"
    out[#out + 1] = "|---|---|---|---|---|"
    for _, row in ipairs(schema.rows[section]) do out[#out + 1] = table_row(row) end
  end
  return table.concat(out, "\n")
end

local METRICS_HEAD = [[
# Metrics

<!-- Generated from watch/metrics_rows.lua: perilune help metrics > docs/metrics.md -->

`/metrics` uses Prometheus's text format, on a frontend's port and on a worker's
`metrics_endpoint_port`. Names that begin with `vllm:` or `dynamo_` have the meaning they
have in vLLM or Dynamo, so dashboards for those work; `perilune_` metrics are our own.

A process with engines reports on each, with the labels `model_name` and `engine` (0, 1,
...); `dynamo_component_*` also have `dynamo_namespace`, `dynamo_component` (`backend`)
and `dynamo_endpoint` (`generate`). A process that answers requests reports on them by
`model_name`, or by `model` for `dynamo_frontend_*`: these are measured at the frontend,
whichever engines served the requests. Health checks of idle engines (`canary_wait`) are
not counted.

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

local SAMPLING_HEAD = [[
# Sampling options

*Made from the table of `core/params.c` by `perilune help sampling`.*

Each is a field of requests. Defaults are the engine's; the model's
`generation_config.json` and the endpoint may set others. [http.md](http.md#fields) lists
the other fields.

While a deployment has workers of two versions, a request with an option that some of them
do not know runs on the others; if no worker knows the option, the request gets a 503.

| field | default | must be | what it does |
|---|---|---|---|]]

-- docs/sampling.md, whole.
function M.sampling()
  local out = { SAMPLING_HEAD }
  for _, row in ipairs(params.ROWS) do
    local default = row.kind == C.PL_PARAM_BOOL and tostring(row.initial == 1)
      or ("%g"):format(row.initial)
    out[#out + 1] = ("| `%s` | %s | %s | %s |"):format(row.name, default, row.wants,
      row.what)
  end
  return table.concat(out, "\n")
end

local function row_of(rows, name)
  for _, row in ipairs(rows or {}) do
    if row[1] == name then return row end
  end
end

-- Of pl.mix, pl.cost.kv and the like: what it is, and its type or what is in it.
local function of_pl(word)
  local name, member = word:match "^pl%.([%l_]+)%.?([%l_]*)$"
  local row = row_of(fields.pl, name)
  if row and member ~= "" then row = row_of(fields[name], member) end
  if not row then return nil end
  local out = { ("%s   %s"):format(word, row[3]) }
  if member == "" and fields[name] then
    for _, one in ipairs(fields[name]) do
      out[#out + 1] = ("  pl.%s.%-14s %s"):format(name, one[1], one[3])
    end
  else
    out[2] = "  " .. meta.kind(name, row)
  end
  return table.concat(out, "\n")
end

-- The help text for a word; nil, why, hint if there is none.
function M.about(word)
  if word == "options" then return M.options() end
  if word == "metrics" then return M.metrics() end
  if word == "meta" then return meta.text() end
  if word == "sampling" then return M.sampling() end
  local found = of_pl(word)
  if found then return found end
  local name = word:gsub("^%-%-", ""):gsub("-", "_"):match "[^.]*$"
  local row = schema.find(name)
  if row then return row_text(row) end
  for section, names in pairs(schema.hooks) do
    if names[name] then
      local path = section == "pool" and "worker." .. name or name
      return hook_help.text(name, WHERE[section], hooks.is_asked(path))
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
