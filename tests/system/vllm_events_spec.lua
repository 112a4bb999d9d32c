-- SPDX-License-Identifier: Apache-2.0
-- KV events next to an implementation that is not ours: pyzmq, msgspec and cbor2, used as
-- vLLM and foreign routers use them. $PERILUNE_PYTHON has them (./dev sets it up).
local cjson = require "cjson.safe"
local pl = require "perilune.ffi"
local root = require("perilune.host").root
local scratch = require "scratch"
local serving = require "support.serving"
local C, ffi = pl.C, pl.ffi

local python = os.getenv "PERILUNE_PYTHON" or "python3"
local SCRIPT = ("'%s' '%s/tests/system/vllm_events.py'"):format(python, root)
local BLOCK, SECONDS = 16, 60

local function has_python()
  return scratch.sh(("'%s' -c 'import zmq, msgspec, cbor2'"):format(python)) == 0
end

local function some_port() return 20000 + tonumber(C.pl_entropy() % 12000) end

describe("a subscriber of vLLM's events", function()
  it("reads ours, and computes the same names", function()
    if not has_python() then return pending "no python with pyzmq, msgspec and cbor2" end
    local port, replay = some_port(), some_port()
    local s = serving.start { "--block-size", tostring(BLOCK), "--prefix-caching-hash-algo", "sha256_cbor",
      "--kv-events-config", cjson.encode { enable_kv_cache_events = true, publisher = "zmq",
        endpoint = "tcp://*:" .. port, replay_endpoint = "tcp://*:" .. replay,
        topic = "kv-events" } }
    local name = s:get("/v1/models").json.data[1].id
    local code, out, err = scratch.sh(("%s subscribe http://127.0.0.1:%d '%s' %s %s"):format(
      SCRIPT, s.port, name, "tcp://127.0.0.1:" .. port, "tcp://127.0.0.1:" .. replay))
    s:stop()
    assert.equal(0, code, out .. err)
    assert.equal(3, select(2, out:gsub("ok [^\n]+\n", "")))
  end)
end)

describe("a publisher of vLLM's events", function()
  local dir, hold, x

  before_each(function() dir = scratch.folder() end)
  after_each(function()
    if x then C.pl_route_close(x) end
    if hold then hold:close() end           -- it ends by that
    x, hold = nil, nil
    dir.remove()
  end)

  -- What it says of itself, once it is there.
  local function start(form)
    local path = dir.path
    os.execute(("mkfifo '%s/in'; %s publish %s <'%s/in' >'%s/out' 2>'%s/err' &"):format(path,
      SCRIPT, form, path, path, path))
    hold = assert(io.open(path .. "/in", "w"))
    local until_ns = C.pl_now_ns() + SECONDS * 1000000000LL
    repeat
      local file = io.open(path .. "/out")
      local about = file and cjson.decode(file:read "*l" or "")
      if file then file:close() end
      if about then return about end
      os.execute "sleep 0.05"
    until C.pl_now_ns() > until_ns
    error(io.open(path .. "/err"):read "*a")
  end

  -- How many blocks of each text the worker is known to hold.
  local function depths(w, texts)
    local naming = C.pl_naming_open(C.PL_HASH_SHA256_CBOR, nil, BLOCK)
    local params, at, out = ffi.new "pl_params", ffi.new "int32_t[64]", {}
    C.pl_params_init(params)
    for i, text in ipairs(texts) do
      local seq = C.pl_seq_open(ffi.new("int32_t[?]", #text, text), #text, params)
      local keys = ffi.new "uint64_t[8]"
      C.pl_route_match(x, keys, C.pl_naming_keys(naming, seq, 0, keys, 8), at)
      out[i] = at[w]
      C.pl_seq_close(seq)
    end
    C.pl_naming_close(naming)
    return out
  end

  local function is_followed(form)
    if not has_python() then return pending "no python with pyzmq, msgspec and cbor2" end
    local vllm = start(form)
    x = C.pl_route_open(1000)
    local w = C.pl_route_join(x)
    assert.equal(0, C.pl_route_subscribe(x, w, vllm.endpoint, vllm.replay, "kv-events"))
    local until_ns = C.pl_now_ns() + SECONDS * 1000000000LL
    local known
    repeat
      os.execute "sleep 0.02"
      known = depths(w, vllm.texts)
    until cjson.encode(known) == cjson.encode(vllm.depths) or C.pl_now_ns() > until_ns
    assert.same(vllm.depths, known)
  end

  it("is followed over what was lost, if it sends maps", function() is_followed "map" end)
  it("is followed over what was lost, if it sends arrays", function() is_followed "array" end)
end)
