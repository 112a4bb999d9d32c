-- SPDX-License-Identifier: Apache-2.0
-- model/parts.lua - a GGUF model in parts: NAME-00001-of-00003.gguf and so on, of which
-- the first has the metadata.

local F = require "perilune.model.fields"
local pl = require "perilune.ffi"

local C, ffi = pl.C, pl.ffi

local M = {}

local FORM = "%s-%05d-of-%05d.gguf"
local MAX_PARTS = 1024
-- Names of a folder that are looked through.
local MAX_NAMES = 4096

-- The name of a part's set, and how many parts it has; nil where it is no part.
local function set_of(path)
  local name, part, count = path:match "^(.*)%-(%d%d%d%d%d)%-of%-(%d%d%d%d%d)%.gguf$"
  part, count = tonumber(part), tonumber(count)
  if name and part >= 1 and part <= count then return name, count end
end

-- The path of the first part where `path` is one of several; else the path.
function M.first(path)
  local name, count = set_of(path)
  return name and FORM:format(name, 1, count) or path
end

-- A model's name: its file's, without what makes it GGUF or a part.
function M.name(path)
  return (set_of(path) or path:gsub("%.gguf$", ""))
end

-- All parts of the model whose first part is at `path`.
function M.paths(path)
  local name, count = set_of(path)
  if not name then return { path } end
  if count > MAX_PARTS then
    F.refuse("PL_ELIMIT", "'%s' is one of %d parts, wanted at most %d", path, count,
             MAX_PARTS)
  end
  local paths = {}
  for part = 1, count do
    paths[part] = FORM:format(name, part, count)
    if not F.kind_of(paths[part]) then
      F.refuse("PL_ENOTFOUND", "'%s' is missing, part %d of %d", paths[part], part, count)
    end
  end
  return paths
end

-- The first file of the only GGUF model in a folder; nil where there is none.
function M.in_folder(folder)
  local found, models, seen = ffi.new "pl_buf", {}, {}
  C.pl_list_folder(folder, ".gguf", MAX_NAMES, found)
  for path in pl.take(found):gmatch "[^\n]+" do
    local first = M.first(path)
    if not seen[first] then models[#models + 1] = first end
    seen[first] = true
  end
  if #models > 1 then
    F.refuse("PL_EINVAL", "'%s' holds %d GGUF models, wanted the name of one: '%s', '%s'"
             .. (#models > 2 and ", ..." or ""), folder, #models, models[1], models[2])
  end
  return models[1]
end

-- Refuses files that are not the parts, in order, of one model.
function M.check(fields, weights)
  local tensors = 0
  for i, own in ipairs(fields) do
    local count = F.integer(own, "count", 0, 65535, #fields == 1 and 1 or nil)
    if #fields == 1 and count > 1 then
      F.unsupported(own, "count", "1 of a file that is not named NAME-00001-of-"
                    .. ("%05d.gguf"):format(count))
    end
    if #fields > 1 then
      if count ~= #fields then F.wrong(own, "count", #fields .. ", as its name says") end
      if F.integer(own, "no", 0, 65535) ~= i - 1 then
        F.wrong(own, "no", (i - 1) .. ", as its name says")
      end
    end
    tensors = tensors + C.pl_weights_count(weights[i])
  end
  local wanted = F.integer(fields[1], "tensors.count", 0, 2 ^ 31 - 1, tensors)
  if wanted ~= tensors then
    F.wrong(fields[1], "tensors.count", tensors .. ", as there are")
  end
end

return M
