-- SPDX-License-Identifier: Apache-2.0
-- jinja/str.lua - the methods of str, and the ways to format one.

local json = require "perilune.json"
local text = require "perilune.jinja.text"
local value = require "perilune.jinja.value"
local fail, charge, made, kind = value.fail, value.charge, value.made, value.kind
local null = json.null

local M = {}

-- ---- arguments ----------------------------------------------------------------------

local function want_string(v, what)
  if type(v) ~= "string" then fail("%s wants a str, not a %s", what, kind(v)) end
  return v
end
M.want_string = want_string

-- nil for None and what was not given.
local function optional_string(v, what)
  if v == nil or v == null then return nil end
  return want_string(v, what)
end

-- A count where negative or None means no limit.
local function limit(v, what)
  if v == nil or v == null then return nil end
  local n = value.integer(v, what)
  return n >= 0 and n or nil
end

-- ---- format -------------------------------------------------------------------------

local conversions = {
  s = function(c, v) return value.text(c, v) end,
  r = function(c, v) return value.repr(c, v) end,
}

local function convert(c, spec, letter, v)
  if conversions[letter] then
    return string.format(spec .. "s", conversions[letter](c, v))
  end
  local x = value.number(v)
  if not x then fail("'%s%s' wants a number, not a %s", spec, letter, kind(v)) end
  if letter:find "[dixXo]" then
    x = x < 0 and math.ceil(x) or math.floor(x)
    if not json.is_integer(x) then fail "a number beyond 2^53" end
  end
  return string.format(spec .. letter, x)
end

-- The value that a conversion takes: the next one, or of a dict the one that it names.
local function format_value(args, at, name)
  local v
  if name then
    if kind(args[1]) ~= "dict" then fail("format has no value for '%s'", name) end
    v = args[1][name]
  else
    v = args[at]
  end
  if v == nil then fail("format has no value for '%s'", name or at) end
  return v
end

-- Python's "..." % args, and the filter `format`.
function M.format(c, template, args)
  local out, from, at = {}, 1, 0
  charge(c, #template)
  while true do
    local percent = template:find("%", from, true)
    out[#out + 1] = template:sub(from, percent and percent - 1)
    if not percent then break end
    local name, after = template:match("^%(([^)]*)%)()", percent + 1)
    local spec, letter = template:match("^([-+ 0#]*%d*%.?%d*)(.?)", after or percent + 1)
    from = (after or percent + 1) + #spec + #letter
    if letter == "%" then
      out[#out + 1] = "%"
    else
      local known = spec:find "^[-+ 0#]*%d?%d?$" or spec:find "^[-+ 0#]*%d?%d?%.%d?%d?$"
      if not known or not letter:find "^[srdixXofFeEgG]$" then
        fail("no such format: '%%%s%s'", spec, letter)
      end
      at = at + (name and 0 or 1)
      out[#out + 1] = made(c, convert(c, "%" .. spec, letter == "F" and "f" or letter,
        format_value(args, at, name)))
    end
  end
  if at < #args and kind(args[1]) ~= "dict" then fail "too many values to format" end
  return made(c, table.concat(out))
end

-- "{} {0} {name}".format(...), without conversions and format specifications.
function M.format_fields(c, s, args, named)
  local auto, out, at = 0, {}, 1
  while true do
    local brace = s:find("[{}]", at)
    out[#out + 1] = s:sub(at, brace and brace - 1)
    if not brace then break end
    local field, after = s:match("^{([%w_]*)}()", brace)
    if s:find("^{{", brace) or s:find("^}}", brace) then
      out[#out + 1], after = s:sub(brace, brace), brace + 2
    elseif not field then
      fail("'%s': format takes names and numbers alone in braces", s:sub(brace))
    else
      if field == "" then auto = auto + 1 end
      local v = args[field == "" and auto or (tonumber(field) or -1) + 1]
      if v == nil then v = named and named[field] end
      if v == nil then fail("format has no value for '{%s}'", field) end
      out[#out + 1] = value.text(c, v)
      charge(c, 1 + #out[#out] / 256)
    end
    at = after
  end
  return made(c, table.concat(out))
end

-- ---- str ----------------------------------------------------------------------------

local str = {}
M.methods = str

local function def(name, parameters, call)
  str[name] = { parameters = parameters, call = call }
end

-- Strips and charges for what went.
function M.strip(c, how, s, chars)
  local out = text[how](s, optional_string(chars, how))
  charge(c, (#s - #out) / 8)
  return out
end

for _, name in ipairs { "strip", "lstrip", "rstrip" } do
  def(name, { "chars" }, function(c, s, chars) return M.strip(c, name, s, chars) end)
end

local function splitter(name, right)
  def(name, { "sep", "maxsplit" }, function(c, s, separator, max)
    separator = optional_string(separator, name)
    if separator == "" then fail("%s by nothing", name) end
    if separator then value.search(c, s, separator) end
    charge(c, separator and text.count(s, separator) or #s / 8)
    return value.list(text.split(s, separator, limit(max, name), right))
  end)
end
splitter("split", false)
splitter("rsplit", true)

local function partition(name, last)
  def(name, { "sep" }, function(c, s, separator)
    if want_string(separator, name) == "" then fail("%s by nothing", name) end
    value.search(c, s, separator)
    local parts = text.split(s, separator, 1, last)
    if parts[2] then return value.tuple { parts[1], separator, parts[2] } end
    return value.tuple(last and { "", "", s } or { s, "", "" })
  end)
end
partition("partition", false)
partition("rpartition", true)

def("splitlines", { "keepends" }, function(c, s, keep)
  charge(c, #s / 8)
  return value.list(text.lines(s, keep ~= nil and value.truth(keep)))
end)

-- What is between two places in s, as the methods of str take them, and how many
-- characters are before it.
local function between(c, s, first, last)
  if first == nil and last == nil then return s, 0 end
  charge(c, #s / 64)
  local function place(v)
    if v ~= nil and v ~= null then return value.integer(v, "a place in a str") end
  end
  first, last = text.bounds(text.length(s), place(first), place(last), 1)
  return text.slice(s, first, math.max(first, last), 1), first
end

local function has_end(name, matches)
  def(name, { "prefix", "start", "end" }, function(c, s, wanted, first, last)
    s = between(c, s, first, last)
    if kind(wanted) ~= "tuple" then return matches(s, want_string(wanted, name)) end
    for _, one in ipairs(wanted) do
      if matches(s, want_string(one, name)) then return true end
    end
    return false
  end)
end
local function starts(s, prefix) return s:sub(1, #prefix) == prefix end
local function ends(s, suffix) return suffix == "" or s:sub(-#suffix) == suffix end
has_end("startswith", starts)
has_end("endswith", ends)

def("removeprefix", { "prefix" }, function(_, s, prefix)
  return starts(s, want_string(prefix, "removeprefix")) and s:sub(#prefix + 1) or s
end)
def("removesuffix", { "suffix" }, function(_, s, suffix)
  return ends(s, want_string(suffix, "removesuffix")) and s:sub(1, #s - #suffix) or s
end)

-- Refuses a result too long before it is made.
function M.replace(c, s, old, new, max)
  old, new = want_string(old, "replace"), want_string(new, "replace")
  value.search(c, s, old)
  local n = text.count(s, old)
  if max and max < n then n = max end
  if #s + n * (#new - #old) > c.max_bytes then
    fail("a string longer than %d bytes", c.max_bytes)
  end
  return made(c, text.replace(s, old, new, max))
end
def("replace", { "old", "new", "count" }, function(c, s, old, new, max)
  return M.replace(c, s, old, new, limit(max, "replace"))
end)

local function finder(name, last, must)
  def(name, { "sub", "start", "end" }, function(c, s, what, from, to)
    local part, before = between(c, s, from, to)
    value.search(c, part, want_string(what, name))
    local at = text.find(part, what, last)
    if not at and must then fail("'%s' is not in the str", what) end
    return at and before + at or -1
  end)
end
finder("find", false, false)
finder("rfind", true, false)
finder("index", false, true)
finder("rindex", true, true)

def("count", { "sub", "start", "end" }, function(c, s, what, first, last)
  s = between(c, s, first, last)
  value.search(c, s, want_string(what, "count"))
  return text.count(s, what)
end)

-- Joins what a value walks.
function M.join(c, separator, v)
  local out = {}
  for i, item in ipairs(value.items(c, v)) do
    out[i] = want_string(item, "join")
  end
  charge(c, #out * (1 + #separator / 256))
  return made(c, table.concat(out, separator))
end
def("join", { "iterable" }, function(c, s, v)
  if v == nil then fail "join wants a list" end
  return M.join(c, s, v)
end)

-- Fills a str up to a width; before(n, width): how many of n characters go before it.
local function padding(name, before)
  def(name, { "width", "fillchar" }, function(c, s, width, fill)
    width, fill = value.integer(width, name), fill or " "
    local n = math.max(width - text.length(s), 0)
    if text.length(want_string(fill, name)) ~= 1 then fail("%s by a character", name) end
    if n * #fill > c.max_bytes then fail("a string longer than %d bytes", c.max_bytes) end
    local left = before(n, width)
    return made(c, fill:rep(left) .. s .. fill:rep(n - left))
  end)
end
padding("ljust", function() return 0 end)
padding("rjust", function(n) return n end)
padding("center", function(n, width) return math.floor(n / 2) + n % 2 * (width % 2) end)
def("zfill", { "width" }, function(c, s, width)
  local sign, digits = s:match "^([-+]?)(.*)$"
  return sign .. str.rjust.call(c, digits, value.integer(width, "zfill") - #sign, "0")
end)

def("upper", {}, function(_, s) return text.upper(s) end)
def("lower", {}, function(_, s) return text.lower(s) end)
def("title", {}, function(_, s) return text.title(s) end)
def("capitalize", {}, function(_, s) return text.capitalize(s) end)

local classes = { isdigit = "^%d+$", isnumeric = "^%d+$", isdecimal = "^%d+$",
  isalpha = "^[%a\128-\255]+$", isalnum = "^[%w\128-\255]+$" }
for name, class in pairs(classes) do
  def(name, {}, function(_, s) return s:find(class) ~= nil end)
end
def("isspace", {}, function(_, s) return text.is_white(s) end)
def("isupper", {}, function(_, s) return s:find "%u" ~= nil and not s:find "%l" end)
def("islower", {}, function(_, s) return s:find "%l" ~= nil and not s:find "%u" end)

return M
