-- SPDX-License-Identifier: Apache-2.0
-- Requests that are ended while they wait for a worker, and those that take too long.
local cjson = require "cjson.safe"
local console = require "support.console"
local deployment = require "support.deployment"
local locals = require "perilune.tools.local_processes"
local process = require "support.process"
local serving = require "support.serving"

describe("a request that waits for a worker", function()
  local f, front

  setup(function()
    f = deployment.start { frontend = { "--enable-server-load-tracking",
      "--drain-timeout", "0.2" } }
    front = f.frontends[1]
    local worker = f.workers[1]
    worker:signal "TERM"
    worker:ended()
    f:forget(worker)
    assert(process.wait_for(30, function()
      return front:get "/health".status == 503
    end))
  end)
  teardown(function() f:remove() end)

  local function load() return front:get "/load".json.server_load end

  local function waiting(id)
    local answer = front:begin("POST", "/v1/completions", { prompt = "x", stream = true },
      { ["X-Request-Id"] = id })
    assert(process.wait_for(5, function() return load() == 1 end))
    return answer
  end

  it("is named in the log while it waits", function()
    local answer = waiting "zero"
    assert(process.wait_for(30, function()
      return front.process:log():find(
        "a request has waited %d+ s for a worker that takes it %[request_id=zero%]\n")
    end), front.process:log())
    answer.connection:close()
    assert(process.wait_for(5, function() return load() == 0 end))
  end)

  it("is told so when it is cancelled", function()
    local answer = waiting "one"
    assert.equal(200, front:post("/v1/cancel/one", "").status)
    answer:finish()
    assert.equal(499, answer.status)
    assert.matches("cancelled", answer.json.error.message)
    assert.equal(0, load())
    assert.matches("Aborted Request ID: one", front.process:log())
  end)

  it("waits no longer when client disconnected", function()
    waiting "two".connection:close()
    assert(process.wait_for(5, function() return load() == 0 end))
    assert.matches("Aborted Request ID: two %(client disconnected%)",
      front.process:log())
  end)

  it("is answered when the server stops", function()
    local answer = waiting "three"
    front:signal "TERM"
    answer:finish()
    assert.equal(503, answer.status)
    assert.is_nil(front:ended():find "\nERROR")
  end)
end)

describe("a prompt that cannot begin", function()
  it("is named in the log, with what it waits for", function()
    local server = serving.start({ "--device", "null", "--max-num-seqs", "1" },
      { PERILUNE_NULL_STEP_US = "10000" })
    local body = { prompt = "x", max_tokens = 1500, ignore_eos = true }
    local first = server:begin("POST", "/v1/completions", body)
    process.wait_for(20, function() return server:metric "vllm:num_requests_running" == 1 end)
    body.stream = true
    local late = server:begin("POST", "/v1/completions", body, { ["X-Request-Id"] = "late" })
    assert(process.wait_for(30, function()
      return server.process:log():find("a prompt of 2 tokens has waited %d+ s in line: it needs "
        .. "up to 1 blocks, %d+ of %d+ are in use; running 1 of at most 1, waiting 1 "
        .. "%[request_id=late%]\n")
    end), server.process:log())
    late.connection:close()
    first.connection:close()
    assert.is_true(server:idle())
    server:stop()
  end)
end)

describe("a console", function()
  it("shows where requests are, at the frontend and at the worker, and where a moved one waits",
     function()
    local dir, env = console.folder()
    local f = deployment.start { env = env, frontend = { "--migration-limit", "3" } }
    finally(function()
      f:remove()
      dir.remove()
    end)
    local function eval(name, text)
      local c = locals.connection(("%s/perilune/%s-0.sock"):format(dir.path, name), 10000)
      local parts = {}
      assert(c:request("POST", "/eval", cjson.encode { text = text },
        function(piece) parts[#parts + 1] = piece end))
      c:close()
      return cjson.decode(table.concat(parts)).text
    end
    local function shows(name, text, pattern)
      local seen
      assert(process.wait_for(20, function()
        seen = eval(name, text)
        return seen and seen:find(pattern)
      end), seen)
    end
    -- On a bus a process takes its name once it knows the others', and may serve before.
    f.frontends[1]:await "console: perilune attach (%S+)"
    assert.equal("no sequence is here", eval("worker", "requests()"))
    local answer = f.frontends[1]:begin("POST", "/v1/completions", { prompt = "x", stream = true,
      max_tokens = 1900, ignore_eos = true }, { ["X-Request-Id"] = "moved" })
    shows("frontend", "requests()", "cmpl%-moved +completion +decoding at worker/0 +2 +%d+ +[%d.]+m?s ")
    shows("worker", "requests()", "moved +decoding +2 +%d+ +[%d.]+m?s ")
    shows("worker", "requests()[1]", "^sequence %d+ of request moved   decoding\n  2 prompt tokens, ")
    f.workers[1]:signal "KILL"
    f.workers[1].process:wait(20)
    f:forget(f.workers[1])
    shows("frontend", "requests()", "waits for a worker %(worker/0: %l+%) +2 +%d+ ")
    shows("frontend", "trace('moved')", "now: waits for a worker %(worker/0: %l+%)")
    f:add_worker()
    shows("frontend", "requests()", "decoding at worker/0")
    shows("frontend", "trace('moved')", "moved to worker/0 %(worker/0: %l+%)")
    answer.connection:close()
    f:close()
  end)
end)

describe("a request that takes too long", function()
  it("gets its own headers and no other's", function()
    local server = serving.start()
    local function ask(headers)
      headers["X-Request-Timeout"] = "0.2"
      local r = server:request("POST", "/v1/completions", { prompt = "x", n = 20,
        max_tokens = 2000, ignore_eos = true }, headers)
      assert.equal(504, r.status)
      return r.headers["access-control-allow-origin"]
    end
    assert.equal("*", ask { Origin = "http://elsewhere" })
    assert.is_nil(ask {})
    server:stop()
  end)
end)
