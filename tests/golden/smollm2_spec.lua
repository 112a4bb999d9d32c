-- SPDX-License-Identifier: Apache-2.0
-- SmolLM2-135M-Instruct (Q4_1), teacher-forced on reference outputs computed in float32.
-- Needs $PERILUNE_MODEL (the GGUF file) and smollm2.json in $PERILUNE_GOLDEN.

local cjson = require "cjson"
local engine = require "support.engine"
local golden = require "support.golden"

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
local function force(activations)
  local data = golden.read(golden.root .. "/smollm2.json")
  local path = os.getenv "PERILUNE_MODEL"
  if not data or not path then return nil end
  local e = engine.open(path, { activations = activations,
    kv_cache_dtype = activations == "float32" and "float32" or "auto" }, { n_blocks = 1024 })
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

local function check(activations, limit, p90, gap)
  local all, cases = force(activations)
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
  local at90 = errors[math.floor(#errors * 0.9)]
  assert.is_true(at90 <= p90, "90th percentile of the errors " .. at90)
end

describe("SmolLM2", function()
  it("is within 0.01 with float32 activations", function()
    check("float32", 0.01, 0.01, 0.02)
  end)
  it("is within 1.0, and 0.25 nine times in ten, with int8 activations", function()
    check("int8", 1.0, 0.25, 0.5)
  end)
end)
