-- SPDX-License-Identifier: Apache-2.0
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

local function render()
  local buf = ffi.new "pl_buf"
  assert.equal(0, C.pl_metric_render(buf))
  return pl.take(buf)
end

local function open(kind, name, labels, buckets)
  local n = buckets and #buckets or 0
  return C.pl_metric_open(kind, name, labels or "", "help of " .. name,
    buckets and ffi.new("double[?]", n, buckets), n)
end

describe("metrics", function()
  it("gives one id to one name and labels", function()
    local a = open(C.PL_COUNTER, "t_same_total", 'engine="0"')
    local b = open(C.PL_COUNTER, "t_same_total", 'engine="1"')
    assert.is_true(a > 0 and b > 0 and a ~= b)
    assert.equal(a, open(C.PL_COUNTER, "t_same_total", 'engine="0"'))
    C.pl_metric_add(a, 2)
    C.pl_metric_add(a, 0.5)
    C.pl_metric_add(a, -1)
    assert.equal(2.5, C.pl_metric_value(a))
    assert.equal(0, C.pl_metric_value(b))
  end)

  it("sets gauges, and only gauges", function()
    local g, c = open(C.PL_GAUGE, "t_level"), open(C.PL_COUNTER, "t_c_total")
    C.pl_metric_set(g, 7)
    C.pl_metric_add(g, -10)
    C.pl_metric_set(c, 7)
    C.pl_metric_observe(c, 7)
    assert.equal(-3, C.pl_metric_value(g))
    assert.equal(0, C.pl_metric_value(c))
  end)

  it("cumulates buckets, whose bounds belong to them", function()
    local h = open(C.PL_HISTOGRAM, "t_seconds", 'm="x"', { 0.1, 1, 2.5 })
    for _, v in ipairs { 0.05, 0.1, 0.5, 2.5, 99 } do C.pl_metric_observe(h, v) end
    C.pl_metric_observe(h, 0 / 0)
    assert.equal(5, C.pl_metric_value(h))
    assert.is_truthy(render():find([[
# HELP t_seconds help of t_seconds
# TYPE t_seconds histogram
t_seconds_bucket{m="x",le="0.1"} 2.0
t_seconds_bucket{m="x",le="1.0"} 3.0
t_seconds_bucket{m="x",le="2.5"} 4.0
t_seconds_bucket{m="x",le="+Inf"} 5.0
t_seconds_count{m="x"} 5.0
t_seconds_sum{m="x"} 102.15
]], 1, true))
  end)

  it("tells one histogram what another observes", function()
    local a = open(C.PL_HISTOGRAM, "t_also_a", "", { 1 })
    local b = open(C.PL_HISTOGRAM, "t_also_b", "", { 1, 2 })
    local gauge = open(C.PL_GAUGE, "t_also_gauge")
    for _, pair in ipairs { { a, a }, { a, gauge }, { gauge, a }, { a, 5000 }, { -1, a } } do
      C.pl_metric_also(pair[1], pair[2])
    end
    C.pl_metric_observe(a, 1)
    assert.equal(1, C.pl_metric_value(a))
    C.pl_metric_also(a, b)
    C.pl_metric_also(b, a)                  -- told of, not told on
    C.pl_metric_observe(a, 1)
    assert.equal(2, C.pl_metric_value(a))
    assert.equal(1, C.pl_metric_value(b))
    assert.equal(0, C.pl_metric_value(gauge))
  end)

  it("says HELP and TYPE once and keeps a name's series together", function()
    C.pl_metric_add(open(C.PL_COUNTER, "t_apart_total", 'a="1"'), 1)
    open(C.PL_GAUGE, "t_between")
    C.pl_metric_add(open(C.PL_COUNTER, "t_apart_total", 'a="q\\"\\n"'), 1e20)
    assert.is_truthy(render():find([[
# TYPE t_apart_total counter
t_apart_total{a="1"} 1.0
t_apart_total{a="q\"\n"} 1e+20
]], 1, true))
    assert.is_truthy(render():find("\nt_between 0.0\n", 1, true))
  end)

  it("escapes help", function()
    C.pl_metric_open(C.PL_GAUGE, "t_help", nil, "a\\b\nc", nil, 0)
    assert.is_truthy(render():find("# HELP t_help a\\\\b\\nc\n", 1, true))
  end)

  it("refuses what Prometheus could not read", function()
    local function refused(...)
      assert.equal(C.PL_EINVAL, open(...))
    end
    refused(3, "t_kind")
    for _, name in ipairs { "", "1x", "a-b", "a b", "a{" } do
      refused(C.PL_GAUGE, name)
    end
    for _, labels in ipairs { "a", "a=", "a=b", 'a="b', 'a="b",', 'a="b"c="d"', 'a="\n"',
        'a="\\x"', 'le="1"', '1="x"', 'a="\\' } do
      refused(C.PL_GAUGE, "t_bad", labels)
    end
    refused(C.PL_HISTOGRAM, "t_none")
    refused(C.PL_HISTOGRAM, "t_order", "", { 1, 1 })
    refused(C.PL_HISTOGRAM, "t_inf", "", { 1, math.huge })
    refused(C.PL_GAUGE, "t_with", "", { 1 })
    open(C.PL_GAUGE, "t_once")
    refused(C.PL_COUNTER, "t_once")
    open(C.PL_HISTOGRAM, "t_b", "", { 1, 2 })
    refused(C.PL_HISTOGRAM, "t_b", "", { 1, 3 })
  end)

  it("ignores ids that do not exist", function()
    for _, id in ipairs { 0, -1, -8, 4096, 5000 } do
      C.pl_metric_add(id, 1)
      C.pl_metric_observe(id, 1)
      local v = C.pl_metric_value(id)
      assert.is_true(v ~= v)
    end
  end)
end)
