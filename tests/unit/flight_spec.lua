-- SPDX-License-Identifier: Apache-2.0
-- Two steps in flight: the second is planned before the first has told its tokens.
local engine = require "support.engine"
local open_device = require "support.device"
local null = require "support.null"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local function prompt(seed, n)
  local ids = {}
  for i = 1, n do ids[i] = 5 + tonumber(C.pl_random_at(seed, i, 3) % 500) end
  return ids
end

-- What reads the tokens before it, ends at some token, or is told of its prompt.
local REQUESTS = {
  { prompt(1, 40), { temperature = 0, max_tokens = 24, logprobs = 2 } },
  { prompt(2, 7), { seed = 3, max_tokens = 30, repetition_penalty = 1.3,
    frequency_penalty = 0.4, presence_penalty = 0.2 } },
  { prompt(1, 33), { temperature = 0, max_tokens = 1, prompt_logprobs = 1 } },
  { prompt(4, 90), { seed = 5, max_tokens = 40, top_k = 30, min_tokens = 4 } },
  { prompt(5, 1), { temperature = 0, max_tokens = 12, prompt_logprobs = 0 } },
  { prompt(6, 20), { seed = 9, max_tokens = 50, top_p = 0.9, min_p = 0.01 } },
}

describe("two steps in flight", function()
  -- The answers of all requests together, at a depth; stops: a stop id a request.
  local function answers(depth, stops, more)
    local o = { n_blocks = 30, max_num_batched_tokens = 48, max_num_seqs = 4 }
    for k, v in pairs(more or {}) do o[k] = v end
    local e = engine.open("tests/golden/llama", { depth = depth }, o)
    local ids = {}
    for i, r in ipairs(REQUESTS) do
      local params = {}
      for k, v in pairs(r[2]) do params[k] = v end
      params.stop_ids = stops and { stops[i] }
      ids[i] = e:submit(r[1], params)
      e:step()
    end
    local results, out = e:run(), {}
    for i, id in ipairs(ids) do out[i] = results[id] end
    local s = e:statistics()
    assert.equal(0, s.blocks_used)
    assert.equal(0, s.running + s.waiting)
    local preempted = tonumber(s.preemptions)
    e:close(true)
    return out, preempted
  end

  local function same(want, got)
    for i, r in ipairs(want) do
      assert.same(r.tokens, got[i].tokens, "request " .. i)
      assert.same(r.tops, got[i].tops, "logprobs of request " .. i)
      assert.same(r.prompt, got[i].prompt, "prompt of request " .. i)
      assert.equal(r.finish, got[i].finish)
      assert.equal(r.stop_reason, got[i].stop_reason)
    end
  end

  it("give what one at a time gives", function()
    same(answers(1), answers(2))
  end)

  it("and where a sequence ends that is in the next step already", function()
    local whole, stops = answers(1), {}
    for i, r in ipairs(whole) do stops[i] = r.tokens[math.ceil(#r.tokens / 2)] end
    local want = answers(1, stops)
    for i, r in ipairs(want) do
      assert.equal(C.PL_FINISH_STOP, r.finish, "request " .. i)
    end
    same(want, answers(2, stops))
  end)

  it("and where one loses its blocks meanwhile", function()
    local want = answers(1)
    local got, preempted = answers(2, nil, { n_blocks = 11, max_model_len = 150 })
    assert.is_true(preempted > 0)
    same(want, got)
  end)

  it("compute no row more than it takes, where the length ends them", function()
    local rows = {}
    for depth = 1, 2 do
      local e = engine.open("tests/golden/llama",
        { device = "null", load_format = "dummy", depth = depth }, { n_blocks = 100 })
      e:submit(prompt(1, 20), { max_tokens = 9, ignore_eos = 1 })
      e:submit(prompt(2, 30), { max_tokens = 1, ignore_eos = 1 })
      e:run()
      local out, n = ffi.new "pl_step_info[64]", 0
      for i = 0, C.pl_engine_steps(e.engine, out, 64) - 1 do n = n + out[i].rows end
      rows[depth] = n
      e:close(true)
    end
    assert.same({ 20 + 8 + 30, 20 + 8 + 30 }, rows)
  end)

  it("are told one after the other, the first when the second is under way", function()
    local e = null.engine({}, "null", 2)
    finally(function() e:close() end)
    local id = assert(e:submit(null.text(1, 10), { max_tokens = 3 }))
    assert.same({}, e:step())                    -- sent off; nothing is awaited yet
    assert.same({ [id] = 1 }, e:step())
    assert.same({ [id] = 1 }, e:step())
    assert.same({ [id] = 1 }, e:step())          -- nothing more to send
    assert.equal(C.PL_FINISH_LENGTH, e.ends[id])
    assert.equal(0, e:stats().running)
  end)

  it("leave nobody out, where one that only awaits its last token makes room", function()
    local e = null.engine({ policy = C.PL_POLICY_PRIORITY, n_blocks = 5 }, "null", 2)
    finally(function() e:close() end)
    local last = assert(e:submit(null.text(1, 10), { max_tokens = 2, priority = 9 }))
    e:step()
    local grows = assert(e:submit(null.text(2, 2 * null.BLOCK)))
    local other = assert(e:submit(null.text(3, 10)))
    e:step(2)                                    -- `grows` wants a block, and none is left
    assert.equal(C.PL_FINISH_LENGTH, e.ends[last])
    assert.equal(1, e:stats().preemptions)
    assert.same({ [grows] = 1, [other] = 1 }, e:step())
  end)

  it("are let land when the engine closes; a cancel ends what they carry", function()
    local e = null.engine({}, "null", 2)
    local id = assert(e:submit(null.text(1, 10), { max_tokens = 100 }))
    local other = assert(e:submit(null.text(2, 10), { max_tokens = 100 }))
    e:step(2)
    e:cancel(id)
    e:step()
    assert.equal(C.PL_FINISH_ABORT, e.ends[id])
    e:step(3)
    assert.is_nil(e.ends[other])
    assert.equal(1, e:stats().running)
    e:close()                                    -- with steps in flight
  end)
end)

describe("a device of a plug-in", function()
  it("is found beside the program and runs the model's steps", function()
    local e = engine.open("tests/golden/llama", { device = "echo", load_format = "dummy" })
    finally(function() e:close(true) end)
    assert.equal("echo", ffi.string(C.pl_device_kernels(e.loaded.device)))
    assert.matches("^echo, ", ffi.string(C.pl_model_kv_layout(e.loaded.model)))
    local id = e:submit({ 5, 6, 7 }, { temperature = 0, max_tokens = 4, ignore_eos = 1 })
    assert.same({ 8, 9, 10, 11 }, e:run()[id].tokens)
  end)

  it("refuses by its name what it does not compute", function()
    for fact, value in pairs { post_norms = 1, embed_scale = 8, attention_cap = 50,
                               logit_cap = 30, gate = C.PL_GATE_GELU_TANH,
                               rope_theta_window = 100, rope_dims = 4 } do
      local device = assert(open_device "echo")
      local o = ffi.new("pl_model_options", { vocab = 9, block_size = 16, max_positions = 9,
                                              window = 4,
                                              [fact] = value })
      assert.is_true(C.pl_model_open(device, o) == nil)
      assert.equal(("the model has %s, which this device (echo) does not compute; the CPU does")
        :format(fact == "gate" and "a gelu_tanh gate" or fact),
        ffi.string(C.pl_error_text()))
      C.pl_device_close(device)
    end
  end)

  it("is refused by name where it cannot be had", function()
    local function why(name) return select(2, open_device(name)) end
    assert.matches("libperilune_strange.so' was built for device ABI %d+, this program has %d+",
      why "strange")
    assert.equal("no device '../x', wanted 'cpu' or 'null'", why "../x")
    assert.equal("no device '', wanted 'cpu' or 'null'", why "")
    assert.equal("depth is 3, wanted 0 to 2", select(2, open_device("cpu", nil, 1, 3)))
  end)
end)
