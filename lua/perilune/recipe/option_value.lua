-- SPDX-License-Identifier: Apache-2.0
-- recipe/option_value.lua - the value of one option: is it right, what does a word mean,
-- how it looks.
--
-- A row says what it wants: `kind` (string, integer, number, boolean, strings, table),
-- and perhaps `min`, `max`, `choices` or `like` (of a string), `words` (a number's other
-- values).
-- Recipes, flags and environment all end here, so a value is refused in the same words
-- wherever it comes from.

local json = require "cjson.safe"

local M = {}

local LARGEST = 2 ^ 53                      -- beyond it a Lua number skips integers

-- "64", "1k" = 1000, "25.6k" = 25600, "1K" = 1024: as vLLM's users write them.
local DECIMAL = { k = 1e3, m = 1e6, g = 1e9, t = 1e12 }
local BINARY = { K = 2 ^ 10, M = 2 ^ 20, G = 2 ^ 30, T = 2 ^ 40 }

function M.integer(text)
  local digits, fraction, suffix = text:match "^([+-]?%d+)(%.?%d*)([kmgtKMGT]?)$"
  if not digits then return nil end
  local scale = DECIMAL[suffix]
  if fraction ~= "" and not (scale and fraction:match "^%.%d+$") then return nil end
  -- 25.6 * 1000 is not exactly 25600 in binary: round, if that is what was meant.
  local n = tonumber(digits .. fraction) * (scale or BINARY[suffix] or 1)
  local whole = math.floor(n + 0.5)
  if math.abs(n - whole) > 1e-6 or math.abs(whole) > LARGEST then return nil end
  return whole
end

local function contains(list, v)
  for _, item in ipairs(list) do
    if item == v then return true end
  end
  return false
end

local function quoted(list)
  local out = {}
  for i, item in ipairs(list) do out[i] = "'" .. item .. "'" end
  return table.concat(out, ", ")
end

local NOUNS = {
  string = "a string", integer = "an integer", number = "a number",
  boolean = "true or false", strings = "a string or a list of strings",
  table = "a table (a JSON object)",
}

-- What a row wants: "an integer from 1 to 65535", "one of 'fcfs', 'priority'".
function M.wants(row)
  if row.choices then return "one of " .. quoted(row.choices) end
  if row.wants then return row.wants end
  local text = NOUNS[row.kind]
  if row.min and row.min == row.max then return M.show(row.min) end
  if row.min and row.max then
    text = ("%s from %s to %s"):format(text, M.show(row.min), M.show(row.max))
  elseif row.min then
    text = ("%s, at least %s"):format(text, M.show(row.min))
  elseif row.max then
    text = ("%s, at most %s"):format(text, M.show(row.max))
  end
  if row.words then text = text .. ", or " .. quoted(row.words) end
  if row.urls then text = text .. ", or a list of URLs" end
  return text
end

local function number_in_range(row, v)
  if v ~= v or (row.min and v < row.min) or (row.max and v > row.max) then return nil end
  return v
end

local function list_of_strings(v)
  if type(v) == "string" then return { v } end
  if type(v) ~= "table" then return nil end
  local n, out = 0, {}
  for _ in pairs(v) do n = n + 1 end
  for i = 1, n do
    if type(v[i]) ~= "string" then return nil end
    out[i] = v[i]
  end
  return out
end

local function list_of_urls(v)
  local list = list_of_strings(v)
  for _, url in ipairs(list or {}) do
    if not url:find "^%w+://." then return nil end
  end
  return list and list[1] and list or nil
end

local CHECKS = {
  string = function(row, v)
    if type(v) ~= "string" or (row.like and not v:find(row.like)) then return nil end
    return (not row.choices or contains(row.choices, v)) and v or nil
  end,
  integer = function(row, v)
    if type(v) == "string" then v = M.integer(v) or v end
    if row.words and contains(row.words, v) then return v end
    if type(v) ~= "number" or v % 1 ~= 0 or math.abs(v) > LARGEST then return nil end
    return number_in_range(row, v)
  end,
  number = function(row, v)
    if row.words and contains(row.words, v) then return v end
    return type(v) == "number" and number_in_range(row, v) or nil
  end,
  boolean = function(row, v)
    if type(v) == "boolean" then return v end
    return row.urls and list_of_urls(v) or nil
  end,
  strings = function(_, v) return list_of_strings(v) end,
  table = function(_, v) return type(v) == "table" and v or nil end,
}

-- The value as the row's kind has it, or nil and what was wanted instead.
function M.check(row, v)
  local good = CHECKS[row.kind](row, v)
  if good == nil then
    return nil, ("is %s; it wants %s"):format(M.show(v, true), M.wants(row))
  end
  return good
end

local YES = { ["true"] = true, ["1"] = true, yes = true, on = true }
local NO = { ["false"] = true, ["0"] = true, no = true, off = true }

local function parse_json(text, first)
  if not text:match("^%s*%" .. first) then return nil end
  return (json.decode(text))
end

local PARSERS = {
  number = function(text) return M.integer(text) or tonumber(text) end,
  boolean = function(text)
    local word = text:lower()
    if YES[word] then return true end
    if NO[word] then return false end
    return nil
  end,
  strings = function(text) return parse_json(text, "[") or { text } end,
  table = function(text) return parse_json(text, "{") end,
}

-- The value that a word of the command line or the environment means.
function M.parse(row, text)
  local parser = PARSERS[row.kind]
  local v = text
  if parser then v = parser(text) end
  if v == nil and row.urls then v = parse_json(text, "[") end
  if v == nil then v = text end
  return M.check(row, v)
end

-- What the environment says of an option: the value and its variable; nil where it says
-- nothing. problem(text) is told of a variable that is no good, and the next one counts.
function M.from_environment(row, getenv, problem)
  for _, name in ipairs(row.env or {}) do
    local text = getenv(name)
    if text and text ~= "" then
      local v, why = M.parse(row, text)
      if v ~= nil then return v, "$" .. name end
      if problem then problem(("$%s %s"):format(name, why)) end
    end
  end
end

local function show_list(v)
  local ok = json.encode(v)
  return ok and ok:gsub("\\/", "/") or "a table"
end

-- As `check` prints it; with `quote`, strings stand in quotes.
function M.show(v, quote)
  local kind = type(v)
  if kind == "string" then return quote and "'" .. v .. "'" or v end
  if kind == "number" then
    local whole = v % 1 == 0 and math.abs(v) <= LARGEST
    return (whole and "%.0f" or "%.14g"):format(v)
  end
  if kind == "table" then return show_list(v) end
  if kind == "function" then return "a function" end
  return tostring(v)
end

-- The same for everybody's eyes: no secret, and no password in an address.
function M.public(row, v)
  if row and row.secret then return "(secret)" end
  local text = M.show(v)
  if row and row.address then text = text:gsub("[^/,]*@", "...@") end
  return text
end

return M
