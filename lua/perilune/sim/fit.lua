-- SPDX-License-Identifier: Apache-2.0
-- sim/fit.lua - a timing (sim/timing.lua) from what was measured of a server.
--
--     fit.prompt(points, n, ms)          a prompt of n tokens alone, to its first token
--     fit.step(points, seqs, back, ms)   a token of each of so many sequences, before
--                                        which `back` tokens stand, all together
--     local figures = fit.timing(points)
--     fit.ms(figures, point)             what that says of a point
--
-- Of all figures that are not negative, those with the least sum of squared relative
-- errors.

local M = {}

function M.prompt(points, n, ms)
  points[#points + 1] = { ms = ms, of = { prefill = 1, prefill_token = n,
    prefill_back = n * (n - 1) / 2 } }
end

function M.step(points, seqs, back, ms)
  points[#points + 1] = { ms = ms, of = { decode = 1, decode_seq = seqs,
    decode_back = back } }
end

local KINDS = { { "prefill", "prefill_token", "prefill_back" },
  { "decode", "decode_seq", "decode_back" } }

-- Solves a x = b in place (a: rows); nil: there is more than one solution.
local function solve(a, b)
  local n = #b
  for i = 1, n do
    local pivot = i
    for r = i + 1, n do
      if math.abs(a[r][i]) > math.abs(a[pivot][i]) then pivot = r end
    end
    if math.abs(a[pivot][i]) < 1e-9 then return nil end
    a[i], a[pivot], b[i], b[pivot] = a[pivot], a[i], b[pivot], b[i]
    for r = 1, n do
      local f = r ~= i and a[r][i] / a[i][i] or 0
      for k = i, n do a[r][k] = a[r][k] - f * a[i][k] end
      b[r] = b[r] - f * b[i]
    end
  end
  for i = 1, n do b[i] = b[i] / a[i][i] end
  return b
end

function M.ms(figures, point)
  local sum = 0
  for name, times in pairs(point.of) do sum = sum + (figures[name] or 0) * times end
  return sum
end

-- The figures of these names alone; nil: one is negative, or more than one answer fits.
local function least_squares(points, names)
  local a, b, most = {}, {}, {}
  for i, name in ipairs(names) do           -- each counts in its largest: for precision
    most[i] = 0
    for _, p in ipairs(points) do most[i] = math.max(most[i], p.of[name]) end
  end
  for i, row in ipairs(names) do
    a[i], b[i] = {}, 0
    for k, column in ipairs(names) do
      a[i][k] = 0
      for _, p in ipairs(points) do
        a[i][k] = a[i][k] + p.of[row] / most[i] * p.of[column] / most[k] / p.ms ^ 2
      end
    end
    for _, p in ipairs(points) do b[i] = b[i] + p.of[row] / most[i] / p.ms end
  end
  local scale = a[1][1]                     -- so that it is clear what next to nothing is
  for i = 1, #b do
    for k = 1, #b do a[i][k] = a[i][k] / scale end
    b[i] = b[i] / scale
  end
  local x, figures = solve(a, b), {}
  if not x then return nil end
  for i, name in ipairs(names) do
    if x[i] < 0 then return nil end
    figures[name] = x[i] / most[i]
  end
  return figures
end

local function error_of(points, figures)
  local sum = 0
  for _, p in ipairs(points) do sum = sum + (M.ms(figures, p) / p.ms - 1) ^ 2 end
  return sum
end

local function best_of(points, names)
  local best, least = {}, math.huge
  for set = 1, 2 ^ #names - 1 do
    local some = {}
    for i, name in ipairs(names) do
      if math.floor(set / 2 ^ (i - 1)) % 2 == 1 then some[#some + 1] = name end
    end
    local figures = least_squares(points, some)
    local e = figures and error_of(points, figures)
    if e and e < least then best, least = figures, e end
  end
  return best
end

-- At least one point of each kind.
function M.timing(points)
  local out = {}
  for _, names in ipairs(KINDS) do
    local some = {}
    for _, p in ipairs(points) do
      if p.of[names[1]] then some[#some + 1] = p end
    end
    for name, v in pairs(best_of(some, names)) do out[name] = v end
  end
  return out
end

return M
