-- SPDX-License-Identifier: Apache-2.0
-- The transcripts of examples/console, typed again: what is printed must be what stands
-- there, but for numbers, the width of columns, and ids.
local console = require "support.console"

local MARK = "-- next --"

-- A transcript: a list of { typed = { line ... }, shown = "..." }.
local function read(path)
  local list, last = {}, nil
  for line in io.lines(path) do
    local first, more = line:match "^%l+/%d+> (.*)$", line:match "^ +%.%.%.> (.*)$"
    if first then
      last = { typed = { first }, shown = {} }
      list[#list + 1] = last
    elseif more then
      table.insert(last.typed, more)
    elseif last then
      table.insert(last.shown, line)
    end
  end
  return list
end

-- What may differ from day to day and machine to machine taken out.
local function plain(text)
  return (text:gsub("%x%x%x%x%x%x%x%x+", "ID"):gsub("ID[%d%.]*", "ID")
    :gsub("process %d+ of user %d+", "WHO"):gsub("%S*/recipes/", "recipes/")
    :gsub("kernels %w+", "kernels K"):gsub("%d[%d%.]*", "N")
    :gsub("Nms", "Ns"):gsub(" +", " "):gsub("^%s+", ""):gsub("%s+$", ""):gsub("\n ", "\n"))
end

local function replay(path)
  local c = console.start { "--num-kv-blocks", "256" }
  for _ = 1, 4 do
    local r = c.server:post("/v1/completions", { prompt = "x", max_tokens = 8, ignore_eos = true })
    assert.equal(200, r.status)
  end
  local list, lines = read(path), {}
  for _, step in ipairs(list) do
    for _, line in ipairs(step.typed) do lines[#lines + 1] = line end
    lines[#lines + 1] = ("print %q"):format(MARK)
  end
  local file = c.dir.write("typed", table.concat(lines, "\n") .. "\n")
  local _, out = c:sh(("$PERILUNE attach frontend/0 <'%s' 2>&1"):format(file))
  c:stop()
  local shown, at = {}, 1
  for i in ipairs(list) do
    local from, to = out:find(MARK .. "\n", at, true)
    assert(from, "nothing more came after " .. tostring(shown[i - 1]))
    shown[i], at = out:sub(at, from - 1), to + 1
  end
  return list, shown
end

describe("the transcript", function()
  local rewrite = os.getenv "PERILUNE_REWRITE_TRANSCRIPTS"

  -- Puts what was shown now into the file, for somebody to read.
  local function write(path, list, shown)
    local head = {}
    for line in io.lines(path) do
      if line:find "^%l+/%d+> " then break end
      head[#head + 1] = line
    end
    local f = assert(io.open(path, "w"))
    f:write(table.concat(head, "\n"), "\n")
    for i, step in ipairs(list) do
      f:write("frontend/0> ", table.concat(step.typed, "\n       ...> "), "\n",
        (shown[i]:gsub("%S*/recipes/", "recipes/")))
    end
    f:close()
  end

  local pipe = io.popen "ls examples/console/*.txt"
  local files = pipe:read "*a"
  pipe:close()
  for path in files:gmatch "%S+" do
    it(path .. " still holds", function()
      local list, shown = replay(path)
      assert.is_true(#list > 3)
      if rewrite then write(path, list, shown) end
      for i, step in ipairs(list) do
        local where = ("%s: after: %s"):format(path, step.typed[1])
        assert.equal(plain(table.concat(step.shown, "\n")), plain(shown[i]), where)
      end
    end)
  end

  it("is of a kind that can fail", function()
    assert.not_equal(plain "a  12", plain "b 12")
    assert.equal(plain "x   1.5ms", plain "x 27.25ms")
  end)
end)
