-- SPDX-License-Identifier: Apache-2.0
-- fake.lua - tests/recipe/fake_openai.py as a process: a server to test clients against.
--
--   local server = fake.start()      -- server.url, server.dir (a folder of its own)
--   server:stop()

local scratch = require "scratch"
local root = require("perilune.host").root

local M = {}

local Fake = {}
Fake.__index = Fake

function M.start()
  local dir = scratch.folder()
  local self = setmetatable({ dir = dir }, Fake)
  -- It lives until whoever holds the fifo open for writing lets go of it.
  os.execute(("mkfifo '%s/in'; python3 '%s/tests/recipe/fake_openai.py' <'%s/in' >'%s/port' & ")
    :format(dir.path, root, dir.path, dir.path))
  self.hold = assert(io.open(dir.path .. "/in", "w"))
  for _ = 1, 200 do
    local file = io.open(dir.path .. "/port")
    local port = file and file:read "*l"
    if file then file:close() end
    if port then
      self.url = "http://127.0.0.1:" .. port
      return self
    end
    os.execute "sleep 0.05"
  end
  error "the fake server did not start"
end

function Fake:stop()
  self.hold:close()
  self.dir.remove()
end

return M
