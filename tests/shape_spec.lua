-- SPDX-License-Identifier: Apache-2.0
-- The rules of the design that a machine can check (tests/shape.lua), on this tree; and
-- that each of them can fail.
local mutate = require "mutants.mutate"
local process = require "support.process"
local shape = require "shape"

local function read(file)
  local f = assert(io.open(file, "rb"))
  local text = f:read "*a"
  f:close()
  return text
end

-- The files below `folders` whose names end in one of `kinds` ("" takes every name).
local function find(folders, kinds)
  local out = {}
  local pipe = io.popen("find " .. folders .. " -type f 2>/dev/null | LC_ALL=C sort")
  for file in pipe:lines() do
    for kind in kinds:gmatch "%S+" do
      if file:sub(-#kind) == kind then out[#out + 1] = file; break end
    end
  end
  pipe:close()
  return out
end

local function broken(rule, files)
  local bad = {}
  for _, file in ipairs(files) do
    for _, message in ipairs(rule(file, read(file))) do bad[#bad + 1] = message end
  end
  return table.concat(bad, "\n")
end

local c_files = find("core kernels tests", ".c .h .cu")
local lua_files = find("lua recipes bench examples", ".lua")
local code = find(
  "core kernels lua recipes examples bench tests .ci dev CMakeLists.txt",
  ".c .h .cu .lua .py .cmake CMakeLists.txt run dev")
local shipped = find("core kernels lua recipes", ".c .h .cu .lua .md .cmake")

describe("the tree", function()
  it("was found", function()
    assert.is_true(#c_files > 5 and #lua_files > 1 and #code > 10)
  end)

  local rules = {
    { "includes only downwards", shape.includes, find("core kernels", ".c .h") },
    { "requires only downwards", shape.requires, find("lua", ".lua") },
    { "keeps files short", shape.file_length, code },
    { "keeps C functions short", shape.c_function_length, c_files },
    { "keeps Lua functions short", shape.lua_function_length, lua_files },
    { "declares to the FFI in one place", shape.one_cdef, lua_files },
    { "knows Lua in one C file", shape.no_lua_h, c_files },
    { "locks in base alone", shape.no_locks, find("core kernels", ".c .h") },
    { "names its licence", shape.licence, code },
    { "has no paths of one machine", shape.no_machine_paths, code },
    { "has no leftovers", shape.no_leftovers, shipped },
  }
  for _, rule in ipairs(rules) do
    it(rule[1], function() assert.equal("", broken(rule[2], rule[3])) end)
  end

  it("has the text that each mutant replaces, and the specs that must find it", function()
    for _, row in ipairs(require "mutants.list") do
      assert(mutate.apply(row))
      for _, spec in ipairs(row.specs) do read(spec) end
    end
  end)

  it("uses symbols only downwards", function()
    local build = process.own_path():match "^(.*)/[^/]*$" or "."
    -- By source, for a build keeps the objects of files that are no more.
    local pipe = io.popen(("for f in core/*.c; do nm -A -g '%s'/CMakeFiles/core.dir/$f.o; done 2>&1")
      :format(build))
    local said = pipe:read "*a"
    pipe:close()
    assert.truthy(said:find(" T pl_kv_open", 1, true), said:sub(1, 500))
    assert.same({}, shape.symbols(said))
  end)

  it("is clean for luacheck", function()
    if os.execute "command -v luacheck >/dev/null" ~= 0 then
      return pending "luacheck is not installed"
    end
    local pipe = io.popen "luacheck -q --no-color --formatter plain . 2>&1"
    local said = pipe:read "*a"
    pipe:close()
    assert.equal("", said)
  end)
end)

-- One bad snippet per rule and what is said of it; and good ones that look bad.
describe("a rule", function()
  local function lines_of(n, line) return (line .. "\n"):rep(n) end

  it("refuses an include that goes up, sideways or nowhere known", function()
    assert.same({ "core/kv.c:2: 'kv' may not include 'engine.h': includes go down" },
      shape.includes("core/kv.c", '#include "kv.h"\n#include "engine.h"\n'))
    assert.same(
      { "core/kv_lru.c:1: 'kv_lru' may not include 'model.h': includes go down" },
      shape.includes("core/kv_lru.c", '#include "model.h"\n'))
    assert.same({ "core/odd.c:1: module 'odd' has no line in tests/shape.lua" },
      shape.includes("core/odd.c", ""))
    assert.same(
      { "kernels/cpu/x.c:1: a kernel may include device.h and below, not 'model.h'" },
      shape.includes("kernels/cpu/x.c", '#include "model.h"\n'))
  end)

  it("lets an include go down, or to its own module", function()
    assert.same({},
      shape.includes("core/kv_lru.c", '#include "kv.h"\n#include "base.h"\n'))
    assert.same({}, shape.includes("core/engine.c",
      '#include "model.h"\n#include "perilune.h"\n#include <uv.h>\n'))
    assert.same({},
      shape.includes("kernels/cpu/x.c", '#include "device.h"\n#include "cpu.h"\n'))
  end)

  it("refuses a Lua module from a folder above", function()
    assert.same({ "lua/perilune/model/load.lua:2: 'perilune.api.serve' is above 'model'" },
      shape.requires("lua/perilune/model/load.lua",
        'local log = require "perilune.log"\nlocal serve = require "perilune.api.serve"\n'))
    assert.same({ "lua/perilune/flow.lua:1: 'perilune.watch.steps' is above ''" },
      shape.requires("lua/perilune/flow.lua", 'local s = require "perilune.watch.steps"'))
    assert.same({ "lua/perilune/watch/steps.lua:1: 'perilune' is above 'watch'" },
      shape.requires("lua/perilune/watch/steps.lua", 'local pl = require("perilune")'))
    assert.same({ "lua/perilune/attic/x.lua:1: folder 'attic' has no place in tests/shape.lua" },
      shape.requires("lua/perilune/attic/x.lua", ""))
    assert.same({}, shape.requires("lua/perilune/api/serve.lua",
      'require "perilune.fleet.line"\nrequire "perilune"\nrequire "perilune.api.answer"\n'
        .. 'require "perilune.flow"\n'))
  end)

  it("refuses a symbol that is above or beside", function()
    local function nm(...)
      local out = {}
      for i, line in ipairs { ... } do out[i] = "b/core/" .. line .. "\n" end
      return table.concat(out)
    end
    local defined = { "kv_hash.c.o:00a0 T pl_kv_x", "engine.c.o:00a0 T pl_engine_x",
      "model.c.o:0010 D pl_model_x", "base.c.o:0000 T pl_alloc" }
    defined = nm(unpack(defined))
    assert.same({ "core/kv.c: 'kv' may not use pl_engine_x of 'engine': calls go down",
      "core/kv.c: 'kv' may not use pl_model_x of 'model': calls go down" },
      shape.symbols(nm("kv.c.o:         U pl_engine_x", "kv.c.o: U pl_model_x") .. defined))
    assert.same({}, shape.symbols(nm("engine.c.o:         U pl_kv_x",
      "kv.c.o:                 U pl_kv_x", "kv.c.o:         U pl_alloc",
      "kv.c.o:         U strlen", "log.c.o:         U pl_alloc") .. defined))
  end)

  it("counts the lines of files by their kind", function()
    assert.same({ "recipes/x.lua:41: 41 lines, at most 40" },
      shape.file_length("recipes/x.lua", lines_of(41, "x")))
    assert.same({}, shape.file_length("recipes/x.lua", lines_of(40, "x")))
    assert.equal(1, #shape.file_length("core/x.h", lines_of(151, "x")))
    assert.equal(1, #shape.file_length("core/x.c", lines_of(801, "x")))
    assert.equal(1, #shape.file_length("lua/perilune/x.lua", lines_of(401, "x")))
    assert.equal(1, #shape.file_length("core/perilune/x.h", lines_of(151, "x")))
  end)

  it("measures C functions and nothing else", function()
    local long = "static int f(int a)\n{\n" .. lines_of(59, "a++;") .. "}\n"
    assert.same({ "core/x.c:2: function of 61 lines, at most 60" },
      shape.c_function_length("core/x.c", long))
    assert.same({}, shape.c_function_length("core/x.c", (long:gsub("a%+%+;\n", "", 1))))
    assert.same({}, shape.c_function_length("core/x.c",
      "static const int t[] = {\n" .. lines_of(90, "1,") .. "};\n"))
    assert.same({}, shape.c_function_length("core/x.c",
      "#define F(x) \\\n  do { \\\n  { \\\n  x\n"
      .. "/* { */ char c = '{', *s = \"\\\"{\";\nint g(void) { return 0; }\n"))
    assert.same({ "core/x.c:3: braces do not match" },
      shape.c_function_length("core/x.c", "int f(void)\n{\n"))
  end)

  it("measures Lua functions and nothing else", function()
    local long = "local function f()\n" .. lines_of(39, "x = 1") .. "end\n"
    assert.same({ "lua/x.lua:1: function of 41 lines, at most 40" },
      shape.lua_function_length("lua/x.lua", long))
    assert.same({}, shape.lua_function_length("lua/x.lua", (long:gsub("x = 1\n", "", 1))))
    local inner = "do\n" .. long .. "for i = 1, 2 do if i then end end\n"
      .. "while x do repeat until y end\nend\n"
    assert.same({ "lua/x.lua:2: function of 41 lines, at most 40" },
      shape.lua_function_length("lua/x.lua", inner))
    assert.same({}, shape.lua_function_length("lua/x.lua",
      'local s = "function" -- if\n'
      .. "local t = [[ do ]] --[[ repeat\n]] local bend, ifs = 1, 2\n"))
    assert.same({ "lua/x.lua:1: 'if' is not closed" },
      shape.lua_function_length("lua/x.lua", "if x then\n"))
    assert.same({ "lua/x.lua:2: 'end' closes nothing" },
      shape.lua_function_length("lua/x.lua", "\nend\n"))
  end)

  it("finds a second cdef, lua.h and locks", function()
    assert.same(
      { "lua/perilune/x.lua:2: 'cdef': only lua/perilune/ffi.lua declares and loads" },
      shape.one_cdef("lua/perilune/x.lua", '-- ffi.cdef\nffi.cdef "int x;"\n'))
    assert.same({}, shape.one_cdef("lua/perilune/ffi.lua", 'ffi.cdef "int x;"\n'))
    assert.same({ "core/x.c:1: 'lua.h': only core/main.c knows Lua" },
      shape.no_lua_h("core/x.c", "#include <lua.h>\n"))
    assert.equal(1, #shape.no_lua_h("core/x.c", "#include <lauxlib.h>\n"))
    assert.equal(1, #shape.no_lua_h("core/x.c", "#include <luajit.h>\n"))
    assert.same({ "core/kv.c:2: 'pthread_mutex_lock': only base locks" },
      shape.no_locks("core/kv.c", "/* pthread_mutex_t */\npthread_mutex_lock(&m);\n"))
    assert.same({}, shape.no_locks("core/base.c", "pthread_mutex_lock(&m);\n"))
  end)

  it("finds what should not be left in a file", function()
    assert.same({ "core/x.c:2: 'TO" .. "DO': finish it or file it" },
      shape.no_leftovers("core/x.c", "\n/* TO" .. "DO: all */\n"))
    assert.same({ "dev:1: '/ro" .. "ot/x': a path of one machine" },
      shape.no_machine_paths("dev", "cd /ro" .. "ot/x\n"))
    assert.same({ "core/x.c:1: no SPDX-License-Identifier in the first three lines" },
      shape.licence("core/x.c", "int x;\n"))
  end)
end)
