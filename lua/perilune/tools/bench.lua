-- SPDX-License-Identifier: Apache-2.0
-- tools/bench.lua - perilune bench: how fast a server is, as its clients see it.
--
-- Works against any server that speaks OpenAI's /v1/completions with streaming. Either so
-- many requests at once, or so many a second with the gaps of a Poisson process.

local client = require "perilune.tools.http_client"
local drive = require "perilune.tools.bench_streams"
local engine = require "perilune.ffi"
local fit = require "perilune.tools.bench_fit"
local flags = require "perilune.recipe.command_line"
local json = require "cjson.safe"
local C = engine.C

local M = {}

local rows = flags.rows {
  { "url", "http://127.0.0.1:8000", "the server" },
  { "model", nil, "which of its models; unset: its first", kind = "string" },
  { "api_key", nil, "sent as Bearer; unset: $PERILUNE_API_KEY", kind = "string" },
  { "requests", 200, "how many in all", kind = "integer", min = 1, max = 1e6 },
  { "concurrency", 16, "how many at once", kind = "integer", min = 1, max = 4096 },
  { "rate", nil, "how many a second, instead of so many at once", kind = "number",
    min = 1e-3, max = 1e6 },
  { "input_len", 128, "words of a prompt: about as many tokens", kind = "integer",
    min = 1, max = 1e6 },
  { "output_len", 64, "tokens of an answer", kind = "integer", min = 1, max = 1e6 },
  { "ignore_eos", true, "ask the server to continue to output_len" },
  { "seed", 0, "of prompts and arrival times", kind = "integer", min = 0, max = 2 ^ 31 },
  { "timeout", 300, "seconds of silence until a request fails", min = 1, max = 86400 },
  { "json", nil, "a file for the figures", kind = "string" },
  { "fit", nil, "a file for what its steps take, which `perilune sim --timing` reads; "
    .. "measured up to --input-len and --concurrency", kind = "string" },
}

-- Short words that most vocabularies know whole.
local WORDS = {}
for word in ([[time year people way day man thing woman life child world school state
  family student group country problem hand part place case week company system program
  question work number night point home water room mother area money story fact month
  lot right study book eye job word business issue side kind head house service friend
  father power hour game line end member law car city name team minute idea body back
  parent face level office door health person art war history party result change]])
  :gmatch "%a+" do WORDS[#WORDS + 1] = word end

-- A prompt of n words that starts unlike the others: no prefix of it is cached.
local function prompt(n)
  local out = {}
  for i = 1, n do out[i] = WORDS[math.random(#WORDS)] end
  return table.concat(out, " ")
end

local function request(options, url, headers)
  return client.request(url, "POST", "/v1/completions", headers, json.encode {
    model = options.model, prompt = prompt(options.input_len),
    max_tokens = options.output_len, temperature = 0, stream = true,
    ignore_eos = options.ignore_eos or nil,
    stream_options = { include_usage = true },
  })
end

-- Of a list: how many, mean, and the values below which 50, 90 and 99 in 100 are.
function M.summary(list)
  local sorted, sum = {}, 0
  for i, v in ipairs(list) do sorted[i], sum = v, sum + v end
  table.sort(sorted)
  local function rank(p) return sorted[math.max(1, math.ceil(#sorted * p / 100))] end
  return { n = #sorted, mean = #sorted > 0 and sum / #sorted or nil,
           p50 = rank(50), p90 = rank(90), p99 = rank(99) }
end

-- The figures of a run: what drive answers, summed up.
function M.figures(run)
  local out = {
    requests = run.done, failed = run.failed, seconds = run.seconds,
    requests_per_second = run.done / run.seconds,
    input_tokens = run.input_tokens, output_tokens = run.output_tokens,
    input_tokens_per_second = run.input_tokens / run.seconds,
    output_tokens_per_second = run.output_tokens / run.seconds,
    counted_by = run.uncounted == 0 and "usage" or "events",
    ttft_ms = M.summary(run.ttft), itl_ms = M.summary(run.itl),
    latency_ms = M.summary(run.latency), errors = {},
    interrupted = run.interrupted,
  }
  for text, n in pairs(run.errors) do
    out.errors[#out.errors + 1] = { text = text, n = n }
  end
  table.sort(out.errors, function(a, b)
    return a.n > b.n or (a.n == b.n and a.text < b.text)
  end)
  return out
end

local function number(v)
  return v and ("%9.2f"):format(v) or "        -"
end

function M.report(f)
  local out = { ("%d requests, %d failed, in %.2f s"):format(f.requests, f.failed,
                                                              f.seconds) }
  for _, name in ipairs { "requests", "input_tokens", "output_tokens" } do
    out[#out + 1] = ("  %-16s %s"):format(name:gsub("_", " ") .. "/s",
                                          number(f[name .. "_per_second"]))
  end
  if f.interrupted then out[1] = out[1] .. ", interrupted" end
  if f.counted_by == "events" then
    out[#out + 1] = "  the server reports no usage: output counted by events"
  end
  out[#out + 1] = ("  %-16s %9s %9s %9s %9s"):format("", "mean", "p50", "p90", "p99")
  for _, name in ipairs { "ttft", "itl", "latency" } do
    local s = f[name .. "_ms"]
    out[#out + 1] = ("  %-16s %s %s %s %s"):format(name .. " ms", number(s.mean),
      number(s.p50), number(s.p90), number(s.p99))
  end
  for _, e in ipairs(f.errors) do
    out[#out + 1] = ("  %d times: %s"):format(e.n, e.text)
  end
  return table.concat(out, "\n")
end

local function progress(options)
  if C.pl_terminal_is(2) == 0 then return function() end end
  return function(finished, seconds)
    local width = math.floor(30 * finished / options.requests)
    io.stderr:write(("\r  [%s%s] %d/%d  %.0f s "):format(
      ("="):rep(width), (" "):rep(30 - width), finished, options.requests, seconds))
    if finished == options.requests then io.stderr:write "\r\27[K" end
  end
end

-- The options that are not merely numbers: url, headers, model; nil and why.
local function prepare(options)
  local url, why = client.parse_url(options.url)
  if not url then return nil, why end
  local headers = client.headers(options)
  if not options.model then
    local connection = client.connection(url, headers, options.timeout * 1000)
    options.model, why = client.first_model(connection)
    connection:close()
    if not options.model then return nil, why end
  end
  math.randomseed(options.seed)
  return { url = url, headers = headers }
end

local function save(path, figures)
  local file, why = io.open(path, "w")
  if not file then return nil, why end
  file:write(json.encode(figures), "\n")
  file:close()
  return true
end

local function fail(why)
  io.stderr:write("perilune: ", why, "\n")
  return 1
end

-- A run with these options; what was measured, or nil and why.
local function measure(options, ready)
  return drive {
    url = ready.url, requests = options.requests, concurrency = options.concurrency,
    rate = options.rate, timeout = options.timeout, progress = progress(options),
    request = function() return request(options, ready.url, ready.headers) end,
  }
end

local function run_fit(options, ready)
  local figures, text = fit.run(options, function(shape)
    return measure(setmetatable(shape, { __index = options }), ready)
  end)
  if not figures then return fail(text) end
  local ok, why = save(options.fit, figures)
  if not ok then return fail(why) end
  print(text)
  return 0
end

local function run_once(options, ready)
  local run, why = measure(options, ready)
  if not run then return fail(why) end
  local figures = M.figures(run)
  print(M.report(figures))
  if options.json then
    figures.options = { model = options.model, requests = options.requests,
      concurrency = not options.rate and options.concurrency or nil,
      rate = options.rate, input_len = options.input_len,
      output_len = options.output_len, seed = options.seed }
    local ok, unwritten = save(options.json, figures)
    if not ok then return fail(unwritten) end
  end
  return (figures.failed > 0 or figures.interrupted) and 1 or 0
end

function M.run(words, complain)
  if words[1] == "--help" then
    print("perilune bench: measure a server\n\n" .. flags.help(rows))
    return 0
  end
  local options, why, hint = flags.options(rows, words)
  if not options then return complain(why, hint or "perilune bench --help") end
  if options.fit and (options.rate or options.json) then
    return complain("--fit goes with neither --rate nor --json", "perilune bench --help")
  end
  local ready, bad = prepare(options)
  if not ready then return fail(bad) end
  if options.fit then return run_fit(options, ready) end
  return run_once(options, ready)
end

return M
