-- SPDX-License-Identifier: Apache-2.0
-- jinja/lex.lua - a template's text as tokens, spaces trimmed as Jinja does.
--
-- As transformers sets it: trim_blocks (the newline after a block tag or a comment goes),
-- lstrip_blocks (so do the blanks before one that starts its line), the last newline of
-- the text goes. A token is { kind, value, line }; kinds: data, begin and end (value
-- "block" or "variable"), name, string, integer, float, op, eof.

local text = require "perilune.jinja.text"
local byte, find, match, sub = string.byte, string.find, string.match, string.sub

local M = {}

local function fail(line, ...)
  error({ line = line, message = string.format(...) }, 0)
end
M.fail = fail

local escapes = { n = "\n", t = "\t", r = "\r", a = "\a", b = "\b", f = "\f", v = "\v",
  ["\\"] = "\\", ["'"] = "'", ['"'] = '"', ["\n"] = "" }
local hex_len = { x = 2, u = 4, U = 8 }

-- The value of a string literal: Python's escapes; an unknown one stays as it is.
local function unescape(s, line)
  if not find(s, "\\", 1, true) then return s end
  local out, at = {}, 1
  while true do
    local slash = find(s, "\\", at, true)
    out[#out + 1] = sub(s, at, slash and slash - 1)
    if not slash then break end
    local c = sub(s, slash + 1, slash + 1)
    at = slash + 2
    if escapes[c] then
      out[#out + 1] = escapes[c]
    elseif hex_len[c] then
      local digits = match(s, "^%x+", at) or ""
      if #digits < hex_len[c] then fail(line, "a \\%s wants %d digits", c, hex_len[c]) end
      local code = tonumber(sub(digits, 1, hex_len[c]), 16)
      if code > 0x10ffff or code >= 0xd800 and code < 0xe000 then
        fail(line, "no such character: '\\%s%s'", c, sub(digits, 1, hex_len[c]))
      end
      out[#out + 1] = text.encode(code)
      at = at + hex_len[c]
    elseif find(c, "[0-7]") then
      local digits = match(s, "^[0-7][0-7]?[0-7]?", at - 1)
      out[#out + 1] = text.encode(tonumber(digits, 8))
      at = at - 1 + #digits
    else
      out[#out + 1] = "\\" .. c
    end
  end
  return table.concat(out)
end

local function add(L, kind, value)
  local n = L.n + 1
  if n > 200000 then fail(L.line, "more than 200000 tokens") end
  L.n = n
  L[n] = { kind = kind, value = value, line = L.line }
end

-- Moves on to `at`, counting lines. The next line's end is remembered: in a template that
-- is one long line, each token would look for it through all the rest.
local function advance(L, at)
  while L.newline and L.newline < at do
    L.line = L.line + 1
    L.newline = find(L.source, "\n", L.newline + 1, true)
  end
  L.at = at
end

local number_ends = { "^%d[%d_]*%.%d[%d_]*[eE][+-]?%d+", "^%d[%d_]*[eE][+-]?%d+",
  "^%d[%d_]*%.%d[%d_]*" }

-- As Python has it: too large is inf, too small 0. LuaJIT reads no exponent of over nine
-- digits.
local function to_float(s)
  s = s:gsub("_", "")
  local v = tonumber(s)
  if v then return v end
  local zero = not s:match("^[^eE]*"):find "[1-9]" or s:find "[eE]%-"
  return zero and 0 or math.huge
end

local function lex_number(L)
  for _, pattern in ipairs(number_ends) do
    local s = match(L.source, pattern, L.at)
    if s then
      add(L, "float", to_float(s))
      return advance(L, L.at + #s)
    end
  end
  local s = match(L.source, "^0[xX]%x+", L.at) or match(L.source, "^%d[%d_]*", L.at)
  local value = tonumber((s:gsub("_", "")))
  if value >= 2 ^ 53 then fail(L.line, "an integer beyond 2^53: '%s'", s) end
  add(L, "integer", value)
  advance(L, L.at + #s)
end

local function lex_string(L, quote)
  local at = L.at + 1
  while true do
    local stop = find(L.source, "[\\" .. quote .. "]", at)
    if not stop then fail(L.line, "a string without end") end
    if sub(L.source, stop, stop) == quote then
      add(L, "string", unescape(sub(L.source, L.at + 1, stop - 1), L.line))
      return advance(L, stop + 1)
    end
    at = stop + 2
  end
end

local long_ops = { ["=="] = true, ["!="] = true, [">="] = true, ["<="] = true,
  ["//"] = true, ["**"] = true }
local opens = { ["("] = ")", ["["] = "]", ["{"] = "}" }

local function lex_op(L, open)
  local two, one = sub(L.source, L.at, L.at + 1), sub(L.source, L.at, L.at)
  local op = long_ops[two] and two or one
  if not find(op, "^[-+/*%%~%[%](){}=!<>.:|,;]") or op == "!" then
    fail(L.line, "unexpected character '%s'", match(L.source, text.character, L.at) or op)
  end
  if opens[op] then
    open[#open + 1] = opens[op]
  elseif op == ")" or op == "]" or op == "}" then
    if table.remove(open) ~= op then fail(L.line, "unexpected '%s'", op) end
  end
  add(L, "op", op)
  advance(L, L.at + #op)
end

-- The end of a tag at L.at, if it is there: where the text goes on.
local function tag_end(L, kind)
  local close = kind == "variable" and "}}" or "%}"
  local sign = match(L.source, "^[-+]", L.at) or ""
  local at = L.at + #sign
  if sub(L.source, at, at + 1) ~= close then return nil end
  if sign == "+" and kind == "variable" then return nil end
  at = at + 2
  if sign == "-" then return text.skip(L.source, at) end
  local newline = sign == "" and kind == "block" and sub(L.source, at, at) == "\n"
  return newline and at + 1 or at
end

local function lex_tag(L, kind)
  local open, first_line = {}, L.line
  add(L, "begin", kind)
  while true do
    advance(L, text.skip(L.source, L.at))
    local after = #open == 0 and tag_end(L, kind)
    local c = sub(L.source, L.at, L.at)
    if after then
      add(L, "end", kind)
      return advance(L, after)
    elseif c == "" then
      fail(first_line, "a tag without end")
    elseif find(c, "[%a_\128-\255]") then
      local name = match(L.source, "^[%w_\128-\255]+", L.at)
      add(L, "name", name)
      advance(L, L.at + #name)
    elseif find(c, "%d") then
      lex_number(L)
    elseif c == "'" or c == '"' then
      lex_string(L, c)
    else
      lex_op(L, open)
    end
  end
end

-- Text before a tag, as the tag's sign and place leave it.
local function add_data(L, data, sign, is_variable)
  if sign == "-" then
    data = text.rstrip(data)
  elseif sign == "" and not is_variable then
    local line_start = #data + 1
    while line_start > 1 and byte(data, line_start - 1) ~= 10 do
      line_start = line_start - 1
    end
    local starts_line = line_start > 1 or L.at == 1
      or sub(L.source, L.at - 1, L.at - 1) == "\n"
    if starts_line and text.is_white(sub(data, line_start)) then
      data = sub(data, 1, line_start - 1)
    end
  end
  if data ~= "" then add(L, "data", data) end
end

local function lex_comment(L, at)
  local stop = find(L.source, "#}", at, true)
  if not stop then fail(L.line, "a comment without end") end
  local sign = stop > at and match(sub(L.source, stop - 1, stop - 1), "[-+]") or ""
  stop = stop + 2
  if sign == "-" then
    stop = text.skip(L.source, stop)
  elseif sign == "" and sub(L.source, stop, stop) == "\n" then
    stop = stop + 1
  end
  advance(L, stop)
end

local function lex_raw(L, at)
  advance(L, at)
  local start, stop, sign = find(L.source, "{%%([-+]?)%s*endraw%s*[-+]?%%}", at)
  if not start then fail(L.line, "a raw block without end") end
  add_data(L, sub(L.source, at, start - 1), sign, false)
  local last = sub(L.source, stop - 2, stop - 2)
  if last == "-" then
    stop = text.skip(L.source, stop + 1) - 1
  elseif last ~= "+" and sub(L.source, stop + 1, stop + 1) == "\n" then
    stop = stop + 1
  end
  advance(L, stop + 1)
end

-- Text up to the next tag, and that tag.
local function lex_root(L)
  local start = find(L.source, "{[{%%#]", L.at)
  if not start then
    add(L, "data", sub(L.source, L.at))
    return advance(L, #L.source + 1)
  end
  local kind = sub(L.source, start + 1, start + 1)
  local sign = match(L.source, "^[-+]", start + 2) or ""
  add_data(L, sub(L.source, L.at, start - 1), sign, kind == "{")
  advance(L, start)
  local after = start + 2 + #sign
  if kind == "#" then return lex_comment(L, after) end
  if kind == "%" then
    local raw_sign, raw_end = match(L.source, "^%s*raw%s*(%-?)%%}()", after)
    if raw_end then
      return lex_raw(L, raw_sign == "-" and text.skip(L.source, raw_end) or raw_end)
    end
  end
  advance(L, after)
  lex_tag(L, kind == "{" and "variable" or "block")
end

-- The tokens; fails by error { line, message }.
function M.lex(source)
  source = source:gsub("\r\n?", "\n"):gsub("\n$", "")
  local L = { source = source, at = 1, line = 1, n = 0,
    newline = find(source, "\n", 1, true) }
  while L.at <= #source do lex_root(L) end
  add(L, "eof", "")
  return L
end

return M
