-- SPDX-License-Identifier: Apache-2.0
-- weights_files.lua - writes small model files, good ones and bad ones, for the tests.

local ffi = require "ffi"

local M = {}

local made = {}

-- In memory where there is a place for it: some tests write thousands.
local function new_path()
  local path = os.tmpname()
  os.remove(path)
  local inner = "/dev/shm" .. path:match "/[^/]*$"
  local f = io.open(inner, "wb")
  if not f then return path end
  f:close()
  os.remove(inner)
  return inner
end

function M.write(bytes, suffix)
  local path = new_path() .. (suffix or "")
  local f = assert(io.open(path, "wb"))
  f:write(bytes)
  f:close()
  made[#made + 1] = path
  return path
end

-- Makes a folder of files { name = bytes }.
function M.folder(files)
  local path = new_path()
  assert(os.execute("mkdir -p '" .. path .. "'") == 0)
  for name, bytes in pairs(files) do
    assert(os.execute(("mkdir -p '%s/%s'"):format(path, name:match "^(.*)/" or ".")) == 0)
    local f = assert(io.open(path .. "/" .. name, "wb"))
    f:write(bytes)
    f:close()
  end
  made[#made + 1] = path
  return path
end

function M.clean()
  for _, path in ipairs(made) do
    if not os.remove(path) then os.execute("rm -rf '" .. path .. "'") end
  end
  made = {}
end

local function raw(ctype, value)
  return ffi.string(ffi.new(ctype .. "[1]", value), ffi.sizeof(ctype))
end

function M.u32(v) return raw("uint32_t", v) end
function M.u64(v) return raw("uint64_t", v) end

function M.str(s) return M.u64(#s) .. s end

local packers = {
  u8 = { 0, "uint8_t" }, i8 = { 1, "int8_t" }, u16 = { 2, "uint16_t" },
  i16 = { 3, "int16_t" }, u32 = { 4, "uint32_t" }, i32 = { 5, "int32_t" },
  f32 = { 6, "float" }, bool = { 7, "uint8_t" }, str = { 8 }, u64 = { 10, "uint64_t" },
  i64 = { 11, "int64_t" }, f64 = { 12, "double" },
}

local function pack(kind, value)
  if kind == "str" then return M.str(value) end
  return raw(packers[kind][2], value)
end

-- A value of metadata: { key, kind, value }, or { key, kind, { values } } for an array.
function M.meta(row)
  local key, kind, value = row[1], row[2], row[3]
  local id = packers[kind][1]
  if type(value) ~= "table" then return M.str(key) .. M.u32(id) .. pack(kind, value) end
  local items = {}
  for i, item in ipairs(value) do items[i] = pack(kind, item) end
  return M.str(key) .. M.u32(9) .. M.u32(id) .. M.u64(#value) .. table.concat(items)
end

-- { name, { dims, outermost first }, type number, bytes }
local function describe(tensor, offset)
  local dims = {}
  for i, dim in ipairs(tensor[2]) do dims[#tensor[2] + 1 - i] = M.u64(dim) end
  return M.str(tensor[1]) .. M.u32(#dims) .. table.concat(dims) .. M.u32(tensor[3])
         .. M.u64(tensor.offset or offset)
end

local function pad(n, alignment) return ("\0"):rep(-n % alignment) end

function M.gguf(metas, tensors, options)
  options = options or {}
  local alignment = options.alignment or 32
  local head = { "GGUF", M.u32(options.version or 3),
                 M.u64(options.n_tensors or #tensors), M.u64(options.n_metas or #metas) }
  for _, row in ipairs(metas) do head[#head + 1] = M.meta(row) end
  local data, at = {}, 0
  for _, tensor in ipairs(tensors) do
    head[#head + 1] = describe(tensor, at)
    data[#data + 1] = tensor[4] .. pad(#tensor[4], alignment)
    at = at + #data[#data]
  end
  head = table.concat(head)
  return head .. pad(#head, alignment) .. table.concat(data)
end

-- A file with that header; the header's length is its own unless given.
function M.safetensors(header, data, length)
  return M.u64(length or #header) .. header .. data
end

-- A safetensors file of zeros: { name, { dims } } each, all F32.
function M.zeros(tensors)
  local parts, at = {}, 0
  for i, tensor in ipairs(tensors) do
    local bytes = 4
    for _, dim in ipairs(tensor[2]) do bytes = bytes * dim end
    parts[i] = ('"%s":{"dtype":"F32","shape":[%s],"data_offsets":[%d,%d]}'):format(
      tensor[1], table.concat(tensor[2], ","), at, at + bytes)
    at = at + bytes
  end
  local header = "{" .. table.concat(parts, ",") .. "}"
  return M.safetensors(header .. pad(#header, 8):gsub("%z", " "), ("\0"):rep(at))
end

return M
