-- SPDX-License-Identifier: Apache-2.0
-- Names of blocks, against vectors computed with CPython's pickle and hashlib, a
-- canonical CBOR writer and python-xxhash.
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local TEXT = { 151644, 872, 198, 9064, 374, 279, 6722, 315, 5616, 30, 151645, 198, 151644,
  77091, 198, 151667 }
local EDGES = { 0, 23, 24, 255, 256, 65535, 65536, 2147483647 }

local function count(n)
  local t = {}
  for i = 1, n do t[i] = i - 1 end
  return t
end

local function hex(bytes)
  local function pair(c) return ("%02x"):format(c:byte()) end
  local s = ffi.string(bytes, 32):gsub(".", pair)
  return (s:gsub(("0"):rep(32) .. "$", ""))
end

local function none(algo, seed)
  local out = ffi.new "uint8_t[32]"
  assert.equal(0, C.pl_none_hash(algo, seed, out))
  return hex(out)
end

local function block(algo, seed, parent, tokens, salt)
  local out = ffi.new "uint8_t[32]"
  local ids = ffi.new("int32_t[?]", #tokens, tokens)
  local status = C.pl_block_hash(algo, seed, parent, ids, #tokens, salt,
    salt and #salt or 0, out)
  assert.equal(0, status)
  return hex(out), out
end

local function low64(bytes)
  local v = 0ULL
  for i = 24, 31 do v = v * 256 + bytes[i] end
  return v
end

describe("block names", function()
  local chains = {
    { "sha256_cbor", C.PL_HASH_SHA256_CBOR, nil,
      "9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0",
      "a3da5751f73e1ba159753d0b02ef8ecc524830c3051f50c8c910c6b15f1388cf",
      "659fbf58f077961a64652253e7d273a6c1cbc502b2f249771169199c205b0987" },
    { "sha256_cbor, seed 0", C.PL_HASH_SHA256_CBOR, "0",
      "4e1195df020de59e0d65a33a4279f1183e7ae4e5d980e309f8b55adff2e61c3e",
      "01d05b6f65e01869495b2fea10fc39faaf80fd6592bda930d20799bf0f09a40d",
      "2da9166fa107a10ef652a43e0b242c488b0e44f29c514e1dbf915655d37882fe" },
    { "sha256", C.PL_HASH_SHA256, nil,
      "066b1e8987e027138e98701c46128929378935f9b6cd1549105ae6b4f0d71198",
      "4c8b8ef04dd4c7b9fc7b68d54e9d1802691a62193bc83e92b1040467da744816",
      "78ca455664ec03f4f6beb246c174df4165f2906dca6b676892c8832fb3364f60" },
    { "sha256, seed 0", C.PL_HASH_SHA256, "0",
      "1973e23848344dc43a988a9b478663803cfffe1243480253f9a3cf004b14aa7c",
      "933e6a56fd330ed68cf152050850f0418ae4dcd07245b079344e6cd4b3a32cd4",
      "22458651a97e77ffeddd7710013c10d4bd8896b728af134a5f0517bae6b50312" },
    { "xxhash_cbor", C.PL_HASH_XXHASH_CBOR, nil, "a4e364baa0791a6f63bbf917db9b700d",
      "0dfa9f335847671188ef950685542a9d", "dff551c854f44bae460e00481459eb7e" },
    { "xxhash_cbor, seed 0", C.PL_HASH_XXHASH_CBOR, "0",
      "1ebe36576dcb573f26b99533a20aaeca",
      "979043850e5f6005d6f76c49ea5bfac8", "88cdcfb220c62275f6954109e2ba7a41" },
  }
  for _, v in ipairs(chains) do
    it("chains " .. v[1], function()
      assert.equal(v[4], none(v[2], v[3]))
      local first, bytes = block(v[2], v[3], nil, TEXT)
      assert.equal(v[5], first)
      assert.equal(v[6], (block(v[2], v[3], bytes, count(16))))
    end)
  end

  it("have low halves as events show them", function()
    local _, cbor = block(C.PL_HASH_SHA256_CBOR, nil, nil, TEXT)
    assert.equal(14488298466357512399ULL, low64(cbor))
    local _, second = block(C.PL_HASH_SHA256_CBOR, nil, cbor, count(16))
    assert.equal(1254562129547823495ULL, low64(second))
    local _, pickle = block(C.PL_HASH_SHA256, nil, nil, TEXT)
    assert.equal(12755324888713283606ULL, low64(pickle))
  end)

  local odd = {
    { "ints of every width", EDGES, nil,
      "c6f01498d6bdfd373483df00b7895cc293f3a17a5a61e68b65a9105d945c0f09",
      "83b1412ec5e4a6191ad99af2e00d2f5c13e37cb1f8f1d208ef0e34ba3c2df499",
      "3eb1f6cddea6512a8e705db3a823dff7" },
    { "a block of 300", count(300), nil,
      "d7ab9edba6bc3b3e1b0ed93351a4ab55480954fad9dd9381e5cda18bd1a823b2",
      "91de87c113f2cba6c4e1be0d4b5d0e8b3ea8c965d8bbe8192c98006424d3c4b6",
      "8789617a4c697fab7e871e5ee5c2f739" },
    { "a salt", TEXT, "tenant-é",
      "1ccad6a5427a8d86dfde7b6a857128249fe5211f94e2137850a74cde65115367",
      "b483ec708d07d35509caa78fa2ce4b5ae1eb1cf444a6aa4df6570ac6f2a82d61",
      "2c41a34189858a4cc8af87b305903649" },
    { "a long salt", TEXT, ("x"):rep(300),
      "03044b14a4f59ffbb57afe2898caf269d8df1a883c7d82c842894d3dbe569ed8",
      "ed6dbe384be08844daa63eaa8418cb28991afdf7ac40ca8871c78ff91a46ab56",
      "cafd70f38e911ae5e3c003f2dd1e8c50" },
    { "a block of 1", { 5 }, nil,
      "e853e3ee36eca800b7c070084e0d8e3c372b5fb28c286cc30a5796ff62712df3",
      "92b6415c9587c9e2bd70818b16406dc713e7cc19ffa91be533188ee94f328006",
      "e3cd35fad201f424f757b76660cfead3" },
    { "a block of 2", { 5, 300 }, nil,
      "cb2d5c7abc5566b2424a0714d5db7e7b2e71eb2cca7fac170fee40e76721b672",
      "19d5398f9021be5ff0da84f89aa04ec3a95b29cdf7e7d3652eb1185c0b26cfea",
      "810840453bb8e25c7f48f7bb751188de" },
    { "a block of 3", { 5, 300, 70000 }, nil,
      "41a5cf0c97f60ba3443318269241ee2f1036533057fbe01d9348b41cda1bc7c7",
      "e1865743f6e4bfed1cfe543b02a2c24d24fd61a4937cb1d3876ffea51a870325",
      "2eae9527e76a6a9cffe26d04a3d9b55e" },
  }
  for _, v in ipairs(odd) do
    it("know " .. v[1], function()
      assert.equal(v[4], (block(C.PL_HASH_SHA256_CBOR, nil, nil, v[2], v[3])))
      assert.equal(v[5], (block(C.PL_HASH_SHA256, nil, nil, v[2], v[3])))
      assert.equal(v[6], (block(C.PL_HASH_XXHASH_CBOR, nil, nil, v[2], v[3])))
    end)
  end

  it("take the salt in first blocks only", function()
    local _, parent = block(C.PL_HASH_SHA256_CBOR, nil, nil, TEXT)
    local plain = block(C.PL_HASH_SHA256_CBOR, nil, parent, TEXT)
    assert.equal(plain, (block(C.PL_HASH_SHA256_CBOR, nil, parent, TEXT, "salt")))
  end)

  it("refuse what cannot be named", function()
    local out, id = ffi.new "uint8_t[32]", ffi.new("int32_t[1]", -1)
    assert.equal(C.PL_EINVAL, C.pl_none_hash(9, nil, out))
    assert.equal(C.PL_EINVAL, C.pl_none_hash(0, "\xff", out))
    assert.equal(C.PL_EINVAL, C.pl_block_hash(0, nil, nil, id, 1, nil, 0, out))
    assert.equal(C.PL_EINVAL, C.pl_block_hash(0, nil, nil, id, 0, nil, 0, out))
    local many = ffi.new "int32_t[8193]"
    assert.equal(C.PL_EINVAL, C.pl_block_hash(1, nil, nil, many, 8193, nil, 0, out))
    assert.equal(0, C.pl_block_hash(1, nil, nil, many, 8192, nil, 0, out))
    local salt = ("s"):rep(4097)
    assert.equal(C.PL_EINVAL, C.pl_block_hash(1, nil, nil, many, 1, salt, #salt, out))
  end)
end)
