-- SPDX-License-Identifier: Apache-2.0
-- `perilune run` as a process: how it begins, what it says when it cannot, how it ends.
local machine = require "perilune.recipe.machine"
local process = require "support.process"
local scratch = require "scratch"
local serving = require "support.serving"

local COMPLETION = "/v1/completions"
local LONG = { prompt = "x", max_tokens = 1900, ignore_eos = true, temperature = 0 }

-- Runs until it ends: the exit code and the errors among what it said.
local function run(words, env)
  local all = { "run", unpack(words) }
  all[#all + 1], all[#all + 2] = "--log-format", "text"
  local p = process.start(all, env)
  local code, why = p:wait(30)
  local log = p:log()
  p:remove()
  assert(code, why)
  local complaints = {}
  for line in log:gmatch "[^\n]+" do
    if not line:find "^INFO" then complaints[#complaints + 1] = line end
  end
  return code, complaints, log
end

describe("a server whose device is up to it", function()
  -- A program beside which the device `cuda` is one that computes no architecture but the
  -- plainest (tests/support/echo_device.c).
  local function program_with_gpu()
    local dir, own = scratch.folder(), process.own_path()
    local from = own:match "^(.*)/[^/]*$"
    assert(os.execute(("mkdir '%s/build' && cp '%s' '%s/build/' && cp '%s/libperilune_echo.so' "
      .. "'%s/build/libperilune_cuda.so' && ln -s \"$PWD/lua\" \"$PWD/recipes\" '%s/'"):format(
      dir.path, own, dir.path, from, dir.path, dir.path)) == 0)
    return dir, dir.path .. "/build/" .. own:match "[^/]*$"
  end

  it("runs on the CPU what the GPU cannot, and says so", function()
    local dir, program = program_with_gpu()
    local function serve(model, ...)
      local p = process.start({ "serve", "tests/golden/" .. model, "--port", "0", "--log-format",
        "text", ... }, nil, program)
      process.wait_for(30, function() return not p:runs() or p:log():find "serving [^\n]*:%d+\n" end)
      if p:runs() then p:signal "TERM" end
      p:wait(30)
      local log = p:log()
      p:remove()
      return log
    end
    assert.is_truthy(serve("llama", "--load-format", "dummy"):find("device cuda", 1, true))
    local log = serve("gemma2", "--load-format", "dummy")
    assert.is_truthy(log:find("the CPU serves: the model has post_norms, which this device", 1, true), log)
    assert.is_truthy(log:find("device cpu", 1, true), log)
    log = serve("gemma2", "--load-format", "dummy", "--device", "cuda")
    assert.is_truthy(log:find("ERROR [^\n]*the model has post_norms"), log)
    dir.remove()
  end)
end)

describe("a server that cannot begin", function()
  local dir
  setup(function() dir = scratch.folder() end)
  teardown(function() dir.remove() end)

  -- One line of complaint, with these words.
  local function complains(code, words, flags)
    local got, lines, log = run(flags)
    assert.equal(code, got, log)
    assert.equal(1, #lines, log)
    for _, word in ipairs(words) do
      assert.is_truthy(lines[1]:find(word, 1, true), lines[1])
    end
    assert.is_nil(log:find "traceback")
  end

  it("says that there is no model", function()
    complains(1, { "ERROR", "/nowhere/model.gguf" },
      { "agg", "--model", "/nowhere/model.gguf" })
    complains(1, { "ERROR", dir.path }, { "agg", "--model", dir.path })
  end)

  -- Without the right to read everything, in case root runs the tests.
  local function unprivileged(words)
    local all = { "--inh-caps=-all", "--bounding-set=-dac_override,-dac_read_search",
      process.own_path(), "serve", unpack(words) }
    if os.execute "[ $(id -u) = 0 ]" ~= 0 then table.remove(all, 2) end
    local p = process.start(all, nil, "setpriv")
    local code, log = p:wait(30), p:log()
    p:remove()
    return code, log
  end

  it("says that it may not read a model", function()
    local file = dir.write("secret.gguf", "GGUF")
    local folder = dir.write("secret/config.json", "{}"):match "^(.*)/"
    local inside = dir.write("inside/config.json", "{}")
    os.execute(("chmod 0 '%s' '%s' '%s'"):format(file, folder, inside))
    for path, named in pairs { [file] = file, [folder] = folder,
        [inside:match "^(.*)/"] = inside } do
      local code, log = unprivileged { path, "--port", "0", "--log-format", "text" }
      assert.equal(1, code, log)
      assert.is_truthy(log:find("ERROR [^\n]*: Permission denied"), log)
      assert.is_truthy(log:find(named, 1, true), log)
    end
    os.execute(("chmod 700 '%s'"):format(folder))
  end)

  it("says what is wrong with a file", function()
    for name, text in pairs { ["empty.gguf"] = "", ["bad.gguf"] = "GGUF\3\0\0\0\255\255",
        ["text.gguf"] = ("hello"):rep(1000) } do
      complains(1, { "ERROR", name }, { "agg", "--model", dir.write(name, text) })
    end
    local f = assert(io.open("tests/golden/llama-gguf/model.gguf", "rb"))
    local whole = f:read "*a"
    f:close()
    local cut = dir.write("cut.gguf", whole:sub(1, #whole / 2))
    complains(1, { "ERROR", "cut.gguf" }, { "agg", "--model", cut })
  end)

  it("says that its port or its host is taken or none", function()
    local s = serving.start()
    local taken, holder = tostring(s.port), ("(process %d)"):format(s.process.pid)
    complains(1, { "ERROR", taken, holder, "--port chooses" },
      { "agg", "--model", serving.MODEL, "--port", taken })
    -- It is known before the model is looked for.
    complains(1, { "ERROR", taken, holder, "--port chooses" },
      { "agg", "--model", "/nowhere/model.gguf", "--port", taken })
    complains(1, { "ERROR", taken, holder, "--metrics-endpoint-port chooses" },
      { "agg", "worker", "--model", "/nowhere/model.gguf", "--metrics-endpoint-port", taken,
        "--bus", "nats://127.0.0.1:1" })
    s:stop()
    complains(1, { "ERROR", "no.such.host.invalid" },
      { "agg", "--model", serving.MODEL, "--host", "no.such.host.invalid" })
  end)

  it("says what cannot be", function()
    complains(1, { "ERROR", "max_model_len is 999999" },
      { "agg", "--model", serving.MODEL, "--max-model-len", "999999" })
    complains(1, { "ERROR", "KV cache" },
      { "agg", "--model", serving.MODEL, "--num-gpu-blocks-override", "4" })
    complains(1, { "ERROR", "chat_template" }, { "agg", "--model", serving.MODEL, "--port",
      "0", "--chat-template", "/nowhere/t.jinja" })
  end)

  it("says what is wrong with a recipe", function()
    local code, lines = run { dir.write("bad.lua", "return {") }
    assert.equal(1, code)
    assert.is_truthy(lines[1]:find("bad.lua:1", 1, true))
    code, lines = run { dir.write("odd.lua", "return { worker = { seeed = 1 } }") }
    assert.equal(1, code)
    assert.is_truthy(lines[1]:find("worker has no option 'seeed'", 1, true))
    code, lines = run { "nowhere.lua" }
    assert.equal(2, code)
    assert.is_truthy(lines[1]:find("nowhere.lua", 1, true))
    code, lines = run { "agg", "--model", serving.MODEL, "--no-such-flag" }
    assert.equal(2, code)
    assert.is_truthy(lines[1]:find("no-such-flag", 1, true))
  end)
end)

describe("a server that is told to stop", function()
  local s
  after_each(function()
    if s then s.process:remove() end
    s = nil
  end)

  local function ends(p)
    local code, why = p:wait(30)
    assert.equal(0, code, tostring(why) .. "\n" .. p:log())
  end

  for _, name in ipairs { "TERM", "INT" } do
    it("ends when idle, by SIG" .. name, function()
      s = serving.start()
      s.process:signal(name)
      ends(s.process)
    end)

    it("lets those whom it answers finish, by SIG" .. name, function()
      s = serving.start()
      local short = { prompt = "x", max_tokens = 300, ignore_eos = true, temperature = 0 }
      local begun = {}
      for i = 1, 8 do begun[i] = s:begin("POST", COMPLETION, short) end
      process.wait_for(10, function() return s:metric "vllm:num_requests_running" > 4 end)
      s.process:signal(name)
      for i = 1, 8 do
        local r = begun[i]:finish()
        assert.equal(200, r.status)
        assert.equal("length", r.json.choices[1].finish_reason)
      end
      ends(s.process)
    end)

    it("tells those whom it answers when their time is over, by SIG" .. name, function()
      s = serving.start { "--drain-timeout", "0" }
      local streamed, whole = {}, {}
      for i = 1, 8 do
        local body = { stream = true }
        for k, v in pairs(LONG) do body[k] = v end
        streamed[i], whole[i] = s:begin("POST", COMPLETION, body),
          s:begin("POST", COMPLETION, LONG)
      end
      process.wait_for(10, function() return s:metric "vllm:num_requests_running" > 8 end)
      s.process:signal(name)
      local aborted = 0
      for i = 1, 8 do
        local last = table.remove(streamed[i]:finish():events()).choices[1]
        local r = whole[i]:finish()
        assert.equal(200, r.status)
        for _, c in ipairs { last, r.json.choices[1] } do
          if c.finish_reason == "abort" then aborted = aborted + 1 end
          assert.is_true(c.finish_reason == "abort" or c.finish_reason == "length")
        end
      end
      assert.is_true(aborted > 0)
      ends(s.process)
    end)

    it("ends while it loads, by SIG" .. name, function()
      local model = os.getenv "PERILUNE_MODEL" or machine.fetched_model() or serving.MODEL
      local p = process.start({ "run", "agg", "--port", "0", "--model", model })
      finally(function() p:remove() end)
      process.wait_for(30, function() return p:log() ~= "" end)
      p:signal(name)
      ends(p)
    end)
  end

  it("does not wait for a client that reads nothing", function()
    s = serving.start { "--drain-timeout", "0.2" }
    local body = { stream = true, n = 20, temperature = 1 }
    for k, v in pairs(LONG) do body[k] = body[k] or v end
    local deaf = s:begin("POST", COMPLETION, body)
    process.wait_for(10, function() return s:metric "vllm:num_requests_running" > 0 end)
    s.process:signal "TERM"
    ends(s.process)
    deaf.connection:close()
  end)

  it("does not wait for a big request that is being prepared", function()
    s = serving.start { "--trust-request-chat-template", "--drain-timeout", "0.2" }
    local message = { role = "user", content = "x" }
    local slow = s:begin("POST", "/v1/chat/completions", { messages = { message },
      chat_template = "{{ '" .. ("a b "):rep(1000) .. "' * 10000 }}" })
    process.sleep(0.2)
    s.process:signal "TERM"
    ends(s.process)
    slow.connection:close()
  end)

  it("ends at once when told twice", function()
    s = serving.start()
    s.process:signal "TERM"
    if s.process:runs() then s.process:signal "INT" end
    local code = s.process:wait(5)
    assert.is_true(code == 0 or s.process.killed_by == 2)   -- it was past watching
  end)

  it("lets SIGHUP pass", function()
    s = serving.start()
    s.process:signal "HUP"
    assert.equal(200, s:post(COMPLETION, { prompt = "x", max_tokens = 1 }).status)
    s:stop()
  end)
end)
