-- SPDX-License-Identifier: Apache-2.0
-- tools/wrap.lua - text that comes in pieces, wrapped by words.
--
--   local w = wrap.new(80, columns)     -- columns(text): how wide a terminal shows it
--   io.write(w:push "some te", w:push "xt", w:flush())
--
-- A word is given on once it is whole, that is when a blank follows. What is written
-- without blanks, as Chinese is, and what is longer than a line, is given on as it comes:
-- the terminal breaks it where its line is full.

local M = {}
M.__index = M

function M.new(width, columns)
  return setmetatable({ width = width, columns = columns, column = 0, word = "",
    blanks = "" }, M)
end

-- The word so far, after a line's end where it has no room.
local function give(self)
  local word, blanks = self.word, self.blanks
  if word == "" then return "" end
  local wide = self.columns(word)
  self.word, self.blanks = "", ""
  if blanks ~= "" and self.column > 0 and self.column + #blanks + wide > self.width then
    self.column, blanks = 0, "\n"
  else
    self.column = self.column + #blanks
  end
  self.column = self.column + wide
  if self.column > self.width then self.column = self.column % self.width end
  return blanks .. word
end

local function cannot_wait(self)
  local n = select(2, self.word:gsub("[^\128-\191]", ""))
  local wide = self.columns(self.word)
  return wide > n or wide >= self.width
end

-- More of the text: what can be shown now.
function M:push(text)
  local out = {}
  for word, blank in text:gmatch "([^ \n]*)([ \n]?)" do
    self.word = self.word .. word
    if blank ~= "" or cannot_wait(self) then out[#out + 1] = give(self) end
    if blank == "\n" then
      out[#out + 1] = "\n"
      self.column, self.blanks = 0, ""
    else
      self.blanks = self.blanks .. blank
    end
  end
  return table.concat(out)
end

-- What is left, at the end of the text.
function M:flush()
  return give(self)
end

return M
