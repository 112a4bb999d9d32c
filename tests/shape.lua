-- SPDX-License-Identifier: Apache-2.0
-- shape.lua - the rules of the design that a machine can check. Each is a function of a
-- file's name and text that returns what is wrong: { "core/kv.c:12: ...", ... }.

local M = {}

-- Inside core an include may go only to a lower line; a module's own header is its own.
M.lines = {
  { "runtime" },
  { "stream", "remote", "fleet", "events", "sim" },
  { "course", "task", "link", "route", "relay" },
  { "xfer" },
  { "engine" },
  { "model", "kv", "http", "upstream", "bus", "wire" },
  { "device", "weights", "text", "loop", "seq" },
  { "step" },
  { "sample", "params", "json", "change", "client", "terminal", "load", "tls" },
  { "base" },
}

-- Files of core that are no module of their own.
local part_of = { about = "base", log = "base", metrics = "base", mathx = "base",
  weight = "sample" }

local line_of = {}
for i, modules in ipairs(M.lines) do
  for _, module in ipairs(modules) do line_of[module] = i end
end

local function module_of(name)
  local word = name:match "^([a-z0-9]+)[_%.]" or name
  return part_of[word] or word
end

local function says(list, file, line, fmt, ...)
  list[#list + 1] = ("%s:%d: " .. fmt):format(file, line, ...)
end

-- The lines of a text, numbered.
local function lines(text)
  local n = 0
  return coroutine.wrap(function()
    for line in (text:gsub("\n$", "") .. "\n"):gmatch "(.-)\n" do
      n = n + 1
      coroutine.yield(n, line)
    end
  end)
end

-- What `pattern` matches replaced by as many line ends as it had.
local function only_newlines(s) return (s:gsub("[^\n]", "")) end

-- C without what is no code: comments, and the insides of strings and characters; without
-- the preprocessor's lines too unless they are asked for. Line numbers stay.
function M.c_code(text, keep_preprocessor)
  local out, at = {}, 1
  while at <= #text do
    local two = text:sub(at, at + 1)
    local one, keep = two:sub(1, 1), ""
    local stop
    if two == "/*" then
      stop = select(2, text:find("*/", at + 2, true))
    elseif two == "//" then
      stop = (text:find("\n", at, true) or #text + 1) - 1
    elseif one == '"' or one == "'" then
      stop = at + 1
      while stop < #text and text:sub(stop, stop) ~= one do
        stop = stop + (text:sub(stop, stop) == "\\" and 2 or 1)
      end
      keep = one .. one
    else
      stop, keep = at, one
    end
    stop = stop or #text
    out[#out + 1] = stop > at and keep .. only_newlines(text:sub(at, stop)) or keep
    at = stop + 1
  end
  local code = table.concat(out)
  if keep_preprocessor then return code end
  code = ("\n" .. code):gsub("\\\n", "\1\n")
  code = code:gsub("(\n[ \t]*#)([^\n]*)", function(_, rest)
    return rest:find("\1", 1, true) and "\n\1" or "\n"
  end)
  -- A line continued by the one above belongs to it.
  local n
  repeat
    code, n = code:gsub("\n\1\n([^\n]*)", function(next_line)
      return next_line:find("\1", 1, true) and "\n\n\1" or "\n\n"
    end)
  until n == 0
  return (code:gsub("\1", ""):sub(2))
end

-- Lua without comments and the insides of strings. Line numbers stay.
function M.lua_code(text)
  local out, at = {}, 1
  while at <= #text do
    local stop, keep
    local dashes, level = text:match("^(%-*)%[(=*)%[", at)
    local one = text:sub(at, at)
    if level and (dashes == "" or dashes == "--") then
      stop = select(2, text:find("]" .. level .. "]", at, true))
      keep = dashes == "" and '""' or ""
    elseif text:sub(at, at + 1) == "--" then
      stop, keep = (text:find("\n", at, true) or #text + 1) - 1, ""
    elseif one == '"' or one == "'" then
      stop, keep = at + 1, '""'
      while stop < #text and text:sub(stop, stop) ~= one do
        stop = stop + (text:sub(stop, stop) == "\\" and 2 or 1)
      end
    else
      stop, keep = at, one
    end
    stop = stop or #text
    out[#out + 1] = stop > at and keep .. only_newlines(text:sub(at, stop)) or keep
    at = stop + 1
  end
  return table.concat(out)
end

local function directory(file) return file:match "^([^/]+)/" or "" end

function M.includes(file, text)
  local bad = {}
  local from = file:match "^core/([^/]+)%.[ch]$"
  local own = from and module_of(from)
  if own and own ~= "main" and own ~= "perilune" and not line_of[own] then
    says(bad, file, 1, "module '%s' has no line in tests/shape.lua", own)
  end
  for n, line in lines(text) do
    local name = line:match '^%s*#%s*include%s*"([^"]+)"'
    local module = name and module_of(name:match "[^/]+$")
    local to = name and line_of[module]
    if from and to and module ~= own and to <= (line_of[own] or 0) then
      says(bad, file, n, "'%s' may not include '%s': includes go down", from, name)
    elseif directory(file) == "kernels" and to and to < line_of.device then
      says(bad, file, n, "a kernel may include device.h and below, not '%s'", name)
    end
  end
  return bad
end

-- The folders of lua/perilune, bottom to top. A file may require its own folder and those
-- before it; a file beside the folders, only others there. `pl` itself, init.lua, is part
-- of recipe.
M.rooms = { "watch", "jinja", "recipe", "model", "fleet", "sim", "api", "console", "tools" }

local room_at = { [""] = 0 }
for i, room in ipairs(M.rooms) do room_at[room] = i end

function M.requires(file, text)
  local bad = {}
  local room = file == "lua/perilune/init.lua" and "recipe"
    or file:match "^lua/perilune/([%w_]+)/" or file:match "^lua/perilune/[^/]+$" and ""
  if not room then return bad end
  if not room_at[room] then
    says(bad, file, 1, "folder '%s' has no place in tests/shape.lua", room)
    return bad
  end
  for n, line in lines(text) do
    local name = line:match 'require%s*%(?%s*"(perilune[%w_.]*)"'
    local to = name and (name == "perilune" and "recipe" or name:match "^perilune%.([%w_]+)%." or "")
    if to and (room_at[to] or math.huge) > room_at[room] then
      says(bad, file, n, "'%s' is above '%s'", name, room)
    end
  end
  return bad
end

-- What `nm -A -g` prints of the objects of core: a symbol must be its own module's or that
-- of one on a lower line.
function M.symbols(text)
  local bad, of, used = {}, {}, {}
  for line in text:gmatch "[^\n]+" do
    local file, kind, name = line:match "([^/:]+)%.o:%s*%x*%s+(%u)%s+(%S+)$"
    local module = file and module_of(file)
    if kind == "U" then
      used[#used + 1] = { file = file, module = module, name = name }
    elseif module then
      of[name] = module
    end
  end
  for _, use in ipairs(used) do
    local to = of[use.name]
    if to and to ~= use.module and line_of[to] <= line_of[use.module] then
      bad[#bad + 1] = ("core/%s: '%s' may not use %s of '%s': calls go down")
        :format(use.file, use.module, use.name, to)
    end
  end
  return bad
end

local function max_lines(file)
  if file:find "^tests/" then return 800 end
  if file:find "%.h$" then return 150 end
  if file:find "^recipes/" then return 40 end
  if file:find "%.lua$" then return 400 end
  return 800
end

function M.file_length(file, text)
  local bad, count, limit = {}, 0, max_lines(file)
  for n in lines(text) do count = n end
  if count > limit then says(bad, file, count, "%d lines, at most %d", count, limit) end
  return bad
end

-- A brace at the outermost level that follows a ')' opens a function's body.
function M.c_function_length(file, text)
  local bad, depth, line, start, last = {}, 0, 1, nil, ""
  for char in M.c_code(text):gmatch "[^ \t\r]" do
    if char == "\n" then
      line = line + 1
    elseif char == "{" then
      if depth == 0 and last == ")" then start = line end
      depth = depth + 1
    elseif char == "}" then
      depth = depth - 1
      if depth == 0 and start and line - start + 1 > 60 then
        says(bad, file, start, "function of %d lines, at most 60", line - start + 1)
      end
      if depth == 0 then start = nil end
    end
    if char ~= "\n" then last = char end
  end
  if depth ~= 0 then says(bad, file, line, "braces do not match") end
  return bad
end

local opens = { ["function"] = true, ["if"] = true, ["do"] = true, ["repeat"] = true }
local closes = { ["end"] = true, ["until"] = true }

function M.lua_function_length(file, text)
  local bad, stack, line = {}, {}, 1
  for space, word in M.lua_code(text):gmatch "([^%a_]*)([%w_]*)" do
    line = line + select(2, space:gsub("\n", ""))
    if opens[word] then
      stack[#stack + 1] = { word = word, line = line }
    elseif closes[word] then
      local top = table.remove(stack)
      local count = top and line - top.line + 1
      if not top then
        says(bad, file, line, "'%s' closes nothing", word)
      elseif top.word == "function" and count > 40 then
        says(bad, file, top.line, "function of %d lines, at most 40", count)
      end
    end
  end
  local last = stack[#stack]
  if last then says(bad, file, last.line, "'%s' is not closed", last.word) end
  return bad
end

-- A rule that some text must not be in a file's code.
local function never(code, patterns, message, allowed)
  return function(file, text)
    local bad = {}
    if allowed and allowed[file] then return bad end
    for n, line in lines(code and code(text, true) or text) do
      for _, pattern in ipairs(patterns) do
        local found = line:match(pattern)
        if found then says(bad, file, n, message, found) end
      end
    end
    return bad
  end
end

M.one_cdef = never(M.lua_code, { "[%.:](cdef)%f[^%w_]", "ffi%.(load)%f[^%w_]" },
  "'%s': only lua/perilune/ffi.lua declares and loads",
  { ["lua/perilune/ffi.lua"] = true })

M.no_lua_h = never(nil, { "#%s*include%s*[<\"](luaj?i?t?%.h)",
  "#%s*include%s*[<\"](lauxlib%.h)", "#%s*include%s*[<\"](lualib%.h)" },
  "'%s': only core/main.c knows Lua",
  { ["core/main.c"] = true, ["tests/fuzz/fuzz_template.c"] = true })

M.no_locks = never(M.c_code, { "pthread_mutex[%w_]*", "pthread_cond[%w_]*",
  "pthread_rwlock[%w_]*", "pthread_spin[%w_]*", "uv_mutex[%w_]*", "uv_cond[%w_]*",
  "mtx_lock", "sem_wait" }, "'%s': only base locks",
  { ["core/base.c"] = true, ["core/base.h"] = true, ["core/metrics.c"] = true })

M.no_machine_paths = never(nil,
  { "/wo" .. "rk/[%w_]*", "/ro" .. "ot/[%w_%.]*", "/ho" .. "me/%l+" },
  "'%s': a path of one machine")

M.no_leftovers = never(nil, { "TO" .. "DO", "FIX" .. "ME" },
  "'%s': finish it or file it")

function M.licence(file, text)
  local bad = {}
  for n, line in lines(text) do
    if line:find("SPDX-License-Identifier: Apache-2.0", 1, true) then return bad end
    if n == 3 then break end
  end
  says(bad, file, 1, "no SPDX-License-Identifier in the first three lines")
  return bad
end

return M
