-- SPDX-License-Identifier: Apache-2.0
-- recipe/nearest.lua - which of these words was meant: for "did you mean".

-- Edits that turn a into b: insert, delete, replace, swap two neighbours.
local function distance(a, b)
  local before, last = nil, {}
  for j = 0, #b do last[j] = j end
  for i = 1, #a do
    local row = { [0] = i }
    for j = 1, #b do
      local same = a:byte(i) == b:byte(j)
      row[j] = math.min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (same and 0 or 1))
      local swapped = j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j)
      if before and swapped then
        row[j] = math.min(row[j], before[j - 2] + 1)
      end
    end
    before, last = last, row
  end
  return last[#b]
end

-- The nearest of `words` to `word`, or nil where none is near: a third of its letters may
-- be wrong, or `word` may begin exactly one of them.
return function(word, words)
  local best, best_edits = nil, math.floor(#word / 3) + 1
  local begun, n_begun = nil, 0
  for _, candidate in ipairs(words) do
    local edits = distance(word, candidate)
    if edits < best_edits then best, best_edits = candidate, edits end
    if candidate:sub(1, #word) == word then begun, n_begun = candidate, n_begun + 1 end
  end
  return best or (n_begun == 1 and begun) or nil
end
