-- SPDX-License-Identifier: Apache-2.0
-- recipe/lines.lua - on which line of a recipe a key is given its value.
--
-- Lua does not say where a table's field came from, so the text is read for it: a small
-- lexer that knows strings and comments, and a stack of the braces around. It sees
--
--     key = value          in a constructor, a `local`, or an assignment
--     ["key"] = value
--     some.where.key = value
--
-- It does not run the code. A key that is computed has no line; of two places that give
-- one path a value, the later is reported. Then a message names the file alone, or a line
-- near by: it is a help to the reader, nothing depends on it.

local function end_of(text, pattern, at, plain)
  return select(2, text:find(pattern, at, plain))
end

-- Where a long bracket that `pattern` opens at `at` ends, or nil: there is none.
local function long(text, pattern, at)
  local level = text:match(pattern, at)
  return level and (end_of(text, "]" .. level .. "]", at, true) or #text)
end

-- Reads one token at `at`: its kind, text, and where the next begins. Newlines are inside
-- blanks, comments and strings only, and are counted by the caller.
local function token(text, at)
  local to = end_of(text, "^%s+", at) or long(text, "^%-%-%[(=*)%[", at)
             or end_of(text, "^%-%-[^\n]*", at)
  if to then return "blank", nil, to + 1 end
  to = end_of(text, "^[%a_][%w_]*", at)
  if to then return "name", text:sub(at, to), to + 1 end
  to = long(text, "^%[(=*)%[", at)
  if to then return "string", "", to + 1 end
  local quote = text:match("^[\"']", at)
  if quote then
    local stop = at + 1
    while stop <= #text and text:sub(stop, stop) ~= quote do
      stop = stop + (text:sub(stop, stop) == "\\" and 2 or 1)
    end
    return "string", text:sub(at + 1, stop - 1), stop + 1
  end
  to = end_of(text, "^[=~<>]=", at) or end_of(text, "^%d[%w%.]*", at) or at
  return "other", text:sub(at, to), to + 1
end

local function tokens(text)
  local out, at, line = {}, 1, 1
  while at <= #text do
    local kind, word, after = token(text, at)
    if kind ~= "blank" then out[#out + 1] = { kind = kind, word = word, line = line } end
    for _ in text:sub(at, after - 1):gmatch "\n" do line = line + 1 end
    at = after
  end
  return out
end

-- The key that ends at token i, just before an `=`: a list of names, and where it stands.
local function key_before(list, i)
  local t = list[i]
  if not t then return nil end
  if t.word == "]" and t.kind == "other" then
    local s, open = list[i - 1], list[i - 2]
    if s and s.kind == "string" and open and open.word == "[" then
      return { s.word }, s.line
    end
    return nil
  end
  if t.kind ~= "name" then return nil end
  local names = { t.word }
  while list[i - 1] and list[i - 1].word == "." and list[i - 2].kind == "name" do
    table.insert(names, 1, list[i - 2].word)
    i = i - 2
  end
  return names, t.line
end

local function is(t, word)
  return t and t.kind == "other" and t.word == word
end

-- Notes a path whole, and by each of its ends: in `local w = { count = 2 }` the path is
-- w.count, and whoever looks for worker.count still finds `count`.
local function note(index, stack, names, line)
  local path = {}
  for _, name in ipairs(stack) do
    if name then path[#path + 1] = name end
  end
  for _, name in ipairs(names) do path[#path + 1] = name end
  index.whole[table.concat(path, ".")] = line
  for from = 2, #path do
    index.ends[table.concat(path, ".", from)] = line
  end
end

local function scan(text)
  local index, stack, list = { whole = {}, ends = {} }, {}, tokens(text)
  for i, t in ipairs(list) do
    if is(t, "=") then
      local names, line = key_before(list, i - 1)
      if names then note(index, stack, names, line) end
    elseif is(t, "{") then
      local names = is(list[i - 1], "=") and key_before(list, i - 2)
      stack[#stack + 1] = names and table.concat(names, ".") or false
    elseif is(t, "}") then
      stack[#stack] = nil
    end
  end
  return index
end

-- A function: the line of a path such as "worker.count", or nil.
return function(text)
  local index = scan(text)
  return function(path)
    local last = path:match "[^.]*$"
    return index.whole[path] or index.ends[path] or index.ends[last] or index.whole[last]
  end
end
