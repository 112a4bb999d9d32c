-- SPDX-License-Identifier: Apache-2.0
-- sim/page.lua - simulated policies as one HTML file with plots.

local report = require "perilune.sim.report"

local M = {}

local COLORS = { "#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7",
  "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0" }
local POINTS = 200                          -- of a curve

local PAGE = [[
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>perilune sim: $title</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto;
    padding: 0 1em; color: #222; background: #fff }
  h1 { font-size: 1.4em } h2 { font-size: 1.1em; margin-top: 2em }
  table { border-collapse: collapse } tr + tr { border-top: 1px solid #ddd }
  td, th { padding: .25em .8em; text-align: right }
  td:first-child, th:first-child { text-align: left }
  svg { width: 100%; height: auto } text { font-size: 12px; fill: currentColor }
  @media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818 }
    tr + tr { border-color: #444 } }
</style>
<h1>$title</h1>
<p>$about</p>
$table
<h2>Time to first token</h2>
<p>Share of requests (up) that had their first token within a time (right, in ms).</p>
$curves
<h2>Prefix reuse</h2>
<p>Share of all prompt tokens that were found in a cache.</p>
$reuse
<h2>Balance</h2>
<p>The busiest worker's share of all tokens that were computed; with $workers workers
$fair would be even.</p>
$busiest
</html>
]]

local function escape(text)
  return (text:gsub("[&<>\"]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;",
    ['"'] = "&quot;" }))
end

local function color(i)
  return COLORS[(i - 1) % #COLORS + 1]
end

local function table_of(rows)
  local out = { "<table>" }
  for i, cells in ipairs(report.cells(rows)) do
    local tag = i == 1 and "th" or "td"
    for k, cell in ipairs(cells) do
      cells[k] = ("<%s>%s</%s>"):format(tag, escape(cell), tag)
    end
    out[#out + 1] = "<tr>" .. table.concat(cells)
  end
  out[#out + 1] = "</table>"
  return table.concat(out, "\n")
end

-- A horizontal bar for each row; `value`: of its figures, from 0 to 1.
local function bars(rows, value)
  local most = 0
  for _, row in ipairs(rows) do most = math.max(most, value(row.figures)) end
  local out = { ('<svg viewBox="0 0 900 %d">'):format(26 * #rows) }
  for i, row in ipairs(rows) do
    local v, y = value(row.figures), 26 * (i - 1)
    out[#out + 1] = ('<text x="0" y="%d">%s</text><rect x="260" y="%d" width="%.1f" '
      .. 'height="18" fill="%s"/><text x="%.1f" y="%d">%.1f%%</text>'):format(y + 17,
        escape(row.policy), y + 3, 540 * v / math.max(most, 1e-9), color(i),
        266 + 540 * v / math.max(most, 1e-9), y + 17, v * 100)
  end
  out[#out + 1] = "</svg>"
  return table.concat(out, "\n")
end

-- Round numbers of ms up to `most`, on a scale of powers.
local function ticks(least, most)
  local out, power = {}, 10 ^ math.floor(math.log10(least))
  while power <= most do
    for _, m in ipairs { 1, 2, 5 } do
      if m * power >= least and m * power <= most then out[#out + 1] = m * power end
    end
    power = power * 10
  end
  return out
end

-- Where a time stands on a logarithmic scale that holds all rows' times.
local function scale(rows)
  local least, most = math.huge, 0
  for _, row in ipairs(rows) do
    local list = row.figures.ttft
    if list[1] then
      least = math.min(least, math.max(list[1], 0.1))
      most = math.max(most, list[#list])
    end
  end
  if least == math.huge then least = 1 end
  if most <= least then most = least * 2 end
  return least, most, function(ms)
    return 40 + 840 * math.log(math.max(ms, least) / least) / math.log(most / least)
  end
end

local HORIZONTAL = '<path d="M40 %d H880" stroke="#8884"/><text x="0" y="%d">%d%%</text>'
local VERTICAL = '<path d="M%.1f 10 V290" stroke="#8884"/><text x="%.1f" y="308" '
  .. 'text-anchor="middle">%g</text>'
local CURVE = '<path d="M%s" fill="none" stroke="%s" stroke-width="2"/>'
  .. '<rect x="40" y="%d" width="14" height="10" fill="%s"/><text x="62" y="%d">%s</text>'

-- Of sorted times a curve: the points of a path.
local function points_of(list, x)
  local points = {}
  for k = 0, list[1] and POINTS or -1 do
    local at = math.max(1, math.ceil(#list * k / POINTS))
    points[#points + 1] = ("%.1f %.1f"):format(x(list[at]), 290 - 280 * k / POINTS)
  end
  return table.concat(points, " L")
end

local function curves(rows)
  local least, most, x = scale(rows)
  local out = { ('<svg viewBox="0 0 900 %d">'):format(330 + 20 * #rows) }
  for _, share in ipairs { 0, 0.25, 0.5, 0.75, 1 } do
    local y = 290 - 280 * share
    out[#out + 1] = HORIZONTAL:format(y, y + 4, share * 100)
  end
  for _, ms in ipairs(ticks(least, most)) do
    out[#out + 1] = VERTICAL:format(x(ms), x(ms), ms)
  end
  for i, row in ipairs(rows) do
    local y = 330 + 20 * (i - 1)
    out[#out + 1] = CURVE:format(points_of(row.figures.ttft, x), color(i), y - 9,
      color(i), y, escape(row.policy))
  end
  out[#out + 1] = "</svg>"
  return table.concat(out, "\n")
end

-- The page. `title`, `about`: what was simulated.
function M.html(rows, title, about)
  local workers = rows[1].figures.workers
  local parts = { title = escape(title), about = escape(about), table = table_of(rows),
    curves = curves(rows), workers = tostring(workers),
    fair = ("%.1f%%"):format(100 / workers),
    reuse = bars(rows, function(f) return f.reuse end),
    busiest = bars(rows, function(f) return f.busiest_share end) }
  return (PAGE:gsub("%$(%a+)", parts))
end

return M
