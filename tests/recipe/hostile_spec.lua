-- SPDX-License-Identifier: Apache-2.0
-- Whatever a file or a command line holds: an answer or problems, never a failure.
local recipe = require "perilune.recipe.resolve"
local scratch = require "scratch"

local TEXT = [==[
local pl = require "perilune"
local opt = pl.args { { "wide", 2, "how wide", min = 1 }, { "form", "x", "form" } }
--[[ a note ]] local s = [=[ text ]=] .. 'it\'s' .. "\z"
local function cost(req, w) return opt.wide * (req.blocks - w.cached) end
return pl.extend("agg", {
  http = { port = 8000, allowed_origins = { "a", "b" } }, hf_overrides = { a = { 1 } },
  worker = { seed = opt.wide, cost = cost, ["block_size"] = 16, max_model_len = "1k" },
})]==]

local PIECES = { "", " ", "\n", "{", "}", "[", "]", "=", "==", "'", '"', "\\", "--",
  "[[", "--[[", "]]",
  "nil", "0/0", "1e999", "-1", "{}", "function() end", "true", "end", "\0",
  ".", ",", "(", ")", "x", "_G", "\255", "pl", "require" }
local WORDS = { "--port", "--port=", "--", "--=", "-", "", "--no-port", "--wide", "1",
  "-1",
  "1k", "nan", "[", '["a"]', "{", '{"a":1}', "--hf-overrides", "--hf-overrides.a.b",
  "--hf-overrides.", "--worker.", "--worker.seed", "--.seed", "--api-key", "a", "--form",
  "--model", "--served-model-name", "--worker.cost", "--no-", "--http", "\255", "--a%b" }

local function answers(path, words)
  local ok, resolved, problems = pcall(recipe.resolve, path, words)
  assert.is_true(ok, tostring(resolved))
  if resolved then
    assert.is_true(#recipe.settings(resolved) > 0)
  else
    assert.is_true(#problems > 0)
    for _, p in ipairs(problems) do assert.is_string(p.text) end
  end
  return resolved ~= nil
end

describe("what is hostile", function()
  local dir
  before_each(function()
    dir = scratch.folder()
    math.randomseed(7)
  end)
  after_each(function() dir.remove() end)

  it("in a file is answered", function()
    local good = 0
    assert.is_true(answers(dir.write("r.lua", TEXT), {}))
    for _ = 1, 1500 do
      local text = TEXT
      for _ = 1, math.random(3) do
        local at = math.random(#text)
        local cut = math.random(0, 1) * math.random(0, 8)
        text = text:sub(1, at) .. PIECES[math.random(#PIECES)] .. text:sub(at + cut + 1)
      end
      -- A mutation may loop for ever only where there is a loop, and there is none.
      if answers(dir.write("r.lua", text), {}) then good = good + 1 end
    end
    assert.is_true(good > 50 and good < 1500)
  end)

  it("on the command line is answered", function()
    local path, good = dir.write("r.lua", TEXT), 0
    for _ = 1, 1500 do
      local words = {}
      for i = 1, math.random(4) do words[i] = WORDS[math.random(#WORDS)] end
      if answers(path, words) then good = good + 1 end
    end
    assert.is_true(good > 20 and good < 1500)
  end)

  it("in a value is answered", function()
    local odd = { "0/0", "1/0", "-1/0", "2^60", "{}", "{{}}", "{nil, 1}", "{[1.5] = 1}",
      "function() end", "true", "''", "'\\0'", "{1, 2}", "setmetatable({}, {})",
      "(function() local t = {} t.t = t return t end)()", "-0", "1.5", "{'a', x = 'b'}" }
    for _, section in ipairs { "http", "worker" } do
      for _, key in ipairs { "port", "api_key", "seed", "dtype", "max_model_len", "cost",
                             "allow_credentials" } do
        for _, value in ipairs(odd) do
          local text = "return { hf_overrides = %s, worker = {}, %s = { %s = %s } }"
          answers(dir.write("r.lua", text:format(value, section, key, value)), {})
        end
      end
    end
  end)
end)
