-- SPDX-License-Identifier: Apache-2.0
-- model/load.lua - what a model is: found by name, described from its files, loaded.
--
--   local path = model.resolve "Qwen/Qwen3-0.6B"
--   local desc = model.describe(path)         reads headers only
--   local m, files = model.load(desc, device)
--   ...
--   model.close(m, files)
--
-- Each returns nil, message, name where it refuses.

local F = require "perilune.model.fields"
local config = require "perilune.model.config"
local generation = require "perilune.model.generation"
local gguf = require "perilune.model.gguf"
local machine = require "perilune.recipe.machine"
local parts = require "perilune.model.parts"
local pl = require "perilune.ffi"
local tensors = require "perilune.model.tensors"

local ffi = pl.ffi

local M = {}

-- ---- finding -------------------------------------------------------------------------

local function cache_folder(getenv)
  local function env(name)
    local value = getenv(name)
    return value ~= "" and value or nil
  end
  local home = env "HOME" or ""
  local folder = env "HF_HUB_CACHE" or env "HF_HOME" and env "HF_HOME" .. "/hub"
                 or (env "XDG_CACHE_HOME" or home .. "/.cache") .. "/huggingface/hub"
  return (folder:gsub("^~", home))
end

-- Names become paths: nothing that could lead elsewhere.
local function is_plain(text)
  return text:find "^[%w._/-]+$" and not text:find("..", 1, true)
end

-- org/name, or name alone; org/name/x.gguf.
local function is_hub_name(name)
  if not is_plain(name) or name:find "^[/.]" or name:find "//" then return false end
  if name:find "%.gguf$" then return name:find "^[^/]+/[^/]+/." ~= nil end
  return name:find "^[^/]+$" ~= nil or name:find "^[^/]+/[^/]+$" ~= nil
end

-- The folder in the hub's cache of a repository's files, which need not be there.
local function snapshot_of(repo, folder, opts)
  repo = folder .. "/models--" .. repo:gsub("/", "--")
  local revision = opts.revision or "main"
  local ref = repo .. "/refs/" .. revision
  if F.kind_of(ref) == "file" then
    revision = F.read_text(ref, 256):match "^%s*(.-)%s*$"
  end
  return is_plain(revision) and repo .. "/snapshots/" .. revision or nil
end

-- What a name means: a repository of the hub in its local cache, one GGUF file of it
-- (org/name/x.gguf), or a model that was fetched here.
local function find_named(name, opts)
  local getenv = opts.getenv or os.getenv
  local fetched = ("%s/%s.gguf"):format(machine.cache_folder(getenv), name)
  if F.kind_of(fetched) == "file" then return fetched end
  local folder = cache_folder(getenv)
  local repo, file = name:match "^([^/]+/[^/]+)/(.+)$"
  local path = snapshot_of(repo or name, folder, opts)
  if path and F.kind_of(path .. "/" .. (file or "config.json")) then
    return file and parts.first(path .. "/" .. file) or path
  end
  if not file and path and F.kind_of(path) == "folder" then
    return parts.in_folder(path) or F.refuse("PL_ENOTFOUND",
      "'%s' holds neither a config.json nor a .gguf file", path)
  end
  F.refuse("PL_ENOTFOUND", "'%s' is not a folder with a config.json or a .gguf file, and "
           .. "not in '%s'; to get it: hf download %s", name, folder,
           file and repo .. " " .. file or name)
end

local function resolve(name, opts)
  local kind = F.kind_of(name)
  local path = #name > 1 and name:gsub("/+$", "") or name
  if kind == "file" then return parts.first(path) end
  if F.kind_of(path .. "/config.json") == "file" then return path end
  local first = kind == "folder" and parts.in_folder(path)
  if first then return first end
  if is_hub_name(name) then return find_named(name, opts) end
  if kind == "folder" then
    F.refuse("PL_ENOTFOUND", "'%s' holds neither a config.json nor a .gguf file", name)
  end
  F.refuse("PL_ENOTFOUND", "no model at '%s', wanted a folder, a .gguf file or org/name",
           name)
end

-- A path to a folder or a .gguf file (of a model in parts the first), from such a path, a
-- folder that holds one GGUF model, or a name on the hub (which must be in the local
-- cache). opts: revision; getenv, for the environment.
function M.resolve(name, opts)
  if type(name) ~= "string" then
    error("a model's name is " .. tostring(name) .. ", wanted a string", 2)
  end
  return F.guard(resolve, name, opts or {})
end

-- ---- describing ----------------------------------------------------------------------

local function close_all(files)
  for _, w in ipairs(files) do pl.C.pl_weights_close(w) end
end

local function open_all(paths)
  local files = {}
  for i, path in ipairs(paths) do
    files[i] = pl.C.pl_weights_open(path)
    if files[i] == nil then
      files[i] = nil
      close_all(files)
      local _, why = pl.refusal()
      F.refuse(F.kind_of(paths[i]) and "PL_EFORMAT" or "PL_ENOTFOUND", "%s", why)
    end
  end
  return files
end

local function with_files(paths, act, ...)
  local files = open_all(paths)
  local ok, result = pcall(act, files, ...)
  close_all(files)
  if not ok then error(result, 0) end
  return result
end

-- The name of a model at that path, whether or not the path exists here: org/name for a
-- snapshot in the hub's cache, otherwise the name of the file or folder.
function M.name(path)
  if #path > 1 then path = path:gsub("/+$", "") end
  local org, name = path:match "models%-%-([^/]-)%-%-([^/]+)/snapshots/[^/]+$"
  if org then return org .. "/" .. name end
  return parts.name(path:match "([^/]+)$" or path)
end

-- What the fingerprint says of a model besides its files: the options, in a fixed order.
local function canonical(desc)
  local keys, said = {}, { desc.architecture }
  for key in pairs(desc.options) do keys[#keys + 1] = key end
  table.sort(keys)
  for _, list in ipairs { "dense_layers", "full_layers" } do
    if desc[list] then said[#said + 1] = list .. "=" .. table.concat(desc[list], ",") end
  end
  local factors = desc.rope_factors
  said[#said + 1] = type(factors) == "table" and table.concat(factors, ",") or factors
  for _, key in ipairs(keys) do
    said[#said + 1] = ("%s=%.9g"):format(key, tonumber(desc.options[key]))
  end
  return table.concat(said, "\n")
end

local function fingerprint(desc, files)
  local text = canonical(desc)
  local hash = pl.C.pl_weights_fingerprint(nil, text, #text, 0)
  for _, w in ipairs(files) do hash = pl.C.pl_weights_fingerprint(w, "", 0, hash) end
  return bit.tohex(hash, 16)
end

local function complete(files, desc)
  tensors.check_index(desc, files)
  desc.weight_map = nil
  desc.dtype = desc.dtype or tensors.main_type(files) or "float32"
  desc.max_positions = desc.options.max_positions
  desc.fingerprint = fingerprint(desc, files)
  return desc
end

local function describe_files(files, paths, opts)
  return gguf.describe(paths, files, opts)
end

local function describe(path, opts)
  local desc
  if F.kind_of(path) == "folder" then
    desc = config.describe(path, opts)
    if #desc.files == 0 and opts.load_format ~= "dummy" then
      F.refuse("PL_ENOTFOUND", "no model.safetensors and no model.safetensors.index.json "
               .. "in '%s'", path)
    end
  elseif path:find "%.safetensors$" then
    F.refuse("PL_EUNSUPPORTED", "'%s' lacks a config.json: name the folder that holds "
             .. "both", path)
  elseif next(opts.hf_overrides or {}) then
    F.refuse("PL_EUNSUPPORTED", "hf_overrides change a config.json, '%s' has none", path)
  else
    local paths = parts.paths(path)
    desc = with_files(paths, describe_files, paths, opts)
  end
  desc.path, desc.name = path, M.name(path)
  generation.apply(desc, opts)
  return with_files(desc.files, complete, desc)
end

-- A table of what the model is, from headers alone: path, name, format ("gguf" or "hf"),
-- architecture (as config.json names it), options (of pl_model_options, those a file
-- decides), dense_layers and full_layers (those without experts, or without a window,
-- where others have one), fused (see model/facts.lua), rope_factors (what frequencies
-- are divided by, or the name of the tensor that has it), dtype, max_positions,
-- generation (sampling defaults), eos_ids, bos_id, files, fingerprint.
-- opts: hf_overrides, a table that replaces fields of config.json; generation_config and
-- override_generation_config (see model/generation.lua); max_model_len, on which rope may
-- depend; load_format "dummy" needs no weights.
function M.describe(path, opts)
  return F.guard(describe, path, opts or {})
end

-- ---- loading -------------------------------------------------------------------------

-- What load gives the model: a list of { role, layer, expert, name, shape, tensor }.
-- `files` are open pl_weights in the order of desc.files.
function M.tensors(desc, files)
  return F.guard(tensors.match, desc, files)
end

local function check(status)
  if status >= 0 then return end
  local _, why, name = pl.refusal(status)
  F.refuse(name, "%s", why)
end

local function fill(model, list, progress)
  local done, total = 0, 0
  for _, row in ipairs(list) do total = total + tonumber(row.tensor.bytes) end
  for _, row in ipairs(list) do
    check(pl.C.pl_model_tensor(model, row.role, row.layer, row.expert, row.tensor))
    done = done + tonumber(row.tensor.bytes)
    if progress and progress(done, total) == false then
      F.refuse("PL_ECANCELED", "the loading was stopped")
    end
  end
end

local activations = { auto = pl.C.PL_ACT_INT8X2, int8x2 = pl.C.PL_ACT_INT8X2,
  int8 = pl.C.PL_ACT_INT8, float32 = pl.C.PL_ACT_FLOAT32 }
local kv_types = { auto = pl.C.PL_KV_INT16, int16 = pl.C.PL_KV_INT16,
  float32 = pl.C.PL_KV_FLOAT32 }

local function choose(opts, key, choices)
  local value = opts[key] or "auto"
  if choices[value] then return choices[value] end
  local words = {}
  for word in pairs(choices) do words[#words + 1] = word end
  table.sort(words)
  F.refuse("PL_EINVAL", "%s is '%s', wanted %s", key, tostring(value),
           table.concat(words, ", "))
end

local function options_of(desc, opts)
  local o = ffi.new("pl_model_options", desc.options)
  o.block_size = opts.block_size or 16
  o.kv_type = choose(opts, "kv_cache_dtype", kv_types)
  o.activations = choose(opts, "activations", activations)
  o.dummy_seed = opts.seed or 0
  return o
end

-- How layers differ from what the options say.
local function set_layers(model, desc)
  local flags = {}
  for _, layer in ipairs(desc.dense_layers or {}) do
    flags[layer] = pl.C.PL_LAYER_DENSE
  end
  for _, layer in ipairs(desc.full_layers or {}) do
    flags[layer] = bit.bor(flags[layer] or 0, pl.C.PL_LAYER_FULL)
  end
  for layer, flag in pairs(flags) do check(pl.C.pl_model_layer(model, layer, flag)) end
end

local function load_onto(files, desc, device, opts)
  local model = pl.C.pl_model_open(device, options_of(desc, opts))
  if model == nil then check(pl.C.pl_error_status()) end
  local ok, why = pcall(function()
    set_layers(model, desc)
    if opts.load_format == "dummy" then
      check(pl.C.pl_model_dummy(model))
    else
      fill(model, tensors.match(desc, files), opts.progress)
    end
    check(pl.C.pl_model_ready(model))
  end)
  if ok then return model end
  pl.C.pl_model_close(model)
  error(why, 0)
end

local function load(desc, device, opts)
  local files = open_all(opts.load_format == "dummy" and {} or desc.files)
  local ok, model = pcall(load_onto, files, desc, device, opts)
  close_all(files)
  if ok then return model end
  error(model, 0)
end

-- The model on the device, ready; its files are closed again, for the device has packed
-- or copied all of it. opts: block_size; kv_cache_dtype and activations as the options of
-- those names; load_format "dummy" with a seed; progress(done, total) in bytes,
-- which stops it by answering false.
function M.load(desc, device, opts)
  return F.guard(load, desc, device, opts or {})
end

return M
