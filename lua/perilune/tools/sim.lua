-- SPDX-License-Identifier: Apache-2.0
-- tools/sim.lua - perilune sim: recipes on a trace of requests, in virtual time.

local pl = require "perilune.ffi"
local flags = require "perilune.recipe.command_line"
local models = require "perilune.sim.models"
local page = require "perilune.sim.page"
local recipe = require "perilune.recipe.resolve"
local report = require "perilune.sim.report"
local run = require "perilune.sim.run"
local timing = require "perilune.sim.timing"
local traces = require "perilune.sim.trace"
local C, ffi = pl.C, pl.ffi

local M = {}

local MAX_POLICIES = 256

local rows = flags.rows {
  { "trace", nil, "the requests: JSON lines as Mooncake writes them", kind = "string" },
  { "workers", nil, "workers (besides prefill's); unset: the recipe's count",
    kind = "integer", min = 1, max = 4096 },
  { "speed", 1, "how many times faster requests come than they did", min = 1e-3,
    max = 1e6 },
  { "requests", nil, "only so many, the first", kind = "integer", min = 1, max = 1e7 },
  { "timing", "dynamo", "how long steps take: a JSON file, or `dynamo`, as there" },
  { "seed", 0, "of pl.random()", kind = "integer", min = 0, max = 2 ^ 31 },
  { "sweep", nil, "an option's values in turn: overlap=0,0.5,1", kind = "string" },
  { "policies", nil, "a folder of recipes, instead of one, to be compared",
    kind = "string" },
  { "json", false, "the last line is JSON: an object, or of several policies an array" },
  { "csv", nil, "a file for the table as CSV", kind = "string" },
  { "html", nil, "a file for a page with plots", kind = "string" },
}

local HELP = [[
perilune sim RECIPE --trace FILE [--option value]

Runs the recipe's hooks, line, scheduler and KV cache on recorded requests, in virtual
time, and prints what became of them. No model is needed, only how long its steps take.
All options of `perilune run` may be given too, such as --num-kv-blocks.
]]

local function complain(text, hint)
  io.stderr:write("perilune: ", text, "\n")
  if hint then io.stderr:write("    ", hint, "\n") end
  return 2
end

local function report_problems(problems)
  for _, problem in ipairs(problems) do
    io.stderr:write(problem.text, "\n")
    if problem.hint then io.stderr:write("    ", problem.hint, "\n") end
  end
  return problems[1].usage and 2 or 1
end

-- The values of our own flags, and the words of the others, which are the recipe's; or
-- nil and why.
local function take_flags(words)
  local parsed, options, rest = flags.parse(words), {}, {}
  for _, row in ipairs(rows) do
    local value, by = flags.claim(parsed, row)
    if value == nil and by then return nil, by end
    if value == nil then value = row.default end
    options[row.name] = value
  end
  for _, flag in ipairs(parsed.flags) do
    if not flag.used and flag.closed then
      rest[#rest + 1] = flag.word .. "=" .. flag.values[1]
    elseif not flag.used then
      rest[#rest + 1] = flag.word
      for _, value in ipairs(flag.values) do rest[#rest + 1] = value end
    end
  end
  return options, rest, parsed.words
end

local function base_name(path)
  return path:match "([^/]+)%.lua$" or path:match "[^/]+$" or path
end

-- The recipes of a folder, in order; or nil and why.
local function in_folder(folder)
  local buf, out = ffi.new "pl_buf", {}
  C.pl_list_folder(folder, ".lua", MAX_POLICIES, buf)
  for path in pl.take(buf):gmatch "[^\n]+" do
    out[#out + 1] = { name = path, policy = base_name(path), words = {} }
  end
  if not out[1] then return nil, ("'%s' has no recipes in it"):format(folder) end
  return out
end

-- What is to be simulated: { name, policy, words } each; or nil and why.
local function policies_of(options, named)
  local list, why = nil, nil
  if options.policies then
    list, why = in_folder(options.policies)
  elseif named then
    list = { { name = named, policy = base_name(named), words = {} } }
  end
  if not list then return nil, why or "sim needs a recipe, or --policies" end
  if not options.sweep then return list end
  local key, values = options.sweep:match "^([%w_.-]+)=(.+)$"
  if not key then return nil, "--sweep wants an option and values: overlap=0,0.5,1" end
  local out = {}
  for _, item in ipairs(list) do
    for value in values:gmatch "[^,]+" do
      out[#out + 1] = { name = item.name, policy = ("%s %s=%s"):format(item.policy, key,
        value), words = { flags.spell(key) .. "=" .. value } }
    end
  end
  return out
end

local function write_file(path, text)
  local file, why = io.open(path, "w")
  if not file then return nil, why end
  file:write(text)
  file:close()
  return true
end

-- In words: what was simulated.
local function about(options, trace, resolved, workers)
  local pool = resolved[resolved.main]
  local tokens = (models.blocks(pool) - 1) * pool.block_size
  return ("%d requests of %s at speed %g; %d workers with %d tokens of KV cache each "
    .. "(blocks of %d%s), steps as %s says"):format(#trace, options.trace, options.speed,
      workers, tokens, pool.block_size,
      pool.num_kv_blocks and "" or "; num_kv_blocks is not set", options.timing)
end

local function show_progress(done, all)
  if C.pl_terminal_is(2) == 0 then return end
  local text = done < all and ("\r  %d of %d policies "):format(done, all)
  io.stderr:write(text or "\r\27[K")
end

-- Simulates all of them: rows for the report and the words; or nil and the exit code.
local function simulate(list, options, trace, rest)
  local steps, why = timing.open(options.timing)
  if not steps then return nil, complain(why) end
  local out, said = {}, nil
  for i, item in ipairs(list) do
    show_progress(i - 1, #list)
    local words = { unpack(rest) }
    for _, word in ipairs(item.words) do words[#words + 1] = word end
    local resolved, problems = recipe.resolve(item.name, words)
    if not resolved then return nil, report_problems(problems) end
    local figures
    figures, why = run(resolved, trace, { workers = options.workers,
      speed = options.speed, timing = steps, seed = options.seed })
    if not figures then return nil, complain(why) end
    said = said or about(options, trace, resolved, figures.workers)
    out[i] = { policy = item.policy, figures = figures }
  end
  show_progress(#list, #list)
  return out, said
end

local function tell(options, out, said)
  print(said)
  print(table.concat(report.table(out), "\n"))
  for _, line in ipairs(report.metrics(out)) do print("  " .. line) end
  if options.json then print(report.json(out)) end
  local files = { { options.csv, report.csv },
    { options.html, function(list) return page.html(list, "perilune sim", said) end } }
  for _, file in ipairs(files) do
    if file[1] then
      local ok, why = write_file(file[1], file[2](out))
      if not ok then return complain(why) end
    end
  end
  return 0
end

function M.run(given)
  local words, named = { unpack(given) }, nil
  if words[1] and not words[1]:match "^%-" then named = table.remove(words, 1) end
  for _, word in ipairs(given) do
    if word == "--help" or word == "-h" then
      print(HELP .. flags.help(rows))
      return 0
    end
  end
  local options, rest, strange = take_flags(words)
  if not options then return complain(rest, "perilune sim --help") end
  if strange[1] then return complain(("'%s' is not a flag"):format(strange[1])) end
  if not options.trace then
    return complain("sim needs --trace FILE", "perilune sim --help")
  end
  local list, why = policies_of(options, named)
  if not list then return complain(why, "perilune sim --help") end
  local trace
  trace, why = traces.read(options.trace, options.requests)
  if not trace then return complain(why) end
  local out, said = simulate(list, options, trace, rest)
  if not out then return said end
  return tell(options, out, said)
end

return M
