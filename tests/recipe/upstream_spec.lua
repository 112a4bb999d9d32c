-- SPDX-License-Identifier: Apache-2.0
-- What `perilune check` says of a pool of servers elsewhere.
local resolve = require "perilune.recipe.resolve"

local function problems(text, words)
  local path = os.tmpname()
  local f = assert(io.open(path, "w"))
  f:write(text)
  f:close()
  local resolved, list = resolve.resolve(path, words, function() end)
  os.remove(path)
  local out = {}
  for i, p in ipairs(list or {}) do out[i] = p.text:gsub("^[^:]+:", "") end
  return table.concat(out, "\n"), resolved
end

local function pool(inside) return "return { worker = { " .. inside .. " } }" end

describe("a recipe with upstream", function()
  it("is right with a URL or more, and one of events for each", function()
    local said, r = problems(pool [[upstream = "http://a:1"]])
    assert.equal("", said)
    assert.same({ "http://a:1" }, r.worker.upstream)
    said, r = problems(pool [[upstream = { "http://a:1", "http://b:1" },
      kv_events = { "tcp://a:5", "tcp://b:5" }]])
    assert.equal("", said)
    assert.same({ "tcp://a:5", "tcp://b:5" }, r.worker.kv_events)
    said, r = problems(pool [[upstream = "http://a:1", kv_events = "tcp://a:5"]])
    assert.equal("", said)
    assert.same({ "tcp://a:5" }, r.worker.kv_events)
  end)

  it("takes flags", function()
    local said, r = problems(pool "", { "--upstream", "http://a:1", "http://b:1",
      "--kv-events", "tcp://a:5", "tcp://b:5" })
    assert.equal("", said)
    assert.same({ "http://a:1", "http://b:1" }, r.worker.upstream)
    assert.same({ "tcp://a:5", "tcp://b:5" }, r.worker.kv_events)
    said, r = problems(pool "", { "--no-kv-events" })
    assert.equal("", said)
    assert.is_false(r.worker.kv_events)
  end)

  it("is told what is wrong", function()
    for text, want in pairs {
      [ [[upstream = "gpu1"]] ] = "worker.upstream: 'gpu1' is no URL",
      [ [[upstream = "ftp://x"]] ] = "wanted http or https, not 'ftp'",
      [ [[upstream = {}]] ] = "worker.upstream is empty",
      [ [[upstream = 5]] ] = "worker.upstream is 5; it wants a string or a list of strings",
      [ [[kv_events = "tcp://x:1"]] ] = "worker.kv_events has URLs, and there is no upstream",
      [ [[upstream = "http://a", kv_events = { "tcp://a:1", "tcp://b:1" }]] ] =
        "worker.kv_events names 2 servers, upstream 1",
      [ [[upstream = "http://a", kv_events = "maybe"]] ] =
        "worker.kv_events is 'maybe'; it wants true or false, or a list of URLs",
      [ [[upstream = { "http://a", "http://b" }, kv_events_replay = "tcp://a:1"]] ] =
        "worker.kv_events_replay names 1 servers, upstream 2",
    } do
      local said = problems(pool(text))
      assert.truthy(said:find(want, 1, true), text .. ": " .. said)
    end
  end)
end)
