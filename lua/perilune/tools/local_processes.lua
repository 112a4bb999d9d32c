-- SPDX-License-Identifier: Apache-2.0
-- tools/local_processes.lua - the processes of this user on this machine: each listens at
-- a socket that only its owner can open, under a name that people use.
--
-- frontend/0 is frontend-0.sock in the folder that core/client_local.c checks. On a bus a
-- process may have another name, which then is the one to be used.

local client = require "perilune.tools.http_client"
local engine = require "perilune.ffi"
local machine = require "perilune.recipe.machine"
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

-- A name that several processes have: what is to be said of it, and a hint. `found`: what
-- tells each of them from the others.
function M.ambiguous(name, found)
  return ("'%s' may be any of\n  %s"):format(name, table.concat(found, "\n  ")),
    "a deployment on a bus is named by --bus and --namespace; in a process without one: "
    .. "perilune attach"
end

-- What has that name in a process of this machine, so that it can be told from others.
function M.told_apart(process, name)
  return ("%s of process %s: %s%s"):format(name, tostring(process.pid),
    name ~= process.name and process.name .. ", " or "",
    process.bus and "namespace " .. process.bus or tostring(process.recipe))
end

-- A connection to the process of that name, without one to the only one that runs; and
-- its name. Or nil, message, hint.
function M.find(name, timeout_ms)
  local list, why = M.about()
  if not list then return nil, why end
  local known, found, apart = {}, nil, {}
  for i, process in ipairs(list) do
    known[i] = process.name
    if process.name == name or not name then
      found = process
      apart[#apart + 1] = M.told_apart(process, process.name)
    end
  end
  if #apart == 1 then return M.connection(found.path, timeout_ms), found.name end
  if #known == 0 then return nil, "you have no process running here" end
  if name and found then return nil, M.ambiguous(name, apart) end
  return nil, name and ("no process '%s'"):format(name) or "which one?",
         "there are " .. table.concat(known, ", ")
end

-- A connection to the process that says this on a bus, where it is one of this machine;
-- else nil.
function M.of(hello, timeout_ms)
  if hello.host ~= machine.host_name() then return nil end
  for _, process in ipairs(M.about() or {}) do
    if process.pid == hello.pid and process.name == hello.name then
      return M.connection(process.path, timeout_ms)
    end
  end
end

return M
