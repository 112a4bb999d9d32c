-- SPDX-License-Identifier: Apache-2.0
-- requests.lua - requests of every kind whose answers are the same each time, long enough
-- to be disturbed; and what is asked first to make them so.

local pl = require "perilune.ffi"
local C = pl.C

local M = {}

-- A die that falls the same way each time: roll(low, high).
function M.dice(seed)
  local n = 0
  return function(low, high)
    n = n + 1
    return low + tonumber(C.pl_random_at(seed, n, 11) % (high - low + 1))
  end
end

local WORDS = { "moon", "dark", "side", "probe", "signal", "orbit", "lander", "dust",
  "night", "crater", "relay", "silent" }

local function prose(roll, n)
  local out = {}
  for i = 1, n do out[i] = WORDS[roll(1, #WORDS)] end
  return table.concat(out, " ")
end

local COMPLETION, CHAT = "/v1/completions", "/v1/chat/completions"

-- Each kind: a function of a die that gives path and body. Tokens are what the long model
-- of the test has room for (2,048 with the prompt); words are some two or three tokens.
local kinds = {}

function kinds.greedy(roll)
  return COMPLETION, { prompt = prose(roll, 12), temperature = 0, stream = true,
    stream_options = { include_usage = true }, return_token_ids = true }
end

function kinds.sampled(roll)
  return CHAT, { messages = { { role = "user", content = prose(roll, 10) } },
    temperature = 1, top_p = 0.9, seed = roll(1, 1e6), stream = true,
    stream_options = { include_usage = true } }
end

function kinds.whole(roll)
  return COMPLETION, { prompt = prose(roll, 8), temperature = 0.7, top_k = 40, min_p = 0.01,
    seed = roll(1, 1e6) }
end

function kinds.two(roll)
  return COMPLETION, { prompt = prose(roll, 8), temperature = 1, n = 2, max_tokens = 500,
    seed = roll(1, 1e6), stream = roll(1, 2) == 1 }
end

function kinds.logprobs(roll)
  return COMPLETION, { prompt = prose(roll, 8), temperature = 1, logprobs = 3,
    max_tokens = 500, seed = roll(1, 1e6), stream = true, return_token_ids = true,
    stream_options = { include_usage = true, continuous_usage_stats = true } }
end

function kinds.chat_logprobs(roll)
  return CHAT, { messages = { { role = "user", content = prose(roll, 8) } },
    temperature = 0, logprobs = true, top_logprobs = 2, max_tokens = 500 }
end

function kinds.prompt_logprobs(roll)
  return COMPLETION, { prompt = prose(roll, 40), temperature = 0.5, prompt_logprobs = 1,
    seed = roll(1, 1e6) }
end

function kinds.echo(roll)
  return COMPLETION, { prompt = prose(roll, 10), temperature = 0.9, echo = true, logprobs = 1,
    max_tokens = 500, seed = roll(1, 1e6), stream = roll(1, 2) == 1 }
end

-- `stop` is found in the answer without one: M.with_stop.
function kinds.stop_string(roll)
  return COMPLETION, { prompt = prose(roll, 8), temperature = 0.8, seed = roll(1, 1e6),
    stream = roll(1, 2) == 1, include_stop_str_in_output = roll(1, 2) == 1 }
end

function kinds.penalties(roll)
  return COMPLETION, { prompt = prose(roll, 10), temperature = 0.6, seed = roll(1, 1e6),
    repetition_penalty = 1.1, presence_penalty = 0.3, frequency_penalty = 0.2,
    stream = true }
end

-- Ends by the first of many ids that it draws once it may.
function kinds.min_tokens(roll)
  local ids = {}
  for i = 1, 40 do ids[i] = 40 + i * 13 end
  return COMPLETION, { prompt = prose(roll, 8), temperature = 1, seed = roll(1, 1e6),
    min_tokens = 500 + roll(0, 100), stop_token_ids = ids, stream = true }
end

function kinds.long_prompt(roll)
  return COMPLETION, { prompt = prose(roll, 400), temperature = 0.5, seed = roll(1, 1e6),
    max_tokens = 400, stream = true }
end

function kinds.constrained(roll)
  local ids = {}
  for i = 1, 200 do ids[i] = 90 + i * 2 end
  return COMPLETION, { prompt = prose(roll, 8), temperature = 1, seed = roll(1, 1e6),
    allowed_token_ids = ids, logit_bias = { ["100"] = -5, ["102"] = 3 }, stream = true }
end

-- Without a seed: nothing but its length can be known.
function kinds.unseeded(roll)
  return CHAT, { messages = { { role = "user", content = prose(roll, 10) } },
    temperature = 1, stream = true, stream_options = { include_usage = true } }
end

M.KINDS = {}
for kind in pairs(kinds) do M.KINDS[#M.KINDS + 1] = kind end
table.sort(M.KINDS)

-- `variants` requests of each kind: a list of { kind, path, body }. `tokens`: how long
-- their answers are unless the kind says so or a stop ends them.
function M.list(seed, variants, tokens)
  local roll, list = M.dice(seed), {}
  for _, kind in ipairs(M.KINDS) do
    for _ = 1, variants do
      local path, body = kinds[kind](roll)
      body.max_tokens = math.min(body.max_tokens or tokens, tokens)
      body.min_tokens = body.min_tokens and math.min(body.min_tokens, tokens / 2)
      body.ignore_eos = true
      list[#list + 1] = { kind = kind, path = path, body = body }
    end
  end
  return list
end

-- Gives a request of the kind stop_string its stop: characters that `text`, its answer
-- without one, first has in its last third.
function M.with_stop(request, text)
  local from = math.floor(#text * 0.66)
  for at in text:gmatch "()[ -~][ -~][ -~][ -~][ -~]" do
    local stop = text:sub(at, at + 4)
    if at >= from and text:find(stop, 1, true) == at then
      request.body.stop = { stop, "no such words" }
      return
    end
  end
  error("no stop string in '" .. text .. "'")
end

return M
