-- SPDX-License-Identifier: Apache-2.0
-- report.lua - what a spec's process wrote, in the form that busted calls gtest, told in
-- fewer words.

local M = {}

local SLOWEST = 5

-- The last test that began.
local function current(text)
  return text:match "^.*%[ RUN      %] ([^\n]*)" or "no test"
end

-- Why a process did not end as one whose tests all passed.
local function why(text, code, killed_by)
  if code == 124 then return "it ran out of time in " .. current(text) end
  return ("it ended with %s after the start of %s"):format(
    killed_by and "signal " .. killed_by or "exit code " .. code, current(text))
end

-- What a spec says that passes: lines that begin with "note: ".
local function notes(text)
  local lines = {}
  for line in ("\n" .. text):gmatch "\nnote: ([^\n]+)" do
    lines[#lines + 1] = "    " .. line .. "\n"
  end
  return table.concat(lines)
end

-- The lines of a text that say more than how far it has come, indented.
local function said(text)
  local lines = {}
  for line in text:gmatch "[^\n]+" do
    local is_progress = line:find "^%[[-= A-Z]+%] Global" or line:find "^%[ RUN      %]"
      or line:find "^%[[-=]+%]" or line:find "^%[[ A-Z]+%] .* %(%d+%.%d+ ms%)$"
      or line:find "^%d+ tests?%.$" or line:find "listed below:$"
      or line:find "^ %d+ %u+ ?%u*$"
    if not is_progress then lines[#lines + 1] = "    " .. line .. "\n" end
  end
  return table.concat(lines)
end

-- Of the text, and how the process ended: { passed, failed, pending, tests = { { name,
-- seconds } }, said }. One that fails without a failed test counts as a failure.
function M.read(text, code, killed_by)
  local before, sum = text:match "^(.-)%[  PASSED  %] (.*)$"
  before, sum = before or text, sum or ""
  local function count(what) return tonumber(sum:match("\n (%d+) " .. what)) or 0 end
  local r = { passed = tonumber(sum:match "^%d+") or 0, tests = {},
    failed = count "FAILED" + count "ERROR", pending = count "SKIPPED" }
  for name, ms in before:gmatch "%] ([^\n]-) %((%d+%.%d+) ms%)\n" do
    r.tests[#r.tests + 1] = { name, ms / 1000 }
  end
  if code == 0 then
    r.said = notes(before) .. said(sum)
  else
    r.said = said(before) .. said(sum)
    if r.failed == 0 then
      r.failed, r.said = 1, r.said .. "    " .. why(text, code, killed_by) .. "\n"
    end
  end
  return r
end

-- One spec's line: file, seconds and what read() answers.
function M.line(spec)
  local function some(n, what) return n > 0 and (" %d %s"):format(n, what) or "" end
  return ("%-6s %6.1f s  %s: %d passed%s%s\n"):format(spec.failed > 0 and "FAILED" or "ok",
    spec.seconds, spec.file, spec.passed, some(spec.failed, "failed"),
    some(spec.pending, "pending"))
end

local function slowest_tests(specs)
  local all, lines = {}, {}
  for _, spec in ipairs(specs) do
    for _, test in ipairs(spec.tests) do all[#all + 1] = test end
  end
  table.sort(all, function(a, b) return a[2] > b[2] end)
  for i = 1, math.min(SLOWEST, #all) do
    lines[i] = ("  %5.1f s  %s\n"):format(all[i][2], all[i][1])
  end
  return table.concat(lines)
end

-- Of the specs that are `word`'s, or of all: { passed, failed, pending, seconds }.
local function total(specs, word)
  local sum = { passed = 0, failed = 0, pending = 0, seconds = 0 }
  for _, spec in ipairs(specs) do
    for key, n in pairs(spec.word == (word or spec.word) and sum or {}) do
      sum[key] = n + spec[key]
    end
  end
  return sum
end

-- The last lines: the slowest tests; for each word what its specs took, of the time of
-- several at once; and the sum.
function M.sum(words, specs, seconds)
  local lines = { "slowest tests:\n", slowest_tests(specs) }
  for _, word in ipairs(words) do
    local t = total(specs, word)
    lines[#lines + 1] = ("%s %d passed %d failed %d pending in %.0f s\n"):format(word,
      t.passed, t.failed, t.pending, t.seconds)
  end
  local t = total(specs)
  lines[#lines + 1] = ("in %.0f s: %d passed, %d failed\n"):format(seconds, t.passed, t.failed)
  return table.concat(lines)
end

return M
