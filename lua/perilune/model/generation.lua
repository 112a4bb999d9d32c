-- SPDX-License-Identifier: Apache-2.0
-- model/generation.lua - the defaults that a model brings for sampling, and what ends it.

local F = require "perilune.model.fields"

local M = {}

local max_int = 2 ^ 31 - 1

-- Where generation_config.json is; nil: nowhere.
local function find_file(desc, choice)
  if choice == "vllm" then return nil end
  if choice == "auto" then
    local folder = desc.format == "hf" and desc.path .. "/" or desc.path:match "^.*/"
    local path = (folder or "") .. "generation_config.json"
    return F.kind_of(path) and path or nil
  end
  return F.kind_of(choice) == "file" and choice or choice .. "/generation_config.json"
end

-- What an override may say; of what a model says, the rest is left alone.
local KNOWN = { temperature = true, top_p = true, top_k = true, min_p = true,
  repetition_penalty = true, max_new_tokens = true, eos_token_id = true,
  bos_token_id = true }

local function check_known(overrides)
  for key in pairs(overrides) do
    if not KNOWN[key] then
      local names = {}
      for name in pairs(KNOWN) do names[#names + 1] = name end
      table.sort(names)
      F.refuse("PL_EINVAL", "override_generation_config has '%s', wanted one of %s",
               tostring(key), table.concat(names, ", "))
    end
  end
end

local function read(fields)
  return {
    temperature = F.number(fields, "temperature", 0, 1e6, false) or nil,
    top_p = F.number(fields, "top_p", 1e-9, 1, false) or nil,
    top_k = F.integer(fields, "top_k", -1, max_int, false) or nil,
    min_p = F.number(fields, "min_p", 0, 1, false) or nil,
    repetition_penalty = F.number(fields, "repetition_penalty", 1e-3, 1e3, false)
                         or nil,
    max_new_tokens = F.integer(fields, "max_new_tokens", 1, max_int, false) or nil,
  }
end

-- Fills desc.generation, and puts what generation_config says of ids over what the
-- model's configuration says. opts: generation_config ("auto": the one beside the
-- model, "vllm": none, or a folder), override_generation_config (values laid over it).
function M.apply(desc, opts)
  local path = find_file(desc, opts.generation_config or "auto")
  check_known(opts.override_generation_config or {})
  local values = path and F.read_json(path) or {}
  local file = path or "override_generation_config"
  for key, value in pairs(opts.override_generation_config or {}) do
    values[key] = value
    file = "override_generation_config"
  end
  local fields, vocab = F.of(file, values), desc.options.vocab
  desc.generation = read(fields)
  if F.has(fields, "eos_token_id") then
    desc.eos_ids = F.ids(fields, "eos_token_id", vocab)
  end
  desc.bos_id = F.integer(fields, "bos_token_id", 0, vocab - 1, false) or desc.bos_id
end

return M
