-- SPDX-License-Identifier: Apache-2.0
-- log.lua - lines for the log: log.info("listening at %s:%d", host, port).
--
--   local about = log.with { request_id = id }
--   about:info("sent to %s", name)             -- the line carries the id
--
-- Text on a terminal, elsewhere a JSON object a line, with the fields beside "message".

local engine = require "perilune.ffi"
local C = engine.C

local M = {}

local LEVELS = {
  debug = C.PL_LOG_DEBUG, info = C.PL_LOG_INFO, warning = C.PL_LOG_WARN,
  error = C.PL_LOG_ERROR,
}
local STDERR = 2

local function writer(level)
  return function(text, ...)
    if select("#", ...) > 0 then text = text:format(...) end
    C.pl_log_write(level, text, #text)
  end
end

M.debug = writer(LEVELS.debug)
M.info = writer(LEVELS.info)
M.warning = writer(LEVELS.warning)
M.error = writer(LEVELS.error)

local Logger = {}
Logger.__index = Logger

local function field_writer(level)
  return function(self, text, ...)
    if select("#", ...) > 0 then text = text:format(...) end
    local fields = self:packed()
    C.pl_log_fields(level, text, #text, fields, #fields)
  end
end

Logger.debug = field_writer(LEVELS.debug)
Logger.info = field_writer(LEVELS.info)
Logger.warning = field_writer(LEVELS.warning)
Logger.error = field_writer(LEVELS.error)

-- The fields as C takes them, in the order of their names.
function Logger:packed()
  if self.text then return self.text end
  local names, parts = {}, {}
  for name in pairs(self.fields) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    parts[#parts + 1] = name
    parts[#parts + 1] = tostring(self.fields[name]):gsub("%z", " ")
  end
  self.text = #parts > 0 and table.concat(parts, "\0") .. "\0" or ""
  return self.text
end

-- What writes lines that carry these fields. Costs little until it writes one.
function M.with(fields)
  return setmetatable({ fields = fields }, Logger)
end

-- The same of fields that are packed already: a name, NUL, its value, NUL, and so on.
function M.with_packed(text)
  local self = { text = text }
  setmetatable(self, Logger)
  return self
end

-- Writes only what is at least as grave as this, from now on.
function M.level(name)
  local level = LEVELS[name]
  if not level then error(("log.level: no level '%s'"):format(tostring(name)), 2) end
  C.pl_log_level(level)
end

-- How lines look: text, json, or auto.
function M.format(name)
  local json = name == "json" or (name == "auto" and C.pl_terminal_is(STDERR) == 0)
  C.pl_log_json(json and 1 or 0)
end

return M
