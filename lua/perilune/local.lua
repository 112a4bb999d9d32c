-- SPDX-License-Identifier: Apache-2.0
-- local.lua - the processes of this user on this machine: each listens at a socket that
-- only its owner can open, under a name that people use.
--
-- frontend/0 is frontend-0.sock in the folder that core/client_local.c checks. On a bus a
-- process may have another name, which then is the one to be used.

local client = require "perilune.client"
local engine = require "perilune.ffi"
local C, ffi = engine.C, engine.ffi

local M = {}

local MOST = 1000                           -- processes of one role
local ABOUT_MS = 2000

local function name_of(path)
  local role, number = path:match "/(%l+)%-(%d+)%.sock$"
  return role and role .. "/" .. number
end

-- Listens under the role's lowest free number: the name, or nil, message, name of why.
-- `taken`: names of others, elsewhere.
function M.listen(rt, role, taken)
  local buf = ffi.new "pl_buf"
  if C.pl_local_folder(buf) < 0 then return engine.refusal(C.PL_EIO) end
  local folder = engine.take(buf)
  local why, name
  for number = 0, MOST - 1 do
    local own = ("%s/%d"):format(role, number)
    if not (taken and taken[own]) then
      local path = ("%s/%s-%d.sock"):format(folder, role, number)
      local status = C.pl_listen_local(rt, path)
      if status >= 0 then return own end
      why, name = select(2, engine.refusal(status))
      if not why:find "process that runs" then break end
    end
  end
  return nil, why, name
end

-- The sockets that are there: a list of { name, path }; or nil, message, name.
function M.list()
  local buf = ffi.new "pl_buf"
  if C.pl_local_list(buf) < 0 then return engine.refusal(C.PL_EIO) end
  local out = {}
  for path in engine.take(buf):gmatch "[^\n]+" do
    local name = name_of(path)
    if name then out[#out + 1] = { name = name, path = path } end
  end
  return out
end

function M.connection(path, timeout_ms)
  return client.connection({ host = "unix:" .. path, port = 0, authority = "perilune",
    prefix = "" }, {}, timeout_ms)
end

-- What each process says of itself (/about). One that does not answer is named by its
-- socket; one that is gone is not. A list of tables with `path`, or nil and why.
function M.about()
  local list, why = M.list()
  if not list then return nil, why end
  local out = {}
  for _, process in ipairs(list) do
    local c = M.connection(process.path, ABOUT_MS)
    if c:open() then
      local about = c:get "/about"
      if type(about) ~= "table" then about = { health = "no answer" } end
      if type(about.name) ~= "string" then about.name = process.name end
      about.path = process.path
      out[#out + 1] = about
      c:close()
    end
  end
  return out
end

-- A connection to the process of that name, without one to the only one that runs; and
-- its name. Or nil, message, hint.
function M.find(name, timeout_ms)
  local list, why = M.about()
  if not list then return nil, why end
  local known, found = {}, nil
  for i, process in ipairs(list) do
    known[i] = process.name
    if process.name == name or not name then found = process end
  end
  if found and (name or #known == 1) then
    return M.connection(found.path, timeout_ms), found.name
  end
  if #known == 0 then
    return nil, "no process of yours runs here"
  end
  return nil, name and ("no process '%s'"):format(name) or "which one?",
         "there are " .. table.concat(known, ", ")
end

return M
