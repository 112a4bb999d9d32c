-- SPDX-License-Identifier: Apache-2.0
-- vLLM's kv_transfer_config: what of it means something, and what is wrong with it.
local cjson = require "cjson"
local kv_transfer = require "perilune.fleet.kv_transfer"

local function pool(config, policy)
  return { kv_transfer_config = config, kv_load_failure_policy = policy or "recompute" }
end

describe("kv_transfer_config", function()
  it("is vLLM's", function()
    assert.is_true(kv_transfer.check(pool {}))
    local config = cjson.decode [[{"kv_connector":"NixlConnector","kv_role":"kv_both"}]]
    assert.is_true(kv_transfer.check(pool(config)))
    assert.is_false(kv_transfer.fails(pool(config)))
    config = cjson.decode [[{"kv_connector":"NixlConnector","kv_role":"kv_consumer",
      "engine_id":null,"kv_buffer_device":"cpu","kv_parallel_size":2,
      "kv_connector_extra_config":{},"kv_connector_module_path":"x.y","kv_load_failure_policy":"fail"}]]
    assert.is_true(kv_transfer.check(pool(config)))
    assert.is_true(kv_transfer.fails(pool(config)))
  end)

  it("says what becomes of KV that does not come, or the option of that name does", function()
    assert.is_true(kv_transfer.fails(pool({}, "fail")))
    assert.is_false(kv_transfer.fails(pool({ kv_load_failure_policy = "recompute" }, "fail")))
  end)

  it("is refused with what was wanted", function()
    for why, config in pairs {
      ["kv_transfer_config has no field 'kv_rol'; did you mean 'kv_role'?"] = { kv_rol = "x" },
      ["kv_transfer_config: kv_connector is 'LMCacheConnector', wanted 'NixlConnector'"] =
        { kv_connector = "LMCacheConnector" },
      ["kv_transfer_config: kv_role is 'both', wanted 'kv_producer', 'kv_consumer', 'kv_both'"] =
        { kv_connector = "NixlConnector", kv_role = "both" },
      ["kv_transfer_config: kv_port is '1', wanted a number"] = { kv_port = "1" },
      ["kv_transfer_config: kv_role needs kv_connector, 'NixlConnector'"] = { kv_role = "kv_both" },
      ["kv_transfer_config: kv_connector needs kv_role, 'kv_producer', 'kv_consumer', 'kv_both'"] =
        { kv_connector = "NixlConnector" },
    } do
      local ok, said = kv_transfer.check(pool(config))
      assert.is_nil(ok)
      assert.equal(why, said)
    end
  end)
end)
