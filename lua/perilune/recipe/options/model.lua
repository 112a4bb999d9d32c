-- SPDX-License-Identifier: Apache-2.0
-- recipe/options/model.lua - the model, and what requests get by default. schema.lua
-- explains the rows.

local machine = require "perilune.recipe.machine"

return {
  section = "top",
  { "model", machine.fetched_model,
    "a GGUF file, a folder with config.json and safetensors, or Org/Name",
    kind = "string", env = { "PERILUNE_MODEL" },
    unset = "the model that ./dev run downloaded" },
  { "served_model_name", nil, "names for requests; answers contain the first",
    kind = "strings", unset = "the name of the model's file or folder" },
  { "tokenizer", nil, "folder with tokenizer.json, if it is not with the model",
    kind = "string", unset = "the model's own" },
  { "chat_template", nil, "a Jinja file, or the template itself",
    kind = "string", unset = "the model's own" },
  { "generation_config", "auto",
    "sampling defaults: auto (generation_config.json next to the model), vllm (none), "
    .. "or a folder that contains one" },
  { "override_generation_config", {},
    "sampling defaults that override generation_config" },
  { "hf_overrides", {}, "values that override the model's config.json" },
  { "max_logprobs", 20, "most logprobs a request may ask for; -1: no limit",
    min = -1, live = true },
}
