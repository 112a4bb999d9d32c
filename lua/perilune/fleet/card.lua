-- SPDX-License-Identifier: Apache-2.0
-- fleet/card.lua - a model's card as bytes, with its tokenizer: what a frontend elsewhere
-- needs to serve the model, but no weights.
--
-- It is a line of JSON, the head, and the bytes of the files that the head names. Of
-- a Hugging Face folder these are the files of its tokenizer; of a GGUF file it is the
-- part before the weights, which the receiver makes as long as the whole was, with a hole
-- where the weights would be: so a tokenizer is read in one way, here and there.

local pl = require "perilune.ffi"
local json = require "cjson.safe"
local tokenizer = require "perilune.model.tokenizer"
local C = pl.C

local M = {}

local GGUF = "model.gguf"
local MAX_HOLE = 2 ^ 43

local function read(path, max)
  local f = io.open(path, "rb")
  if not f then return nil end
  local bytes = f:read(max or "*a")
  f:close()
  return bytes
end

-- The bytes. `tokenizer_dir`: where its tokenizer is, if not with the model.
function M.encode(card, desc, tokenizer_dir)
  local head, bodies = { card = card, files = {} }, {}
  local function add(name, bytes)
    head.files[#head.files + 1] = { name = name, bytes = #bytes }
    bodies[#bodies + 1] = bytes
  end
  if desc.format == "gguf" and not tokenizer_dir then
    local weights = C.pl_weights_open(desc.path)
    if weights == nil then return pl.refusal(C.PL_EIO) end
    local n = tonumber(C.pl_weights_head(weights))
    head.whole = tonumber(C.pl_weights_size(weights))
    C.pl_weights_close(weights)
    add(GGUF, read(desc.path, n))
  else
    local dir = tokenizer_dir or desc.path
    for _, name in ipairs(tokenizer.files(dir)) do
      local bytes = read(dir .. "/" .. name)
      if bytes then add(name, bytes) end
    end
  end
  return json.encode(head) .. "\n" .. table.concat(bodies)
end

-- The files of a card by their names; or nil and why.
local function files_of(head, bytes, at)
  local files = {}
  for _, file in ipairs(head.files) do
    local n = type(file) == "table" and tonumber(file.bytes)
    if not n or n < 0 or n > #bytes - at + 1 then return nil, "a card cut short" end
    files[tostring(file.name)] = bytes:sub(at, at + n - 1)
    at = at + n
  end
  return files
end

-- The tokenizer in the first part of a GGUF file that had `whole` bytes.
local function from_gguf(bytes, whole)
  if type(whole) ~= "number" or whole < #bytes or whole > MAX_HOLE then
    return nil, "a card whose file has no size"
  end
  local path = os.tmpname()
  local f = io.open(path, "wb")
  if not f then return nil, "no file to be had for a card" end
  f:write(bytes)
  if whole > #bytes then
    f:seek("set", whole - 1)
    f:write "\0"
  end
  f:close()
  local weights = C.pl_weights_open(path)
  os.remove(path)
  if weights == nil then return pl.refusal(C.PL_EFORMAT) end
  local tok, why = tokenizer.from_gguf(weights)
  C.pl_weights_close(weights)
  return tok, why
end

-- What is used of a card, and of what kind it must be.
local KINDS = { names = "table", root = "string", fingerprint = "string",
  vocab = "number", max_model_len = "number", generation = "table", eos_ids = "table" }

local function check(card)
  if type(card) ~= "table" then return nil, "a card that says nothing of its model" end
  for key, kind in pairs(KINDS) do
    if type(card[key]) ~= kind then
      return nil, ("a card whose %s is not a %s"):format(key, kind)
    end
  end
  for _, name in ipairs(card.names) do
    if type(name) ~= "string" then return nil, "a card whose names are no strings" end
  end
  if #card.names == 0 then return nil, "a card without a name" end
  return card
end

-- The card and the tokenizer that are in these bytes; or nil and why.
function M.decode(bytes)
  local line = bytes:match "^[^\n]*"
  local head = json.decode(line)
  if type(head) ~= "table" or type(head.files) ~= "table" then
    return nil, "a card without a head"
  end
  local card, why = check(head.card)
  if not card then return nil, why end
  local files, tok
  files, why = files_of(head, bytes, #line + 2)
  if not files then return nil, why end
  if files[GGUF] then
    tok, why = from_gguf(files[GGUF], head.whole)
  else
    tok, why = tokenizer.from_files(files)
  end
  if not tok then return nil, why end
  return card, tok
end

return M
