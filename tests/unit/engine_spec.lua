-- SPDX-License-Identifier: Apache-2.0
-- The step: who runs, who waits, who yields, and how each sequence ends.
local null = require "support.null"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

describe("engine", function()
  local e

  local function open(more) e = null.engine(more) end
  after_each(function() if e then e:close() end e = nil end)

  local function is_empty()
    local s = e:stats()
    assert.equal(0, s.running + s.waiting + s.waiting_remote)
    assert.equal(0, s.blocks_used)
    assert.equal(0, C.pl_engine_check(e.handle))
  end

  local function remote(n)
    return function(s) C.pl_seq_remote(s, n) end
  end

  describe("refuses", function()
    it("options that cannot be", function()
      local model, device = null.model()
      for name, values in pairs {
        n_blocks = { 1, -1 }, max_num_seqs = { 0, 1e6 }, policy = { 2 },
        max_num_batched_tokens = { 15, 2e9 }, max_model_len = { 1, 4097 },
        long_prefill_token_threshold = { -1 },
        hash_algo = { 3, -1 }, max_waiting = { 0 }, enable_chunked_prefill = { 0 } } do
        for _, v in ipairs(values) do
          local options = null.options { [name] = v }
          assert.is_true(C.pl_engine_open(model, options) == nil, name)
        end
      end
      C.pl_model_close(model)
      C.pl_device_close(device)
    end)

    it("prompts that do not fit", function()
      open { max_model_len = 100 }
      local _, why = e:submit(null.text(1, 100))
      assert.is_truthy(why:find("maximum context length of 100", 1, true))
      assert.is_truthy(e:submit(null.text(1, 99)))
      e:close()
      open()
      local _, full, name = e:submit(null.text(1, 161))
      assert.is_truthy(full:find("never fit the KV cache", 1, true))
      assert.equal("PL_EINVAL", name)
      assert.is_truthy(e:submit(null.text(1, 160)))
    end)

    it("ids out of vocabulary", function()
      open { n_blocks = 100 }
      assert.is_nil(e:submit { 1, null.VOCAB })
      assert.is_nil(e:submit { -1 })
      assert.is_nil(e:submit({ 1 }, nil, function(s)
        C.pl_seq_stop_ids(s, ffi.new("int32_t[1]", null.VOCAB), 1)
      end))
    end)

    it("more than max_waiting", function()
      open { max_waiting = 3 }
      for i = 1, 3 do assert(e:submit { i }) end
      local _, why, name = e:submit { 4 }
      assert.equal("PL_ELIMIT", name)
      assert.is_truthy(why:find("max_waiting, 3", 1, true))
      e:step()
      for i = 1, 3 do assert(e:submit { i }) end
      assert.is_nil(e:submit { 4 })
    end)
  end)

  it("shows its sequences as far as they have come", function()
    local infos = ffi.new "pl_seq_info[8]"
    local function seen(max)
      local out = {}
      local n = C.pl_engine_seqs(e.handle, infos, max or 8)
      for i = 0, math.min(n, max or 8) - 1 do
        local s = infos[i]
        out[s.seq] = { s.stage, s.n_prompt, s.n_tokens, ffi.string(s.label) }
      end
      return out, n
    end
    open { max_num_batched_tokens = 32, max_num_seqs = 1 }
    local function label(text)
      return function(s) assert.equal(0, C.pl_seq_label(s, text, #text)) end
    end
    local long = ("x"):rep(300)
    local a = assert(e:submit(null.text(1, 40), { max_tokens = 3, ignore_eos = 1 },
      label "request_id\0first\0trace_id\0t\0"))
    local b = assert(e:submit(null.text(2, 40), { max_tokens = 3, ignore_eos = 1 },
      label("request_id\0" .. long .. "\0")))
    assert.same({ [a] = { C.PL_SEQ_IN_LINE, 40, 0, "first" },
      [b] = { C.PL_SEQ_IN_LINE, 40, 0, long:sub(1, 119) } },
      (seen()))
    assert.equal(2, select(2, seen(1)))
    e:step()
    assert.same({ 0, 40, 0, "first" }, seen()[a])
    assert.equal(0, infos[0].first_ns)
    e:step()
    assert.same({ C.PL_SEQ_ANSWERING, 40, 1, "first" }, seen()[a])
    e:step()
    assert.same({ C.PL_SEQ_ANSWERING, 40, 2, "first" }, seen()[a])
    local at = infos[0].seq == a and 0 or 1
    assert.is_true(infos[at].first_ns >= infos[at].since_ns and infos[at].last_ns > infos[at].first_ns)
    e:step()
    assert.is_nil(seen()[a])
    assert.equal(C.PL_SEQ_IN_LINE, seen()[b][1])
    for _ = 1, 6 do e:step() end
    assert.same({}, (seen()))
  end)

  describe("plans", function()
    it("a long prompt in parts, as the budget allows", function()
      open { max_num_batched_tokens = 32 }
      local a = assert(e:submit(null.text(1, 100)))
      for i = 1, 3 do
        assert.is_nil(e:step()[a])
        assert.equal(i * 2, #e:blocks(a))
      end
      assert.equal(1, e:step()[a])
      assert.equal(3, tonumber(e:stats().chunked))
      assert.equal(1, e:step()[a])
    end)

    it("those that run first, the rest for who waits", function()
      open { max_num_batched_tokens = 20, max_num_seqs = 4 }
      local a, b = assert(e:submit(null.text(1, 10))), assert(e:submit(null.text(2, 30)))
      assert.same({ [a] = 1 }, e:step())   -- 10 of a, 10 of b
      assert.same({ [a] = 1 }, e:step())   -- 1, 19
      assert.same({ [a] = 1, [b] = 1 }, e:step())
    end)

    it("no more than the threshold of one prompt", function()
      open { long_prefill_token_threshold = 16 }
      local a, b = assert(e:submit(null.text(1, 40))), assert(e:submit(null.text(2, 10)))
      assert.same({ [b] = 1 }, e:step())
      assert.same({ [b] = 1 }, e:step())
      assert.same({ [a] = 1, [b] = 1 }, e:step())
    end)

    it("whole prompts, without chunked prefill", function()
      open { enable_chunked_prefill = 0, max_num_batched_tokens = 99, max_model_len = 99 }
      local a, b = assert(e:submit(null.text(1, 60))), assert(e:submit(null.text(2, 60)))
      local c = assert(e:submit(null.text(3, 5)))
      assert.same({ [a] = 1 }, e:step()) -- b does not fit, and c is behind it
      assert.same({ [a] = 1, [b] = 1, [c] = 1 }, e:step())
      assert.equal(0, tonumber(e:stats().chunked))
    end)

    it("prompts, and tells how much of them is unread", function()
      open { max_num_batched_tokens = 40, n_blocks = 100 }
      local a = assert(e:submit(null.text(1, 100)))
      assert(e:submit(null.text(2, 50)))
      local seen = { tonumber(e:stats().prefill_tokens) }
      for i = 2, 5 do
        e:step()
        seen[i] = tonumber(e:stats().prefill_tokens)
      end
      assert.same({ 150, 110, 70, 30, 0 }, seen)
      e:cancel(a)
      local c = assert(e:submit(null.text(3, 60)))
      assert.equal(60, tonumber(e:stats().prefill_tokens))
      e:cancel(c)
      e:step()
      assert.equal(0, tonumber(e:stats().prefill_tokens))
    end)

    it("no more than max_num_seqs", function()
      open { max_num_seqs = 2 }
      local a, b = assert(e:submit { 1 }), assert(e:submit({ 2 }, { max_tokens = 2 }))
      local c = assert(e:submit { 3 })
      assert.same({ [a] = 1, [b] = 1 }, e:step())
      assert.equal(1, e:stats().waiting)
      e:step()
      assert.same({ [a] = 1, [c] = 1 }, e:step())
    end)

    it("strictly in order: who does not fit is not overtaken", function()
      open()
      local a = assert(e:submit(null.text(1, 100)))
      e:step()
      local b = assert(e:submit(null.text(2, 100)))
      local c = assert(e:submit { 3 })
      assert.same({ [a] = 1 }, e:step())
      e:cancel(a)
      assert.same({ [b] = 1, [c] = 1 }, e:step())
    end)

    it("by priority where that is the policy, equals by arrival", function()
      open { policy = C.PL_POLICY_PRIORITY, max_num_seqs = 1 }
      local ids = {}
      for i, priority in ipairs { 5, 1, 5, 0, 1 } do
        ids[i] = assert(e:submit({ i }, { priority = priority, max_tokens = 1 }))
      end
      local seen = {}
      for i = 1, 5 do seen[i] = next(e:step()) end
      assert.same({ ids[4], ids[2], ids[5], ids[1], ids[3] }, seen)
    end)
  end)

  describe("preempts", function()
    it("the last admitted, which loses nothing but time", function()
      open()
      local a = assert(e:submit(null.text(1, 64), { max_tokens = 60 }))
      local b = assert(e:submit(null.text(2, 64), { max_tokens = 60 }))
      e:step(33)
      assert.equal(1, e:stats().running)
      assert.equal(1, e:stats().waiting)
      assert.is_true(#e:blocks(a) > 5)
      assert.same({}, e:blocks(b))
      local had = #e.tokens[b]
      e:run()
      assert.equal(60, #e.tokens[a])
      assert.equal(60, #e.tokens[b])
      assert.is_true(had < 60)
      assert.is_true(e:stats().preemptions > 0)
      is_empty()

      local alone = null.engine()
      alone:submit(null.text(2, 64), { max_tokens = 60 })
      alone:run()
      assert.same(select(2, next(alone.tokens)), e.tokens[b])
      alone:close()
    end)

    it("the least important, even if it was planned already", function()
      open { policy = C.PL_POLICY_PRIORITY }
      local low = assert(e:submit(null.text(1, 64), { priority = 9, max_tokens = 60 }))
      e:step()
      local high = assert(e:submit(null.text(2, 78), { priority = 0, max_tokens = 60 }))
      e:run()
      assert.equal(60, #e.tokens[low])
      assert.equal(60, #e.tokens[high])
      assert.is_true(e:stats().preemptions > 0)
      is_empty()
    end)

    it("one that was planned already, whose new blocks nobody finds", function()
      open { policy = C.PL_POLICY_PRIORITY, n_blocks = 8, long_prefill_token_threshold = 32 }
      local low = assert(e:submit(null.text(1, 90), { priority = 9 }))
      e:step()
      local high = assert(e:submit(null.text(2, 16), { priority = 0 }))
      e:step()
      assert.same({ 4, 1 }, { #e:blocks(low), #e:blocks(high) })
      e:step()                             -- low's fifth block would have been full
      assert.same({ 0, 2 }, { #e:blocks(low), #e:blocks(high) })
      e:cancel(low)
      e:cancel(high)
      e:step()
      local again = assert(e:submit(null.text(1, 90), { max_tokens = 1 }))
      e:run()
      assert.equal(64, e.first[again])
    end)

    it("among many, and all end", function()
      open { n_blocks = 24 }
      local ids = {}
      for i = 1, 20 do
        ids[i] = assert(e:submit(null.text(i % 5, 20 + i), { max_tokens = 90 }))
      end
      e:run()
      for _, id in ipairs(ids) do
        assert.equal(C.PL_FINISH_LENGTH, e.ends[id])
        assert.equal(90, #e.tokens[id])
      end
      is_empty()
    end)
  end)

  describe("ends a sequence", function()
    -- The token that the model gives first, whatever the model.
    local function first_tokens(n)
      local id = assert(e:submit({ 7 }, { max_tokens = n }))
      e:run()
      return e.tokens[id]
    end

    local function ends(f, ids)
      return function(s) assert.equal(0, f(s, null.ids(ids))) end
    end

    it("at max_tokens, at max_model_len, and when the cache is full", function()
      open { max_model_len = 50 }
      local a = assert(e:submit(null.text(1, 10), { max_tokens = 3 }))
      local b = assert(e:submit(null.text(2, 10)))
      e:run()
      assert.equal(3, #e.tokens[a])
      assert.equal(40, #e.tokens[b])
      assert.equal(C.PL_FINISH_LENGTH, e.ends[b])
      e:close()
      open()
      local c = assert(e:submit(null.text(2, 10), { min_tokens = 400 }))
      e:run()
      assert.equal(151, #e.tokens[c]) -- 160 have KV
      assert.equal(C.PL_FINISH_LENGTH, e.ends[c])
    end)

    it("at eos and stop ids, with their reasons", function()
      open()
      local t = first_tokens(4)
      local at = 1
      while t[at] == t[at + 1] do at = at + 1 end
      local function finish(more, prepare)
        e:submit({ 7 }, more, prepare)
        local out = ffi.new "const pl_token *[1]"
        for _ = 1, 600 do
          C.pl_engine_step(e.handle)
          local n = C.pl_engine_tokens(e.handle, out)
          if n > 0 and out[0][0].finish ~= 0 then
            return out[0][0].finish, out[0][0].stop_reason, out[0][0].token
          end
        end
      end
      local stop, reason, token = finish({ ignore_eos = 0 }, ends(C.pl_seq_eos, { t[1] }))
      assert.same({ C.PL_FINISH_STOP, -1, t[1] }, { stop, reason, token })
      stop, reason = finish({}, ends(C.pl_seq_stop_ids, { t[1] }))
      assert.same({ C.PL_FINISH_STOP, t[1] }, { stop, reason })
      stop = finish({ max_tokens = 4 }, ends(C.pl_seq_eos, { t[1] }))
      assert.equal(C.PL_FINISH_LENGTH, stop)
      stop = finish({ max_tokens = 4, min_tokens = 4 }, ends(C.pl_seq_stop_ids, { t[1] }))
      assert.is_true(stop == C.PL_FINISH_LENGTH or stop == C.PL_FINISH_STOP)
    end)

    it("that goes on elsewhere where it would have ended here", function()
      open()
      local whole = first_tokens(20)
      local text = { 7, unpack(whole, 1, 12) }
      local id = assert(e:submit(text, { max_tokens = 20 }, function(s)
        assert.equal(0, C.pl_seq_resume(s, 12))
      end))
      e:run()
      assert.same({ unpack(whole, 13) }, e.tokens[id])
    end)

    it("that is canceled: in line, running, preempted, and twice", function()
      open { max_num_seqs = 1 }
      local a, b = assert(e:submit(null.text(1, 40))), assert(e:submit(null.text(2, 40)))
      local c = assert(e:submit(null.text(3, 40)))
      e:cancel(c) -- not even in line yet
      e:step()
      assert.equal(C.PL_FINISH_ABORT, e.ends[c])
      e:cancel(b)
      e:cancel(a)
      e:cancel(a)
      e:cancel(12345678)
      e:step()
      assert.equal(C.PL_FINISH_ABORT, e.ends[a])
      assert.equal(C.PL_FINISH_ABORT, e.ends[b])
      assert.is_nil(e.tokens[b])
      assert.equal(3, tonumber(e:stats().aborted))
      is_empty()
      e:cancel(a)
      e:step()
      is_empty()
    end)

    it("that is canceled between parts of its prompt, or while preempted", function()
      open { max_num_batched_tokens = 32 }
      local a = assert(e:submit(null.text(1, 100)))
      e:step()
      e:cancel(a)
      e:step()
      is_empty()
      local b, c = assert(e:submit(null.text(2, 64))), assert(e:submit(null.text(3, 64)))
      for _ = 1, 60 do
        e:step()
        if e:stats().preemptions > 0 then break end
      end
      assert.same({}, e:blocks(c))
      e:cancel(c)
      e:step()
      assert.equal(C.PL_FINISH_ABORT, e.ends[c])
      e:cancel(b)
      e:step()
      is_empty()
    end)
  end)

  describe("lends its prompt's blocks", function()
    it("until they are returned, though it has ended", function()
      open()
      local a = assert(e:submit(null.text(1, 70), { max_tokens = 1 }, C.pl_seq_lend))
      e:step()
      assert.equal(C.PL_FINISH_LENGTH, e.ends[a])
      e:step()
      assert.equal(5, e:stats().blocks_used)
      C.pl_engine_return(e.handle, a)
      e:step()
      is_empty()
    end)

    it("and none from then on, however soon that is", function()
      for steps = 0, 3 do
        open()
        local a = assert(e:submit(null.text(1, 150), { max_tokens = 2 }, C.pl_seq_lend))
        for _ = 1, steps do e:step() end
        C.pl_engine_return(e.handle, a)
        for _ = 1, 8 do e:step() end
        assert.equal(C.PL_FINISH_LENGTH, e.ends[a])
        is_empty()
        e:close()
      end
      e = nil
    end)
  end)

  describe("waits for KV from elsewhere", function()
    it("without holding up others, then computes the rest", function()
      open()
      local a = assert(e:submit(null.text(1, 70), nil, remote(64)))
      local b = assert(e:submit(null.text(2, 10)))
      assert.same({ [b] = 1 }, e:step())
      assert.equal(1, e:stats().waiting_remote)
      assert.equal(4, #e:blocks(a))
      local other = assert(e:submit(null.text(1, 70), { max_tokens = 1 }))
      e:step()
      assert.equal(0, e.first[other]) -- nothing is found that has not come
      C.pl_engine_arrived(e.handle, a, 1)
      assert.equal(1, e:step()[a])
      assert.equal(64, e.first[a])
      assert.equal(5, #e:blocks(a))
      assert.equal(0, e:stats().waiting_remote)
    end)

    it("and computes the last token itself", function()
      open()
      local a = assert(e:submit(null.text(1, 64), nil, remote(64)))
      e:step()
      assert.equal(4, #e:blocks(a))
      C.pl_engine_arrived(e.handle, a, 1)
      assert.equal(1, e:step()[a])
      assert.equal(63, e.first[a])
      assert.equal(4, #e:blocks(a))
      e:cancel(a)
      e:step()
      local b = assert(e:submit(null.text(1, 65)))
      e:step()
      assert.equal(64, e.first[b])
    end)

    it("only for what is not here", function()
      open()
      local a = assert(e:submit(null.text(1, 48), { max_tokens = 1 }))
      e:step()
      local b = assert(e:submit(null.text(1, 80), nil, remote(48)))
      assert.equal(1, e:step()[b])
      assert.equal(48, e.first[b])
      assert.is_nil(e.tokens[a][2])
      local c = assert(e:submit(null.text(1, 80), nil, remote(80)))
      assert.is_nil(e:step()[c])
      assert.same({ unpack(e:blocks(b), 1, 3) }, { unpack(e:blocks(c), 1, 3) })
    end)

    it("or computes all, when it does not come", function()
      open()
      local a = assert(e:submit(null.text(1, 70), nil, remote(64)))
      e:step()
      C.pl_engine_arrived(e.handle, a, 0)
      assert.equal(1, e:step()[a])
      assert.equal(0, e.first[a])
      local b = assert(e:submit(null.text(2, 70), nil, remote(64)))
      C.pl_engine_arrived(e.handle, b, 0) -- before it has a place
      assert.equal(1, e:step()[b])
    end)

    it("and keeps the blocks of a canceled one until then", function()
      open()
      local a = assert(e:submit(null.text(1, 70), nil, remote(64)))
      e:step()
      e:cancel(a)
      e:step()
      assert.equal(C.PL_FINISH_ABORT, e.ends[a])
      assert.equal(4, e:stats().blocks_used)
      e:cancel(a)
      e:step()
      assert.equal(4, e:stats().blocks_used)
      C.pl_engine_arrived(e.handle, a, 1)
      e:step()
      is_empty()
      assert.equal(0, e:stats().blocks_cached)
      C.pl_engine_arrived(e.handle, a, 1)
      e:step()
      is_empty()
    end)

    it("and lets none starve whose blocks those hold that have arrived", function()
      open()
      local ids = {}
      for i = 1, 3 do
        ids[i] = assert(e:submit(null.text(i, 48), { max_tokens = 60 }, remote(48)))
      end
      e:step()
      local last = assert(e:submit(null.text(9, 100), { max_tokens = 40 }))
      e:step()
      for _, id in ipairs(ids) do C.pl_engine_arrived(e.handle, id, 1) end
      e:run()
      for _, id in ipairs(ids) do assert.equal(60, #e.tokens[id]) end
      assert.equal(40, #e.tokens[last])
      is_empty()
    end)

    it("and takes back blocks of one that has arrived, if need be", function()
      open()
      local a = assert(e:submit(null.text(1, 85), { max_tokens = 9 }, remote(80)))
      local b = assert(e:submit(null.text(2, 85), { max_tokens = 9 }, remote(80)))
      e:step()
      assert.equal(10, e:stats().blocks_used)
      C.pl_engine_arrived(e.handle, a, 1)
      C.pl_engine_arrived(e.handle, b, 1)
      e:run(100)
      assert.same({ 9, 9 }, { #e.tokens[a], #e.tokens[b] })
      is_empty()
    end)

    it("and takes none back while others run, who will give back theirs", function()
      open { n_blocks = 12 }
      assert(e:submit(null.text(3, 5), { max_tokens = 6 }))
      local ids = {}
      for i = 1, 2 do
        ids[i] = assert(e:submit(null.text(i, 85), { max_tokens = 9 }, remote(80)))
      end
      e:step()
      for i = 1, 2 do C.pl_engine_arrived(e.handle, ids[i], 1) end
      e:step(2)
      assert.same({ 1, 2 }, { e:stats().running, e:stats().waiting })
      assert.same({ 5, 5 }, { #e:blocks(ids[1]), #e:blocks(ids[2]) })
      e:run(100)
      for i = 1, 2 do assert.same({ 80, 9 }, { e.first[ids[i]], #e.tokens[ids[i]] }) end
      is_empty()
    end)

    it("but not with prompt_logprobs, which must be computed", function()
      open()
      local a = assert(e:submit(null.text(1, 40), { prompt_logprobs = 0 }, remote(32)))
      assert.equal(1, e:step()[a])
    end)

    it("and is not busy meanwhile", function()
      open()
      local a = assert(e:submit(null.text(1, 70), nil, remote(64)))
      assert.is_true(e:stats().busy_since_ns > 0)
      e:step(2)
      assert.equal(0, tonumber(e:stats().busy_since_ns))
      C.pl_engine_arrived(e.handle, a, 1)
      assert.is_true(e:stats().busy_since_ns > 0)
    end)
  end)

  describe("tells", function()
    it("prompt logprobs with the first token, from all its parts", function()
      open { max_num_batched_tokens = 16 }
      local prompt = null.text(1, 50)
      assert(e:submit(null.text(2, 5)))
      e:step()
      local id = assert(e:submit(prompt, { prompt_logprobs = 2 }))
      local out, found = ffi.new "const pl_token *[1]", false
      for _ = 1, 10 do
        C.pl_engine_step(e.handle)
        for i = 0, C.pl_engine_tokens(e.handle, out) - 1 do
          local t = out[0][i]
          if t.seq == id and not found then
            found = true
            assert.equal(49 * 3, t.n_prompt_top)
            for j = 2, 50 do
              assert.equal(prompt[j], t.prompt_top[(j - 2) * 3].token)
            end
          else
            assert.equal(0, t.n_prompt_top)
          end
        end
      end
      assert.is_true(found)
    end)

    it("no more logprobs than there are tokens", function()
      open()
      local p = { prompt_logprobs = 2e9, logprobs = 2e9, max_tokens = 1 }
      local id = assert(e:submit(null.text(1, 30), p))
      local out = ffi.new "const pl_token *[1]"
      C.pl_engine_step(e.handle)
      assert.equal(1, C.pl_engine_tokens(e.handle, out))
      assert.equal(id, out[0][0].seq)
      assert.equal(null.VOCAB, out[0][0].n_top)
      assert.equal(29 * null.VOCAB, out[0][0].n_prompt_top)
    end)

    it("prompt logprobs of a prompt of one token: none", function()
      open()
      local id = assert(e:submit({ 1 }, { prompt_logprobs = 2, max_tokens = 1 }))
      assert.equal(1, e:step()[id])
    end)

    it("how much it did", function()
      open()
      e:submit(null.text(1, 40), { max_tokens = 3 })
      e:run()
      e:submit(null.text(1, 40), { max_tokens = 3 })
      e:run()
      local s = e:stats()
      assert.equal(80, tonumber(s.prompt_tokens))
      assert.equal(6, tonumber(s.generation_tokens))
      assert.equal(32, tonumber(s.cached_tokens))
      assert.equal(80, tonumber(s.prefix_queries))
      assert.equal(32, tonumber(s.prefix_hits))
      assert.equal(6, tonumber(s.steps))
      assert.equal(10, s.blocks)
    end)

    it("no query of the cache where it is not read", function()
      open()
      e:submit(null.text(1, 40), { max_tokens = 3, prompt_logprobs = 0 })
      e:run()
      assert.equal(0, tonumber(e:stats().prefix_queries))
    end)

    it("nothing of a sequence that nobody knows", function()
      open()
      assert.equal(C.PL_ENOTFOUND, C.pl_engine_blocks(e.handle, 1e9, nil, 0))
    end)
  end)

  it("finds a prefix by names that were made ahead, if they are its own", function()
    open()
    local function cached(salt, by)
      local id = assert(e:submit(null.text(1, 40), { max_tokens = 1 }, function(s)
        if salt then assert(C.pl_seq_salt(s, salt, #salt) == 0) end
        C.pl_engine_hash(by, s)
      end))
      e:run()
      return e.first[id]
    end
    local other = null.engine { hash_algo = C.PL_HASH_XXHASH_CBOR }
    assert.equal(0, cached(nil, e.handle))
    assert.equal(32, cached(nil, e.handle))
    assert.equal(0, cached("salt", e.handle))
    assert.equal(32, cached("salt", e.handle))
    assert.equal(32, cached("salt", other.handle))
    other:close()
  end)

  it("answers the same alone, or sharing, in parts and preempted", function()
    local texts, alone = {}, {}
    for i = 1, 8 do
      texts[i] = null.text(i % 2, 33 + i % 3 * 16)
      texts[i][#texts[i] + 1] = i
    end
    local params = { max_tokens = 40, temperature = 1, seed = 7, top_k = 50 }
    for i, text in ipairs(texts) do
      e = null.engine({ enable_prefix_caching = 0 }, "cpu")
      local id = assert(e:submit(text, params))
      e:run()
      alone[i] = e.tokens[id]
      e:close()
    end
    e = null.engine({ n_blocks = 16, max_num_batched_tokens = 100 }, "cpu")
    local ids = {}
    for i, text in ipairs(texts) do ids[i] = assert(e:submit(text, params)) end
    e:run()
    for i, id in ipairs(ids) do assert.same(alone[i], e.tokens[id]) end
    assert.not_same(alone[1], alone[2])
    assert.is_true(e:stats().preemptions > 0)
    assert.is_true(e:stats().cached_tokens > 0)
  end)

  for _, policy in ipairs { C.PL_POLICY_FCFS, C.PL_POLICY_PRIORITY } do
    it("survives any mix, policy " .. policy, function()
      math.randomseed(42 + policy)
      for round = 1, 6 do
        open { policy = policy, n_blocks = math.random(12, 60),
               max_num_seqs = math.random(1, 12),
               max_num_batched_tokens = math.random(16, 200), max_model_len = 170,
               enable_prefix_caching = round % 3 > 0 and 1 or 0,
               long_prefill_token_threshold = round % 2 * 24 }
        local live, waits, n = {}, {}, 0
        for _ = 1, 150 do
          if math.random() < 0.5 then
            local far = math.random() < 0.3 and math.random(1, 90) or 0
            local id = e:submit(null.text(math.random(4), math.random(1, 90)),
              { max_tokens = math.random(1, 70), priority = math.random(0, 3),
                prompt_logprobs = math.random(10) == 1 and 1 or -1 }, remote(far))
            if id then
              n = n + 1
              live[n] = id
              if far > 0 then waits[id] = true end
            end
          end
          if n > 0 and math.random() < 0.1 then e:cancel(live[math.random(n)]) end
          for id in pairs(waits) do
            if math.random() < 0.1 then
              C.pl_engine_arrived(e.handle, id, math.random(0, 1))
              waits[id] = nil
            end
          end
          e:step()
        end
        for _ = 1, 10000 do
          for id in pairs(waits) do C.pl_engine_arrived(e.handle, id, 1) end
          e:step()
          local s = e:stats()
          if s.running + s.waiting + s.waiting_remote == 0 then break end
        end
        for i = 1, n do assert.is_truthy(e.ends[live[i]]) end
        is_empty()
        e:close()
        e = nil
      end
    end)
  end
end)
