-- SPDX-License-Identifier: Apache-2.0
-- recipe/follow.lua - perilune run --watch: reloads the recipe when a file that it was
-- read from has changed.
--
--     local follower = follow.new(process)
--     follower:look()             now and then, as follow.run(follower) does, a task
--
-- The files are few and small, so they are read and compared: that also finds a file that
-- an editor has written beside the old one and renamed, on any file system. A file that
-- is being written differs from look to look; what has settled is reloaded once, whatever
-- comes of it.

local flow = require "perilune.flow"
local load = require "perilune.recipe.load"
local settings = require "perilune.recipe.resolve"

local M = {}

local SECONDS = 0.5                         -- between two looks

local Follower = {}
Follower.__index = Follower

-- process: recipe and reload() (tools/process.lua).
function M.new(process)
  return setmetatable({ process = process }, Follower)
end

-- The same files as they are now.
local function read(files)
  local now = {}
  for path in pairs(files) do now[path] = load.text(path) or false end
  return now
end

local function same(a, b)
  for path, text in pairs(a) do
    if b[path] ~= text then return false end
  end
  return true
end

-- What the recipe was read from, also by a reload that others asked for; and what our own
-- last reload, if it failed, has looked for.
local function taken_up(self)
  local files = settings.files(self.process.recipe)
  if self.files ~= files then
    self.files, self.known, self.seen = files, files, files
  end
  return self.known
end

local function reload(self, now)
  local ok, _, files = self.process:reload()
  if ok then return end
  for path, text in pairs(files or {}) do now[path] = text end
  self.known, self.seen = now, now
end

-- Reloads if the files have changed, and are as they were at the last look.
function Follower:look()
  local known = taken_up(self)
  local now = read(known)
  local has_settled = same(now, self.seen)
  self.seen = now
  if has_settled and not same(now, known) then reload(self, now) end
end

-- A task.
function M.run(follower)
  while true do
    flow.sleep(SECONDS)
    follower:look()
  end
end

return M
