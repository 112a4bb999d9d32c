-- SPDX-License-Identifier: Apache-2.0
-- tools/terminal_line.lua - lines that a person types at the terminal: edited, and
-- remembered.

local engine = require "perilune.ffi"
local C, ffi = engine.C, engine.ffi

local M = {}
M.__index = M

local text_out, len_out = ffi.new "const char *[1]", ffi.new "size_t[1]"

local function state_file(name)
  local state, home = os.getenv "XDG_STATE_HOME", os.getenv "HOME"
  local at = state and state:sub(1, 1) == "/" and state
    or home and home ~= "" and home .. "/.local/state"
  return at and ("%s/perilune/%s"):format(at, name) or nil
end

-- `name`: of the history's file. nil and why where the terminal is no good.
function M.open(name)
  local handle = C.pl_line_open(state_file(name))
  if handle == nil then return nil, ffi.string(C.pl_error_text()) end
  return setmetatable({ handle = handle }, M)
end

-- The next line; nil at the end; nil, true where Ctrl-C cleared it. on_tab(text): Tab was
-- typed after this much; it may type more, or print and redraw.
function M:read(prompt, on_tab)
  while true do
    local what = C.pl_line_read(self.handle, prompt, text_out, len_out)
    local text = ffi.string(text_out[0], len_out[0])
    if what == C.PL_LINE_WHOLE then return text end
    if what == C.PL_LINE_CLEARED then return nil, true end
    if what == C.PL_LINE_END then return nil end
    if on_tab then on_tab(text) end
  end
end

function M:type(text) C.pl_line_type(self.handle, text) end

function M:redraw() C.pl_line_redraw(self.handle) end

function M:remember(text) C.pl_line_remember(self.handle, text) end

function M:close() C.pl_line_close(self.handle) end

return M
