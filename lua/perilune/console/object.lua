-- SPDX-License-Identifier: Apache-2.0
-- console/object.lua - what the console's user holds: objects that explain themselves,
-- and how any value is shown.
--
-- What an object is about is kept beside it: it cannot be reached through it.

local json = require "perilune.json"
local lru = require "perilune.lru"

local M = {}

local MOST_BYTES = 64 * 1024
local MOST_ITEMS, MOST_DEPTH, MOST_LINE = 100, 4, 200

local private = setmetatable({}, { __mode = "k" })
local classes = setmetatable({}, { __mode = "k" })
local getmetatable = debug.getmetatable
local format, gsub, match, find, rep = string.format, string.gsub, string.match,
  string.find, string.rep

-- A class: what `spec` says of its objects' data:
--   name, doc         for help
--   methods           name -> function(data, ...)
--   index, assign     of other fields: (data, key), (data, key, value)
--   call              (data, ...)
--   explain, plain    its text; the same for JSON
--   names             (data) a list of what may stand after a dot
-- Answers a function that makes an object of data.
function M.class(spec)
  local methods = {}
  for name, fn in pairs(spec.methods or {}) do
    methods[name] = function(self, ...)
      if not private[self] then
        error(format("call it with a colon: %s:%s(...)", spec.name, name), 2)
      end
      return fn(private[self], ...)
    end
  end
  local meta = { __metatable = false }
  function meta.__index(self, key)
    if methods[key] then return methods[key] end
    if spec.index then return spec.index(private[self], key) end
    error(format("%s has no '%s'", spec.name, tostring(key)), 2)
  end
  function meta.__newindex(self, key, value)
    if not spec.assign then error(spec.name .. " cannot be assigned to", 2) end
    spec.assign(private[self], key, value)
  end
  function meta.__tostring(self) return spec.explain(private[self]) end
  if spec.call then
    function meta.__call(self, ...) return spec.call(private[self], ...) end
  end
  classes[meta] = spec
  return function(data)
    local object = setmetatable({}, meta)
    private[object] = data
    return object
  end
end

-- An object's class and data; nil of any other value.
function M.of(v)
  local spec = type(v) == "table" and classes[getmetatable(v)]
  if spec then return spec, private[v] end
  return nil
end

-- ---- as text --------------------------------------------------------------------------

local function tostring_of(v)
  local ok, text = pcall(tostring, v)
  if ok then return text end
  return format("a value whose __tostring fails: %s", tostring_of(text))
end

local ESCAPES = { ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t", ["\\"] = "\\\\",
  ['"'] = '\\"' }

local function quote(s)
  if #s > MOST_BYTES then s = s:sub(1, MOST_BYTES) .. "..." end
  return '"' .. gsub(s, '[%c\\"]', function(c)
    return ESCAPES[c] or format("\\%d", c:byte())
  end) .. '"'
end

local function number(v)
  if v % 1 == 0 and math.abs(v) < 2 ^ 53 then return format("%.0f", v) end
  return format("%.14g", v)
end

local show

local function by_kind(a, b)
  if type(a) ~= type(b) then return type(a) < type(b) end
  if type(a) == "number" or type(a) == "string" then return a < b end
  return tostring_of(a) < tostring_of(b)
end

local function entries(t)
  local keys = {}
  for key in next, t do
    if not (type(key) == "number" and key >= 1 and key <= #t and key % 1 == 0) then
      keys[#keys + 1] = key
    end
    if #keys > MOST_ITEMS then break end
  end
  table.sort(keys, by_kind)
  return keys
end

local function key_text(key)
  if type(key) == "string" and match(key, "^[%a_][%w_]*$") then return key end
  return "[" .. show(key, MOST_DEPTH) .. "]"
end

local function show_table(t, depth, seen)
  if seen[t] then return "{ itself }" end
  if depth > MOST_DEPTH then return "{ ... }" end
  seen[t] = true
  local parts = {}
  for i = 1, math.min(#t, MOST_ITEMS) do parts[i] = show(t[i], depth + 1, seen) end
  for _, key in ipairs(entries(t)) do
    if #parts >= MOST_ITEMS then break end
    parts[#parts + 1] = key_text(key) .. " = " .. show(rawget(t, key), depth + 1, seen)
  end
  if #t > MOST_ITEMS or #parts >= MOST_ITEMS then parts[#parts + 1] = "..." end
  seen[t] = nil
  if #parts == 0 then return "{}" end
  local line = "{ " .. table.concat(parts, ", ") .. " }"
  if #line <= 78 or depth > 0 then return line end
  return "{\n  " .. table.concat(parts, ",\n  ") .. "\n}"
end

function show(v, depth, seen)
  local kind = type(v)
  if kind == "string" then return quote(v) end
  if kind == "number" then return number(v) end
  if lru.is(v) then v = lru.contents(v) end
  if kind == "table" and not getmetatable(v) then
    return show_table(v, depth, seen or {})
  end
  return tostring_of(v)
end

local function cut(text)
  if #text <= MOST_BYTES then return text end
  local kept = gsub(text:sub(1, MOST_BYTES), "[\192-\255][\128-\191]*$", "")
  return format("%s\n... cut: %d bytes in all, %d are shown", kept, #text, #kept)
end
M.cut = cut

-- A value as it is printed: a string as it is, an object explained.
function M.text(v)
  local spec, data = M.of(v)
  if spec then return spec.explain(data) end
  if type(v) == "string" then return v end
  return show(v, 0)
end

-- The same in a line, with quotes around strings, and cut where it is long.
function M.line(v)
  local text = show(v, 1)
  return #text > MOST_LINE and text:sub(1, MOST_LINE - 3) .. "..." or text
end

-- The same, bounded.
function M.show(v)
  return cut(M.text(v))
end

-- ---- as JSON --------------------------------------------------------------------------

local plain

local function plain_table(t, depth, seen)
  if seen[t] then return "itself" end
  if depth > 2 * MOST_DEPTH then return "..." end
  seen[t] = true
  local out, n, size = {}, 0, 0
  for _ in next, t do size = size + 1 end
  local is_list = #t == size and (size > 0 or getmetatable(t) == json.array_mt)
  for key, v in next, t do
    n = n + 1
    seen.room = seen.room - 16
    if n > 10 * MOST_ITEMS or seen.room < 0 then break end
    out[is_list and key or tostring_of(key)] = plain(v, depth + 1, seen)
  end
  seen[t] = nil
  return is_list and json.array(out) or out
end

function plain(v, depth, seen)
  local spec, data = M.of(v)
  if spec then return plain(spec.plain(data), depth + 1, seen) end
  local kind = type(v)
  if kind == "number" then
    return (v ~= v or v == math.huge or v == -math.huge) and tostring(v) or v
  elseif kind == "string" then
    seen.room = seen.room - #v
    return seen.room >= 0 and cut(v) or "..."
  elseif lru.is(v) then
    return plain_table(lru.contents(v), depth, seen)
  elseif kind == "table" and (not getmetatable(v) or json.is_array(v)) then
    return plain_table(v, depth, seen)
  elseif kind == "boolean" then
    return v
  end
  return cut(tostring_of(v))
end

-- A value as cjson can write it, bounded as its text is.
function M.plain(v)
  return plain(v, 0, { room = 4 * MOST_BYTES })
end

-- ---- tables of text -------------------------------------------------------------------

local function width(s)
  return select(2, gsub(s, "[^\128-\191]", ""))
end

-- Rows of cells, the first of them the head, as lines: columns of numbers to the right.
function M.columns(rows, indent)
  local widths, right = {}, {}
  for r, row in ipairs(rows) do
    for k, text in ipairs(row) do
      widths[k] = math.max(widths[k] or 0, width(text))
      if r > 1 then
        local numeric = text == "-" or find(text, "^%-?[%d.]+[%a%%]*$") ~= nil
        right[k] = right[k] ~= false and numeric
      end
    end
  end
  local lines = {}
  for r, row in ipairs(rows) do
    local cells = {}
    for k, text in ipairs(row) do
      local space = rep(" ", widths[k] - width(text))
      cells[k] = right[k] and space .. text or text .. space
    end
    lines[r] = (indent or "") .. gsub(table.concat(cells, "  "), "%s+$", "")
  end
  return table.concat(lines, "\n")
end

local Listing = M.class {
  name = "a list", doc = "what is printed, line by line; [1] is its first entry",
  methods = { count = function(data) return #data.items end },
  index = function(data, key) return data.items[key] end,
  explain = function(data)
    if #data.items == 0 and data.empty then return data.empty end
    local text = M.columns(data.cells)
    return data.foot and text .. "\n" .. data.foot or text
  end,
  plain = function(data) return json.array(data.json or data.items) end,
}

-- A time, as people read it.
function M.seconds(s)
  if not s then return "-" end
  if s < 1 then return ("%.1fms"):format(s * 1e3) end
  return s < 100 and ("%.2fs"):format(s) or ("%.0fs"):format(s)
end

-- Something that is printed as a table: { cells, items, json, foot, empty }.
function M.listing(data)
  data.items = data.items or {}
  return Listing(data)
end

return M
