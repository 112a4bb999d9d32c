-- SPDX-License-Identifier: Apache-2.0
-- jinja/text.lua - strings as Python has them: UTF-8, counted in code points.
--
-- What is white is what Python's str.isspace says.

local pl = require "perilune.ffi"
local C = pl.C
local byte, find, gmatch, gsub, sub =
  string.byte, string.find, string.gmatch, string.gsub, string.sub

local M = {}

local character = "[%z\1-\127\194-\244][\128-\191]*"
M.character = character

local white = {}
for c in gmatch("\t\n\v\f\r \28\29\30\31\194\133\194\160\225\154\128\226\129\159"
  .. "\227\128\128\226\128\168\226\128\169\226\128\175", character) do
  white[c] = true
end
for last = 0x80, 0x8a do white["\226\128" .. string.char(last)] = true end

-- The set of a string's characters.
local function set_of(chars)
  local set = {}
  for c in gmatch(chars, character) do set[c] = true end
  return set
end

-- The character that starts at byte i, and that which ends at byte i.
local function char_at(s, i)
  local b = byte(s, i)
  return sub(s, i, b < 0xc2 and i or b < 0xe0 and i + 1 or b < 0xf0 and i + 2 or i + 3)
end

local function char_before(s, i)
  local first = i
  while first > 1 and byte(s, first) >= 0x80 and byte(s, first) < 0xc0 do
    first = first - 1
  end
  return sub(s, first, i)
end

-- The first byte from i on that is not of the set (white by default), and the last one.
local function skip(s, i, set)
  set = set or white
  while i <= #s do
    local c = char_at(s, i)
    if not set[c] then break end
    i = i + #c
  end
  return i
end
M.skip = skip

local function skip_back(s, i, set)
  set = set or white
  while i >= 1 do
    local c = char_before(s, i)
    if not set[c] then break end
    i = i - #c
  end
  return i
end

function M.lstrip(s, chars)
  return sub(s, skip(s, 1, chars and set_of(chars)))
end

function M.rstrip(s, chars)
  return sub(s, 1, skip_back(s, #s, chars and set_of(chars)))
end

function M.strip(s, chars)
  local set = chars and set_of(chars)
  local first = skip(s, 1, set)
  if first > #s then return "" end
  return sub(s, first, skip_back(s, #s, set))
end

function M.is_white(s)
  return s ~= "" and skip(s, 1) > #s
end

local function is_ascii(s)
  return not find(s, "[\128-\255]")
end

function M.length(s)
  if is_ascii(s) then return #s end
  local n = 0
  for i = 1, #s do
    local b = byte(s, i)
    if b < 0x80 or b >= 0xc0 then n = n + 1 end
  end
  return n
end

-- The byte before which n more characters, from byte i on, have passed.
local function pass(s, i, n)
  while n > 0 do
    local b = byte(s, i)
    i = i + (b < 0xc2 and 1 or b < 0xe0 and 2 or b < 0xf0 and 3 or 4)
    n = n - 1
  end
  return i
end

function M.chars(s)
  local out, n = {}, 0
  for c in gmatch(s, character) do
    n = n + 1
    out[n] = c
  end
  return out
end

-- Characters start, start + step, ... before stop; all counted from 0 and within s.
function M.slice(s, start, stop, step)
  if step == 1 then
    if is_ascii(s) then return sub(s, start + 1, stop) end
    local first = pass(s, 1, start)
    return sub(s, first, pass(s, first, stop - start) - 1)
  end
  local chars, out = M.chars(s), {}
  for i = start, stop + (step > 0 and -1 or 1), step do out[#out + 1] = chars[i + 1] end
  return table.concat(out)
end

-- Where `what` is, in characters from 0, or nil.
function M.find(s, what, last)
  local at = find(s, what, 1, true)
  while at and last do
    local later = find(s, what, at + 1, true)
    if not later then break end
    at = later
  end
  return at and M.length(sub(s, 1, at - 1))
end

function M.count(s, what)
  if what == "" then return M.length(s) + 1 end
  local n, at, stop = 0, find(s, what, 1, true)
  while at do
    n = n + 1
    at, stop = find(s, what, stop + 1, true)
  end
  return n
end

-- At most `max` parts are cut off (nil: all); from the right with `right`.
local function split_by(s, separator, max, right)
  local cuts, at, stop = {}, find(s, separator, 1, true)
  while at do
    cuts[#cuts + 1] = at
    at, stop = find(s, separator, stop + 1, true)
  end
  local first, last = 1, #cuts
  if max and max < #cuts then
    if right then first = #cuts - max + 1 else last = max end
  end
  local out, from = {}, 1
  for i = first, last do
    out[#out + 1] = sub(s, from, cuts[i] - 1)
    from = cuts[i] + #separator
  end
  out[#out + 1] = sub(s, from)
  return out
end

local function split_white(s, max)
  local out, at = {}, skip(s, 1)
  while at <= #s do
    if max and #out == max then
      out[#out + 1] = sub(s, at)
      break
    end
    local stop = at
    while stop <= #s and not white[char_at(s, stop)] do
      stop = stop + #char_at(s, stop)
    end
    out[#out + 1] = sub(s, at, stop - 1)
    at = skip(s, stop)
  end
  return out
end

local function rsplit_white(s, max)
  local words = split_white(s)
  if not max or #words <= max then return words end
  local out, stop = {}, skip_back(s, #s)
  for i = #words, #words - max + 1, -1 do
    table.insert(out, 1, words[i])
    stop = skip_back(s, stop - #words[i])
  end
  table.insert(out, 1, sub(s, 1, stop))
  return out
end

function M.split(s, separator, max, right)
  if separator then return split_by(s, separator, max, right) end
  if right then return rsplit_white(s, max) end
  return split_white(s, max)
end

-- The next end of a line from byte i on: its first and last byte.
local function line_end(s, i)
  while true do
    local at = find(s, "[\n\r\v\f\28-\30\194\226]", i)
    if not at then return #s + 1, #s end
    local b = byte(s, at)
    if b < 0x80 then return at, sub(s, at, at + 1) == "\r\n" and at + 1 or at end
    local stop = select(2, find(s, b == 194 and "^\194\133" or "^\226\128[\168\169]", at))
    if stop then return at, stop end
    i = at + 1
  end
end

function M.lines(s, keep)
  local out, from = {}, 1
  while from <= #s do
    local at, stop = line_end(s, from)
    out[#out + 1] = sub(s, from, keep and stop or at - 1)
    from = stop + 1
  end
  return out
end

-- Replaces the first `max` (nil: all).
function M.replace(s, old, new, max)
  if old == "" then
    local out = {}
    for c in gmatch(s, character) do
      out[#out + 1] = (not max or #out < max) and new .. c or c
    end
    return table.concat(out) .. ((not max or #out < max) and new or "")
  end
  return table.concat(split_by(s, old, max), new)
end

-- Bounds as Python's slice.indices gives them, of n items; nil is a bound not given.
function M.bounds(n, first, last, step)
  local low, high = 0, n
  if step < 0 then low, high = -1, n - 1 end
  local function place(i, default)
    if i == nil then return default end
    if i < 0 then i = i + n end
    return math.max(low, math.min(high, i))
  end
  return place(first, step > 0 and low or high), place(last, step > 0 and high or low)
end

local function changed_case(s, upper)
  local b = pl.ffi.new "pl_buf"
  C.pl_text_case(s, #s, upper, b)
  return pl.take(b)
end

function M.upper(s)
  return is_ascii(s) and s:upper() or changed_case(s, 1)
end

function M.lower(s)
  return is_ascii(s) and s:lower() or changed_case(s, 0)
end

-- As the method title() has it: every run of letters is a word.
function M.title(s)
  return (gsub(s, "[%a\128-\255]+", M.capitalize))
end

-- As the filter `title` has it: words end at blanks, - and opening brackets.
function M.title_words(s)
  return (gsub(s, "[^%s%-({%[<]+", M.capitalize))
end

function M.capitalize(s)
  local first = s == "" and "" or char_at(s, 1)
  return M.upper(first) .. M.lower(sub(s, #first + 1))
end

-- The UTF-8 of a code point, and the code point of a character.
function M.encode(code)
  if code < 0x80 then return string.char(code) end
  if code < 0x800 then
    return string.char(0xc0 + bit.rshift(code, 6), 0x80 + code % 64)
  end
  if code < 0x10000 then
    return string.char(0xe0 + bit.rshift(code, 12), 0x80 + bit.rshift(code, 6) % 64,
      0x80 + code % 64)
  end
  return string.char(0xf0 + bit.rshift(code, 18), 0x80 + bit.rshift(code, 12) % 64,
    0x80 + bit.rshift(code, 6) % 64, 0x80 + code % 64)
end

function M.code(c)
  local a, b, d, e = byte(c, 1, 4)
  if not b then return a end
  if not d then return (a - 0xc0) * 64 + b - 0x80 end
  if not e then return ((a - 0xe0) * 64 + b - 0x80) * 64 + d - 0x80 end
  return (((a - 0xf0) * 64 + b - 0x80) * 64 + d - 0x80) * 64 + e - 0x80
end

return M
