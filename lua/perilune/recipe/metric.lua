-- SPDX-License-Identifier: Apache-2.0
-- recipe/metric.lua - pl.metric: what a recipe's hooks count themselves, for /metrics.
--
--     local long = pl.metric("long_prompts_total", "prompts of over 4096 tokens")
--     long:add(1)
--
-- Its name says what it is, as is Prometheus's custom: what ends in _total is a counter,
-- what has buckets a histogram, anything else a gauge. A frontend opens those of its
-- recipe. A simulation or a replay collects what hooks count instead.

local pl = require "perilune.ffi"
local load = require "perilune.recipe.load"
local log = require "perilune.log"
local C, ffi = pl.C, pl.ffi

local M = {}

local MOST, MOST_BUCKETS = 64, 64           -- of a recipe; of a histogram
local MAX_NAME, MAX_HELP = 128, 256
-- Perilune's own names begin so, and the ends belong to a histogram's series.
local RESERVED = { "^perilune_", "^vllm", "^dynamo_", "^__", "_bucket$", "_sum$",
  "_count$" }
local KINDS = { counter = C.PL_COUNTER, gauge = C.PL_GAUGE, histogram = C.PL_HISTOGRAM }

local opened = {}                           -- name -> the kind it has in this process
local collected                             -- name -> value, instead of the process's own

-- ---- counting -----------------------------------------------------------------------

local function finite(m, v, least)
  if type(v) == "number" and v >= least and v < math.huge then return v end
  error(("metric %s: '%s' is no number%s"):format(m.name, tostring(v),
    least == 0 and ", at least 0" or ""), 3)
end

local function add(m, by)
  if collected then
    collected[m.name] = (collected[m.name] or 0) + by
  elseif m.id then
    C.pl_metric_add(m.id, by)
  end
end

local Counter, Gauge, Histogram = {}, {}, {}

function Counter:add(by)
  add(self, finite(self, by or 1, 0))
end

function Gauge:add(by)
  add(self, finite(self, by or 1, -math.huge))
end

function Gauge:set(value)
  finite(self, value, -math.huge)
  if collected then
    collected[self.name] = value
  elseif self.id then
    C.pl_metric_set(self.id, value)
  end
end

function Histogram:observe(value)
  finite(self, value, -math.huge)
  if collected then
    local sums = collected[self.name] or { count = 0, sum = 0 }
    sums.count, sums.sum = sums.count + 1, sums.sum + value
    collected[self.name] = sums
  elseif self.id then
    C.pl_metric_observe(self.id, value)
  end
end

local function class(kind, methods)
  local can = {}
  for name in pairs(methods) do can[#can + 1] = ":" .. name end
  table.sort(can)
  return { __index = function(_, key)
    return methods[key] or error(("a %s has no '%s'; it has %s"):format(kind,
      tostring(key), table.concat(can, ", ")), 2)
  end }
end

M.METHODS = { add = true, set = true, observe = true }

local CLASSES = { counter = class("counter", Counter), gauge = class("gauge", Gauge),
  histogram = class("histogram", Histogram) }

-- From now on what hooks count is put in this table (nil: it is counted at /metrics) by
-- name: a number, or of a histogram { count, sum }. Answers the one before.
function M.collect(into)
  local was = collected
  collected = into
  return was
end

-- ---- declaring ----------------------------------------------------------------------

local function check_name(name)
  if type(name) ~= "string" or #name > MAX_NAME or not name:match "^[%a_][%w_]*$" then
    error(("pl.metric: '%s' is no name; it wants letters, digits and _"):format(
      tostring(name):sub(1, MAX_NAME)), 5)
  end
  for _, pattern in ipairs(RESERVED) do
    if name:match(pattern) then
      error(("pl.metric: '%s' is reserved, as are names that begin with perilune_, vllm, "
        .. "dynamo_ or __, or end in _bucket, _sum or _count"):format(name), 5)
    end
  end
end

local function check_buckets(name, buckets)
  local before = -math.huge
  for _, bound in ipairs(buckets) do
    if type(bound) ~= "number" or not (bound > before and bound < math.huge) then
      error(("pl.metric: buckets of '%s' want rising numbers"):format(name), 5)
    end
    before = bound
  end
  if #buckets == 0 or #buckets > MOST_BUCKETS then
    error(("pl.metric: buckets of '%s' want 1 to %d numbers"):format(name,
      MOST_BUCKETS), 5)
  end
end

local function kind_of(name, help, buckets)
  check_name(name)
  if type(help) ~= "string" or #help > MAX_HELP or help:find "%c" then
    error(("pl.metric: '%s' wants a line of help"):format(name), 4)
  end
  if buckets == nil then return name:match "_total$" and "counter" or "gauge" end
  if type(buckets) ~= "table" or name:match "_total$" then
    error(("pl.metric: '%s' wants buckets as a list, and a name that does not end in "
      .. "_total, or no buckets"):format(name), 4)
  end
  check_buckets(name, buckets)
  return "histogram"
end

local function declare(current, name, help, buckets)
  local kind, list = kind_of(name, help, buckets), current.metrics
  for _, other in ipairs(list) do
    if other.name == name then
      error(("pl.metric: '%s' is declared twice"):format(name), 3)
    end
  end
  if #list == MOST then
    error(("pl.metric: more than %d metrics"):format(MOST), 3)
  end
  if opened[name] and opened[name] ~= kind then
    error(("pl.metric: '%s' was a %s when this process began; another name, or a restart")
      :format(name, opened[name]), 3)
  end
  local made = { name = name, help = help, kind = kind, buckets = buckets or false,
    id = false }
  list[#list + 1] = made
  return made
end

-- pl.metric: one more of the recipe that is loaded.
function M.of(name, help, buckets)
  local current = load.current()
  if not current then error("pl.metric: only while a recipe is loaded", 2) end
  local made = declare(current, name, help, buckets)
  return setmetatable(made, CLASSES[made.kind])
end

-- Opens a recipe's metrics at /metrics: at 0, unless they have counted before.
function M.open(list)
  for _, made in ipairs(list) do
    local buckets = made.buckets
    local bounds = buckets and ffi.new("double[?]", #buckets, buckets) or nil
    local id = C.pl_metric_open(KINDS[made.kind], made.name, "", made.help, bounds,
      bounds and #buckets or 0)
    if id < 0 then
      log.error("metric %s is not counted: %s", made.name, ffi.string(C.pl_error_text()))
    else
      made.id, opened[made.name] = id, made.kind
    end
  end
end

return M
