-- SPDX-License-Identifier: Apache-2.0
-- sim/report.lua - the figures of simulated policies, for people and for programs.
--
-- A row is { policy = name, figures = what sim/run.lua answers }.

local json = require "perilune.json"

local M = {}

-- Title, width, and how a row's figures are shown.
local COLUMNS = {
  { "requests", 8, function(f) return ("%d"):format(f.requests) end },
  { "reuse", 7, function(f) return ("%.1f%%"):format(f.reuse * 100) end },
  { "ttft mean", 9, function(f) return ("%.1f"):format(f.ttft_ms.mean) end },
  { "p50", 8, function(f) return ("%.1f"):format(f.ttft_ms.p50) end },
  { "p99", 9, function(f) return ("%.1f"):format(f.ttft_ms.p99) end },
  { "itl mean", 9, function(f) return ("%.2f"):format(f.itl_ms.mean) end },
  { "p99", 7, function(f) return ("%.2f"):format(f.itl_ms.p99) end },
  { "tok/s", 9, function(f) return ("%.1f"):format(f.output_tokens_per_s) end },
  { "busiest", 8, function(f) return ("%.1f%%"):format(f.busiest_share * 100) end },
}

-- A head, and cells for each row. Times are in ms; `busiest` is the busiest worker's
-- share of all tokens that were computed.
function M.cells(rows)
  local head = { "policy" }
  for i, c in ipairs(COLUMNS) do head[i + 1] = c[1] end
  local out = { head }
  for _, row in ipairs(rows) do
    local cells = { row.policy }
    for i, c in ipairs(COLUMNS) do cells[i + 1] = c[3](row.figures) end
    out[#out + 1] = cells
  end
  return out
end

-- The same as lines of text.
function M.table(rows)
  local wide, out = 0, {}
  for _, row in ipairs(M.cells(rows)) do wide = math.max(wide, #row[1]) end
  for i, cells in ipairs(M.cells(rows)) do
    local line = { cells[1] .. (" "):rep(wide - #cells[1]) }
    for k, c in ipairs(COLUMNS) do
      line[k + 1] = ("%" .. c[2] .. "s"):format(cells[k + 1])
    end
    local refused = i > 1 and rows[i - 1].figures.refused or 0
    out[i] = table.concat(line, " ")
      .. (refused > 0 and ("  (%d refused)"):format(refused) or "")
  end
  return out
end

-- What a run's hooks counted (pl.metric), by name.
local function counted(f)
  local names = {}
  for name in pairs(f.metrics) do names[#names + 1] = name end
  table.sort(names)
  return names
end

-- The same as lines of text, for those that counted anything.
function M.metrics(rows)
  local out = {}
  for _, row in ipairs(rows) do
    for _, name in ipairs(counted(row.figures)) do
      local v = row.figures.metrics[name]
      local text = type(v) == "number" and ("%g"):format(v)
        or ("mean %g of %d"):format(v.sum / v.count, v.count)
      out[#out + 1] = ("%s  %s  %s"):format(row.policy, name, text)
    end
  end
  return out
end

local function rounded(v)
  return math.floor(v * 1e4 + 0.5) / 1e4
end

local function metrics_of(f)
  local list = {}
  for _, name in ipairs(counted(f)) do
    local v = f.metrics[name]
    list[#list + 1] = name
    list[#list + 1] = type(v) == "number" and v
      or json.object("count", v.count, "sum", rounded(v.sum))
  end
  return json.object(unpack(list))
end

local function object_of(row)
  local f = row.figures
  local ttft, itl = f.ttft_ms, f.itl_ms
  return json.object("policy", row.policy, "requests", f.requests, "refused", f.refused,
    "workers", f.workers, "reuse", rounded(f.reuse),
    "ttft_ms", json.object("mean", rounded(ttft.mean), "p50", rounded(ttft.p50),
      "p90", rounded(ttft.p90), "p99", rounded(ttft.p99)),
    "itl_ms", json.object("mean", rounded(itl.mean), "p50", rounded(itl.p50),
      "p99", rounded(itl.p99)),
    "output_tokens_per_s", rounded(f.output_tokens_per_s),
    "busiest_share", rounded(f.busiest_share), "seconds", rounded(f.seconds),
    "metrics", metrics_of(f))
end

-- One line: an object, or of several policies an array of them.
function M.json(rows)
  local list = json.array()
  for i, row in ipairs(rows) do list[i] = object_of(row) end
  return json.encode(list[2] and list or list[1])
end

local function quoted(text)
  return text:find '[",\n]' and '"' .. text:gsub('"', '""') .. '"' or text
end

-- A head and a line for each row.
function M.csv(rows)
  local out = { "policy,requests,refused,reuse,ttft_mean_ms,ttft_p50_ms,ttft_p90_ms,"
    .. "ttft_p99_ms,itl_mean_ms,itl_p50_ms,itl_p99_ms,output_tokens_per_s,busiest_share" }
  for _, row in ipairs(rows) do
    local f = row.figures
    out[#out + 1] = ("%s,%d,%d,%.6f,%.3f,%.3f,%.3f,%.3f,%.4f,%.4f,%.4f,%.3f,%.6f"):format(
      quoted(row.policy), f.requests, f.refused, f.reuse, f.ttft_ms.mean, f.ttft_ms.p50,
      f.ttft_ms.p90, f.ttft_ms.p99, f.itl_ms.mean, f.itl_ms.p50, f.itl_ms.p99,
      f.output_tokens_per_s, f.busiest_share)
  end
  return table.concat(out, "\n") .. "\n"
end

return M
