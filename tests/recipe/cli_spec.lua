-- SPDX-License-Identifier: Apache-2.0
local scratch = require "scratch"

-- The program run with these words: exit code, stdout, stderr.
local function run(words, environment)
  return scratch.sh(("env -u PERILUNE_MODEL -u PERILUNE_API_KEY -u VLLM_API_KEY "
    .. "XDG_CACHE_HOME=/nonexistent %s %s %s"):format(environment or "", scratch.program,
                                                      words))
end

describe("the command line", function()
  it("prints its version and its help", function()
    local code, out = run "version"
    assert.equal(0, code)
    assert.equal("perilune 0.1.0\n", out)
    code, out = run "help"
    assert.equal(0, code)
    assert.matches("perilune run RECIPE", out)
    assert.equal(out, select(2, run "--help"))
    local _, _, err = run ""
    assert.equal(out, err)
  end)

  it("explains an option, however it is spelt", function()
    for _, word in ipairs { "max_num_seqs", "--max-num-seqs", "worker.max_num_seqs" } do
      local code, out = run("help " .. word)
      assert.equal(0, code)
      assert.matches("sequences that run at once", out)
    end
    assert.matches("a hook", select(2, run "help admit"))
    local code, _, err = run "help max_num_seq"
    assert.equal(2, code)
    assert.equal("perilune: no option 'max_num_seq'\n    did you mean 'max_num_seqs'?\n",
                 err)
  end)

  it("checks a recipe: every value and who set it", function()
    local code, out, err = run "check agg --port 9001 --api-key hush"
    assert.equal("", err)
    assert.equal(0, code)
    assert.matches("\n  http.port +9001 +%-%-port\n", out)
    assert.matches("\n  worker.max_num_seqs +256 +default\n", out)
    assert.is_nil(out:find "hush")
  end)

  it("exits with 1 where the recipe is wrong, 2 where the command is", function()
    local dir = scratch.folder()
    finally(dir.remove)
    local path = dir.write("bad.lua", "return { worker = { seeed = 1 } }")
    local code, out, err = run("check " .. path)
    assert.equal(1, code)
    assert.equal("", out)
    assert.equal(path .. ":1: worker has no option 'seeed'\n    did you mean 'seed'?  "
                 .. "what dummy weights are drawn from (default 0)\n", err)
    for _, words in ipairs { "check agg --prot 1", "check", "check agg decode", "chekc",
                             "run --port 1", "check nowhere" } do
      code, out, err = run(words)
      assert.equal(2, code, words)
      assert.equal("", out)
      assert.matches("^[^\n]+\n[^\n]*\n?$", err)
    end
  end)

  it("shows what a recipe says of itself, and its own flags", function()
    local dir = scratch.folder()
    finally(dir.remove)
    local path = dir.write("r.lua", [[
-- SPDX-License-Identifier: Apache-2.0
-- r.lua - a recipe of its own.
--
--   perilune run r.lua --wide 3

-- not its head
local opt = require "perilune".args { { "how_wide", 2, "in metres" } }
return { worker = { seed = opt.how_wide } }]])
    for word, ask in pairs { run = "--help", check = "-h" } do
      local code, out = run(("%s %s --seed 1 %s"):format(word, path, ask))
      assert.equal(0, code)
      assert.equal("r.lua - a recipe of its own.\n\n  perilune run r.lua --wide 3\n\n"
                   .. "  --how-wide         in metres (2)\n\n"
                   .. "perilune help options says what every recipe takes\n", out)
    end
  end)

  it("does not run without a model, and says how to come by one", function()
    local code, _, err = run "run agg"
    assert.equal(2, code)
    assert.equal("perilune: no model: name one by --model or $PERILUNE_MODEL\n"
                 .. "    ./dev run fetches a small one\n", err)
    assert.matches("\n  model +some.gguf +%$PERILUNE_MODEL\n",
                   select(2, run("check agg", "PERILUNE_MODEL=some.gguf")))
  end)
end)
