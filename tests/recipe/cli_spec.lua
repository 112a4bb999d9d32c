-- SPDX-License-Identifier: Apache-2.0
local help = require "perilune.console.manual"
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
      assert.matches("maximum sequences running at once", out)
    end
    assert.matches("a hook", select(2, run "help admit"))
    local code, _, err = run "help max_num_seq"
    assert.equal(2, code)
    assert.equal("perilune: no option 'max_num_seq'\n    did you mean 'max_num_seqs'?\n",
                 err)
  end)

  it("explains what recipes can use", function()
    for word, wanted in pairs {
      ["pl.mix"] = "^pl.mix   each hook decides about a share of the requests\n  fun%(",
      ["pl.pick"] = "^pl.pick   ways to pick a worker\n  pl.pick.cheapest .*\n  pl.pick.softmax ",
      ["pl.cost.approx"] = "^pl.cost.approx   the same by w.sent .*overlap_score_credit%?: number",
      meta = "^%-%-%-@meta perilune\n",
    } do
      local code, out = run("help " .. word)
      assert.equal(0, code)
      assert.matches(wanted, out)
    end
    for _, word in ipairs { "pl.", "pl.nix", "pl.cost.nix", "pl.mix.x" } do
      assert.equal(2, (run("help " .. word)), word)
    end
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
                 .. "seed of dummy weights (default 0)\n", err)
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
                   .. help.common() .. "\n", out)
    end
  end)

  it("shows the flags that matter, and how to see all", function()
    for _, words in ipairs { "serve --help", "serve -h", "serve some.gguf --help",
                             "serve --port 1 some.gguf --help", "run --help", "run -h" } do
      local code, out, err = run(words)
      assert.equal("", err)
      assert.equal(0, code, words)
      assert.is_truthy(out:find(help.common() .. "\n", 1, true), out)
      assert.matches("\n  %-%-port +port to listen on", out)
      assert.matches("perilune help options lists all\n$", out)
      for line in out:gmatch "[^\n]+" do assert.is_true(#line <= 100, line) end
    end
  end)

  it("says how a command is used, asked in either way", function()
    for _, word in ipairs { "serve", "run", "check", "chat", "ps", "drain", "attach" } do
      local code, out, err = run(word .. " --help")
      assert.equal("", err)
      assert.equal(0, code, word)
      assert.equal("perilune " .. word, out:match "^perilune %l+")
      assert.same({ 0, out, "" }, { run("help " .. word) })
    end
    assert.same({ 0, help.usage() .. "\n", "" }, { run "help --help" })
  end)

  it("tells a model from a recipe", function()
    local dir = scratch.folder()
    finally(dir.remove)
    local gguf = dir.write("m.gguf", "GGUF\3\0\0\0" .. ("x"):rep(1e6))
    dir.write("folder/config.json", "{}")
    dir.write("hub/models--Org--Name/refs/main", "1")
    dir.write("hub/models--Org--Name/snapshots/1/config.json", "{}")
    for _, word in ipairs { "run", "check" } do
      for _, name in ipairs { gguf, dir.path .. "/folder", "Org/Name",
                              dir.write("m.safetensors", "\16\0\0\0\0\0\0\0{}") } do
        local code, out, err = run(word .. " " .. name,
          "HF_HUB_CACHE=" .. dir.path .. "/hub")
        assert.equal(2, code)
        assert.equal("", out)
        assert.equal(("perilune: '%s' is a model, not a recipe (a Lua file)\n"
          .. "    perilune serve %s\n"):format(name, name), err)
      end
    end
    local code, _, err = run("check " .. dir.write("x.lua", "return require 'm'"))
    assert.equal(1, code)
    assert.is_nil(err:find("perilune serve", 1, true), err)
  end)

  it("serves what is not a file by its name, and says how to get it", function()
    for _, words in ipairs { "serve Org/Other --log-format text --port 0",
                             "serve --log-format text --port 0 Org/Other",
                             "serve --enable-prefix-caching Org/Other --log-format=text --port 0",
                             "serve --log-format=text Org/Other --port 0",
                             "serve --enable-prefix-caching no Org/Other --port 0 --log-format text",
                             "serve --log-format text --port 0 --model Org/Other" } do
      local code, _, err = run(words, "HF_HUB_CACHE=/nonexistent")
      assert.equal(1, code)
      assert.matches("'Org/Other' is not a folder[^\n]* to get it: hf download Org/Other\n", err)
    end
  end)

  it("knows flags of other servers", function()
    for words, hint in pairs {
      ["serve -m x"] = "no option '-m'\n    here: serve MODEL, or --model\n",
      ["serve x -c 4096"] = "no option '-c'\n    here: --max-model-len\n",
      ["run agg --port 1 -np 4"] = "no option '-np'\n    here: --max-num-seqs\n",
      ["check agg --ctx_size=1"] = "no option '--ctx_size'\n    here: --max-model-len\n",
      ["serve x -port 1"] = "no option '-port'\n    did you mean '--port'?  port to listen "
        .. "on; 0: any free one (default 8000)\n",
    } do
      local code, out, err = run(words)
      assert.equal(2, code)
      assert.equal("", out)
      assert.equal(hint, err)
    end
  end)

  it("does not run without a model, and says how to come by one", function()
    local code, _, err = run "run agg"
    assert.equal(2, code)
    assert.equal("perilune: no model: use perilune serve MODEL, --model or $PERILUNE_MODEL\n"
      .. "    ./dev run downloads a small one\n", err)
    assert.equal(err, select(3, run "serve"))
    assert.matches("\n  model +some.gguf +%$PERILUNE_MODEL\n",
                   select(2, run("check agg", "PERILUNE_MODEL=some.gguf")))
  end)
end)
