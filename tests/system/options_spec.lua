-- SPDX-License-Identifier: Apache-2.0
-- Options as one sees them from outside: a server on the small golden model, asked by
-- curl.

local json = require "cjson"
local scratch = require "scratch"

local golden = os.getenv "PERILUNE_GOLDEN" or "tests/golden"

-- Serves with these flags while the shell's words run; $at is where. What they printed,
-- and the server's log.
local function with_server(flags, words)
  local code, out, log = scratch.sh(([[
    unset PERILUNE_MODEL PERILUNE_API_KEY VLLM_API_KEY VLLM_SERVER_DEV_MODE
    log=$(mktemp)
    '%s' run agg --model '%s/qwen3' --port 0 %s >$log 2>&1 &
    server=$! tries=600
    until at=$(grep -o 'http://127[0-9.:]*' $log); do
      kill -0 $server && [ $((tries -= 1)) -gt 0 ] && sleep 0.1 || break
    done
    post() { curl -sm 60 -H 'Content-Type: application/json' -d "$2" $at$1; echo; }
    %s
    kill $server; wait $server; code=$?; cat $log >&2; rm $log; exit $code]]):format(
    scratch.program, golden, flags, words))
  return out, log, code
end

describe("an option", function()
  it("names the model in answers by its first name, whichever was asked for", function()
    local out = with_server("--served-model-name one two",
      [[post /v1/completions '{"model": "two", "prompt": "a", "max_tokens": 1}']])
    assert.equal("one", json.decode(out).model)
  end)

  it("logs requests as they come, each on its line", function()
    local words = [[post /v1/completions '{"prompt": ["a", "b"], "max_tokens": 1,
      "request_id": "x\ny"}']]
    local _, log = with_server("--enable-log-requests", words)
    assert.matches('request "cmpl%-x\\ny": completion, 2 prompts of 2 tokens, n = 1\n', log)
    _, log = with_server("", words)
    assert.is_nil(log:find "cmpl%-x")
  end)

  it("counts requests under way where it is told to", function()
    local words = [[
      post /v1/completions '{"prompt": "a", "stream": true, "ignore_eos": true, "n": 64,
        "temperature": 1, "max_tokens": 2000}' >$log.x & client=$!
      until grep -q data: $log.x || ! kill -0 $client; do sleep 0.01; done
      curl -s $at/load; kill $client; rm $log.x]]
    assert.equal(0, json.decode((with_server("", words))).server_load)
    local out = with_server("--enable-server-load-tracking", words)
    assert.equal(1, json.decode(out).server_load)
  end)

  it("gives a template as text; what is none is refused before it serves", function()
    local out = with_server("--chat-template '<{{ messages[0].content }}>'",
      [[post /tokenize '{"messages": [{"role": "user", "content": "hi"}],
        "return_token_strs": true}']])
    assert.same({ "<", "h", "i", ">" }, json.decode(out).token_strs)
    for text, why in pairs { ["{{ oops"] = "a tag without end",
                             ["/"] = "neither a file nor a template",
                             ["nowhere.jinja"] = "neither a file nor a template" } do
      local _, log, code = with_server(("--chat-template '%s'"):format(text), "")
      assert.equal(1, code)
      assert.is_truthy(log:find(why, 1, true), log)
    end
  end)

  it("is told at the start where it is not as it comes, but no secret", function()
    local _, log = with_server("--api-key hush --max-num-seqs 9", "")
    assert.matches("model = [^ ]+/qwen3 %(%-%-model%)", log)
    assert.matches("worker.max_num_seqs = 9 %(%-%-max%-num%-seqs%)", log)
    assert.matches("http.api_key = %(secret%)", log)
    assert.is_nil(log:find "hush")
  end)
end)
