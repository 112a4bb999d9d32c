-- SPDX-License-Identifier: Apache-2.0
-- SmolLM2-135M-Instruct (Q4_1), teacher-forced on reference outputs computed in float32.
-- Needs $PERILUNE_MODEL (the GGUF file) and smollm2.json in $PERILUNE_GOLDEN.

local cjson = require "cjson"
local engine = require "support.engine"
local golden = require "support.golden"
local open_device = require "support.device"
local pl = require "perilune.ffi"
local tokenizer = require "perilune.model.tokenizer"
local tools = require "text_tools"

local FLOAT32 = { activations = "float32", kv_cache_dtype = "float32" }

local function sorted_errors(r, case)
  local n, errors, out = #case.ids, {}, { tokens = {} }
  for i, top5 in ipairs(case.top5) do
    -- The row after token n + i - 1 of the forced text: the prompt, then the greedy ids.
    local width = #r.prompt / (n + #case.greedy_ids - 1)
    local by_id, best = {}, nil
    for k = 1, width do
      local e = r.prompt[(n + i - 2) * width + k]
      by_id[e.token] = e.logprob
      if e.rank == 1 then best = e.token end
    end
    out.tokens[i] = best
    for _, pair in ipairs(top5) do
      if by_id[pair[1]] then errors[#errors + 1] = math.abs(by_id[pair[1]] - pair[2]) end
    end
  end
  table.sort(errors)
  out.errors = errors
  return out
end

-- Every step's error, over all cases, with the texts forced.
local function force(options)
  local data = golden.read(golden.root .. "/smollm2.json")
  local path = os.getenv "PERILUNE_MODEL"
  if not data or not path then return nil end
  local e = engine.open(path, options, { n_blocks = 1024 })
  local cases, ids, all = cjson.decode(data).cases, {}, {}
  for i, case in ipairs(cases) do
    local forced = {}
    for _, id in ipairs(case.ids) do forced[#forced + 1] = id end
    for _, id in ipairs(case.greedy_ids) do forced[#forced + 1] = id end
    ids[i] = e:submit(forced, { temperature = 0, max_tokens = 1, prompt_logprobs = 20 })
  end
  local results = e:run()
  for i, case in ipairs(cases) do all[i] = sorted_errors(results[ids[i]], case) end
  e:close(true)
  return all, cases
end

-- limit: of the largest error; p99: of ninety-nine in a hundred; gap: between the two best
-- tokens, from which on the best must be the reference's.
local function check(options, limit, p99, gap)
  local all, cases = force(options)
  if not all then return pending "needs the model and its reference outputs" end
  local errors = {}
  for i, out in ipairs(all) do
    for k, want in ipairs(cases[i].greedy_ids) do
      if cases[i].gap[k] > gap then
        assert.equal(want, out.tokens[k], ("case %d, step %d"):format(i, k))
      end
    end
    for _, err in ipairs(out.errors) do errors[#errors + 1] = err end
  end
  table.sort(errors)
  assert.is_true(#errors > 2000, "too few logprobs compared: " .. #errors)
  assert.is_true(errors[#errors] <= limit, "largest error " .. errors[#errors])
  local at99 = errors[math.floor(#errors * 0.99)]
  assert.is_true(at99 <= p99, "99th percentile of the errors " .. at99)
end

local QUESTIONS = {
  "What is the capital of France?", "What is the largest planet of our solar system?",
  "Who wrote Romeo and Juliet?", "What is 2 + 2?", "How many days are in a week?",
  "What do bees make?", "Name three primary colors.", "What is water made of?",
  "Why is the sky blue?", "Write one sentence about the sea.",
}

-- The whole greedy answers to QUESTIONS, as text.
local function answers(path, options)
  local file = assert(pl.C.pl_weights_open(path))
  local text = assert(tokenizer.from_gguf(file)).text
  local e, ids, out = engine.open(path, options, { n_blocks = 1024 }), {}, {}
  for i, question in ipairs(QUESTIONS) do
    local prompt = "<|im_start|>user\n" .. question .. "<|im_end|>\n<|im_start|>assistant\n"
    ids[i] = e:submit(assert(tools.encode(text, prompt)), { temperature = 0,
      max_tokens = 400, eos = e.loaded.desc.eos_ids })
  end
  local results = e:run()
  for i, id in ipairs(ids) do out[i] = tools.decode(text, results[id].tokens, true) end
  e:close(true)
  pl.C.pl_weights_close(file)
  return out
end

describe("SmolLM2", function()
  it("is within 0.001 in float32", function()
    check(FLOAT32, 0.001, 0.0005, 0.02)
  end)
  it("is within 0.02, and 0.005 ninety-nine times in a hundred, by default", function()
    check({}, 0.02, 0.005, 0.02)
  end)
  it("is within 1.5, and 0.7 ninety-nine times in a hundred, with int8 activations", function()
    check({ activations = "int8" }, 1.5, 0.7, 0.5)
  end)

  it("answers plain questions by default as in float32", function()
    local path = os.getenv "PERILUNE_MODEL"
    if not path then return pending "needs the model" end
    local want, got = answers(path, FLOAT32), answers(path, {})
    assert.matches("Paris", want[1])
    for i, question in ipairs(QUESTIONS) do assert.equal(want[i], got[i], question) end
  end)

  it("is within 0.3 on a GPU", function()
    if not open_device.has "cuda" then return pending "no GPU here" end
    check({ device = "cuda" }, 0.3, 0.1, 0.3)
  end)
end)
