-- SPDX-License-Identifier: Apache-2.0
-- Options as one sees them from outside.

local process = require "support.process"
local serving = require "support.serving"

describe("an option", function()
  local server

  local function start(...) server = serving.start { ... } end

  after_each(function()
    if server then server.process:remove() end
    server = nil
  end)

  it("names the model in answers by its first name, whichever was asked for", function()
    start("--served-model-name", "one", "two")
    local r = server:post("/v1/completions", { model = "two", prompt = "a",
                                               max_tokens = 1 })
    assert.equal("one", r.json.model)
  end)

  it("names a device that is a plug-in", function()
    start("--device", "echo", "--load-format", "dummy")
    local r = server:post("/v1/completions", { prompt = { 5, 6, 7 }, max_tokens = 3,
      temperature = 0, ignore_eos = true, return_token_ids = true })
    assert.same({ 8, 9, 10 }, r.json.choices[1].token_ids)
  end)

  it("logs requests as they come, each on its line", function()
    local body = { prompt = { "a", "b" }, max_tokens = 1, request_id = "x\ny" }
    start "--enable-log-requests"
    assert.equal(200, server:post("/v1/completions", body).status)
    body.request_id = "mine"
    assert.equal(200, server:post("/v1/completions", body).status)
    local log, says = server:stop(), "completion, 2 prompts of %d tokens, n = 1 "
    assert.matches("request cmpl%-(%x+): " .. says .. "%[request_id=%1%]\n", log)
    assert.matches("request cmpl%-mine: " .. says .. "%[request_id=mine%]\n", log)
    start()
    assert.equal(200, server:post("/v1/completions", body).status)
    assert.is_nil(server:stop():find "cmpl%-mine")
  end)

  it("counts requests under way where it is told to", function()
    local long = { prompt = "a", ignore_eos = true, n = 64, temperature = 1,
                   max_tokens = 2000 }
    for flag, n in pairs { ["--enable-server-load-tracking"] = 1,
                           ["--no-enable-server-load-tracking"] = 0 } do
      start(flag)
      local answer = server:begin("POST", "/v1/completions", long)
      assert.is_truthy(process.wait_for(20, function()
        return server:metric "vllm:num_requests_running" > 0
      end))
      assert.equal(n, server:get("/load").json.server_load)
      answer.connection:close()
      server.process:remove()
    end
  end)

  it("gives a template as text; what is none is refused before it serves", function()
    start("--chat-template", "<{{ messages[0].content }}>")
    local r = server:post("/tokenize", { return_token_strs = true,
      messages = { { role = "user", content = "hi" } } })
    assert.equal("<hi>", table.concat(r.json.token_strs):match "<.*$")
    for text, why in pairs { ["{{ oops"] = "a tag without end",
                             ["/"] = "neither a file nor a template",
                             ["nowhere.jinja"] = "neither a file nor a template" } do
      local ok, log = pcall(serving.start, { "--chat-template", text })
      assert.is_false(ok)
      assert.is_truthy(log:find(why, 1, true), log)
    end
  end)

  it("is told at the start where it is not as it comes, but no secret", function()
    start("--api-key", "hush", "--max-num-seqs", "9")
    local log = server:stop()
    assert.matches("model = [^ ]+/llama %(%-%-model%)", log)
    assert.matches("worker.max_num_seqs = 9 %(%-%-max%-num%-seqs%)", log)
    assert.matches("http.api_key = %(secret%)", log)
    assert.is_nil(log:find "hush")
  end)
end)
