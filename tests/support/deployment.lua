-- SPDX-License-Identifier: Apache-2.0
-- deployment.lua - a deployment as processes: a nats-server, frontends, workers, all of
-- them started from one recipe, which names the model and the bus.
--
--   local f = deployment.start { workers = 4, worker = { "--threads", "1" } }
--   local r = f.frontends[1]:post("/v1/completions", { prompt = "x" })
--   f.workers[2]:signal "KILL"; f:add_worker()
--   f:close()                   -- all of it must end well

local client = require "perilune.tools.http_client"
local nats = require "support.nats"
local process = require "support.process"
local scratch = require "scratch"
local serving = require "support.serving"

local M = {}

local RECIPE = "local pl = require 'perilune' "
  .. "return { model = %q, bus = %q, http = { port = 0 }, %s %s }"

-- Sanitizers make all of this slower by far.
local START_SECONDS, STOP_SECONDS = 60, 60

local Deployment = {}
Deployment.__index = Deployment

-- ---- one process -------------------------------------------------------------------

local Member = {}
Member.__index = Member

function Member:signal(name) self.process:signal(name) end

function Member:runs() return self.process:runs() end

-- What its log has got since the last time.
function Member:news()
  local f = assert(io.open(self.process.log_path))
  f:seek("set", self.read)
  local text = f:read "*a"
  f:close()
  self.read = self.read + #text
  return text
end

-- Waits for a word in its log: what the pattern captures.
function Member:await(pattern, seconds)
  local found = process.wait_for(seconds or START_SECONDS, function()
    return self.process:log():match(pattern) or not self.process:runs()
  end)
  if type(found) ~= "string" then
    error(("no '%s' in the log:\n%s"):format(pattern, self.process:log()), 2)
  end
  return found
end

-- As serving.lua's: a frontend's own port, a worker's for metrics.
Member.get, Member.post, Member.begin = serving.get, serving.post, serving.begin
Member.request, Member.metric = serving.request, serving.metric

local function status_of(path, name)
  local f = io.open(path)
  local text = f and f:read "*a" or ""
  if f then f:close() end
  return tonumber(text:match(name .. ":%s+(%d+)"))
end

-- Resident memory in MiB.
function Member:memory()
  return status_of(("/proc/%d/status"):format(self.process.pid), "VmRSS") / 1024
end

-- How many descriptors a process has open.
function M.descriptors(of)
  local list = io.popen(("ls /proc/%d/fd"):format(of.pid))
  local _, n = list:read "*a":gsub("\n", "")
  list:close()
  return n
end

function Member:descriptors() return M.descriptors(self.process) end

-- Whether nothing runs or waits in it and none of its blocks is in use.
function Member:is_idle()
  local text, sum, n = self:get "/metrics".text, 0, 0
  for _, name in ipairs { "num_requests_running", "num_requests_waiting",
      "kv_cache_usage_perc" } do
    for value in text:gmatch("\nvllm:" .. name .. "%b{} (%S+)") do
      sum, n = sum + tonumber(value), n + 1
    end
  end
  return n >= 3 and sum == 0
end

-- Waits for its end after SIGTERM, which must be a good one. Its log.
function Member:ended(seconds)
  local code, why = self.process:wait(seconds or STOP_SECONDS)
  local log = self.process:log()
  assert(code == 0, ("exit code %s, %s:\n%s"):format(tostring(code), tostring(why),
    log:sub(-4000)))
  self.process:remove()
  return log
end

-- ---- all of them -------------------------------------------------------------------

-- how: nil, or { bus = its URL, if another, inside = words of a program to run it by,
-- build = the path of a build, if another, role = of a worker, if its pool is another, or
-- several in one text }.
function Deployment:launch(role, flags, how)
  local build = how and how.build or process.own_path()
  local inside = { unpack(how and how.inside or {}) }
  local program = table.remove(inside, 1)
  local words = inside
  if program then words[#words + 1] = build end
  for _, word in ipairs { "run", self.recipe } do words[#words + 1] = word end
  for word in role:gmatch "%S+" do words[#words + 1] = word end
  for _, word in ipairs { "--log-format", "text" } do words[#words + 1] = word end
  if how and how.bus then
    words[#words + 1], words[#words + 2] = "--bus", how.bus
  end
  for _, flag in ipairs(flags) do words[#words + 1] = flag end
  local env = {}
  for name, value in pairs(serving.PLAIN) do env[name] = value end
  for name, value in pairs(self.env) do env[name] = value end
  local member = setmetatable({ role = role, read = 0,
    process = process.start(words, env, program or build) }, Member)
  self.all[#self.all + 1] = member
  return member
end

-- What its log says once it can be reached.
local OF_WORKER = "metrics [^\n]*http://[%w.:]+:(%d+)"
local REACHED = { worker = OF_WORKER, prefill = OF_WORKER, decode = OF_WORKER,
  frontend = " at http://[%w.:]+:(%d+)\n" }

local function reached(member, port)
  member.port = tonumber(port)
  member.url = client.parse_url("http://127.0.0.1:" .. port)
end

-- Looks for its port, once.
function Deployment.found(_, member)
  local port = member.process:log():match(REACHED[member.role])
  if port then reached(member, port) end
end

-- A worker that is being started: it is there once is_there says so.
function Deployment:begin_worker(how)
  local words = { "--metrics-endpoint-port", "0" }
  for _, flag in ipairs(self.worker) do words[#words + 1] = flag end
  local member = self:launch(how and how.role or "worker", words, how)
  self.workers[#self.workers + 1] = member
  return member
end

function Deployment:add_worker(how)
  local member = self:begin_worker(how)
  reached(member, member:await(REACHED.worker))
  return member
end

-- Does not wait for workers.
function Deployment:add_frontend(how)
  local member = self:launch("frontend", self.frontend, how)
  self.frontends[#self.frontends + 1] = member
  reached(member, member:await(REACHED.frontend))
  return member
end

-- Takes it off the lists.
function Deployment:forget(member)
  for _, list in ipairs { self.workers, self.frontends, self.all } do
    for i = #list, 1, -1 do
      if list[i] == member then table.remove(list, i) end
    end
  end
end

-- Until each frontend serves and sees so many workers.
function Deployment:ready(n)
  for _, frontend in ipairs(self.frontends) do
    local ok = process.wait_for(START_SECONDS, function()
      local r = frontend:get "/health"
      return r.status == 200 and #r.json.instances == n
    end)
    assert(ok, "not healthy: " .. frontend:get "/health".text)
  end
end

local function open_all(self, o)
  local roles = type(o.workers) == "table" and o.workers or {}
  for i = 1, roles[1] and #roles or o.workers or 1 do
    self:begin_worker { role = roles[i] }
  end
  for _ = 1, o.frontends or 1 do self:add_frontend() end
  for _, w in ipairs(self.workers) do reached(w, w:await(REACHED.worker)) end
  self:ready(#self.workers)
end

-- options: workers and frontends (how many), worker and frontend (flags), model, env,
-- fields (more of the recipe, as text; the last `worker` counts), pools (as text, in the
-- place of worker = {}; then `workers` is a list of roles), nats (one that runs:
-- then it stays when the fleet goes), bus (its URL, if another).
function M.start(options)
  local o = options or {}
  local self = setmetatable({ nats = o.nats or nats.start(), owns_nats = not o.nats,
    worker = o.worker or {}, frontend = o.frontend or {}, env = o.env or {}, workers = {},
    frontends = {}, all = {}, dir = scratch.folder() }, Deployment)
  self.bus = o.bus or self.nats.url
  self.recipe = self.dir.write("recipe.lua",
    RECIPE:format(o.model or serving.MODEL, self.bus, o.pools or "worker = {},",
      o.fields or ""))
  local ok, why = pcall(open_all, self, o)
  if not ok then
    self:remove()
    error(why, 2)
  end
  return self
end

-- Stops all by SIGTERM, frontends first: exit code 0 each, and nothing alarming said.
function Deployment:close()
  local logs = {}
  for _, list in ipairs { self.frontends, self.workers } do
    for _, member in ipairs(list) do member:signal "TERM" end
    for _, member in ipairs(list) do logs[#logs + 1] = member:ended() end
  end
  self:remove()
  for _, log in ipairs(logs) do assert(not log:find "\nERROR", log) end
end

-- Ends what is left of it at once: after a failure, where close() has not come to its end.
function Deployment:remove()
  for _, member in ipairs(self.all) do member.process:remove() end
  self.all = {}
  self.dir.remove()
  if self.owns_nats then self.nats:close() end
end

return M
