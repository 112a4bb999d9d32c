-- SPDX-License-Identifier: Apache-2.0
-- serving.lua - a perilune that serves, as a process, and requests to it.
--
--   local s = serving.start { "--max-model-len", "512" }
--   local r = s:post("/v1/completions", { prompt = "x" })   -- status, headers, text, json
--   s:stop()                                                -- by SIGTERM, to exit code 0

local cjson = require "cjson.safe"
local client = require "perilune.tools.http_client"
local process = require "support.process"
local socket = require "support.socket"

local M = { MODEL = "tests/golden/llama", null = cjson.null }

-- Sanitizers make all of this slower by far.
local START_SECONDS, ANSWER_MS = 60, 60000

local Serving = {}
Serving.__index = Serving

-- Variables of the caller that would change what a server does.
local PLAIN = { PERILUNE_MODEL = false, PERILUNE_API_KEY = false, VLLM_API_KEY = false,
  VLLM_SERVER_DEV_MODE = false, PYTHONHASHSEED = false, PERILUNE_BUS = false,
  NATS_SERVER = false, DYN_NAMESPACE = false, DYN_HTTP_OVERLOAD_STATUS_CODE = false,
  DYN_DISABLE_FRONTEND_ADMIN_API = false, DYN_ACTIVE_DECODE_BLOCKS_THRESHOLD = false,
  DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD = false,
  DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD_FRAC = false }

-- Starts one on a free port and waits until it is healthy. `flags` may name a model;
-- `recipe`: agg unless said.
function M.start(flags, env, recipe)
  local words, named = { "run", recipe or "agg", "--port", "0",
    "--enable-server-load-tracking" }, {}
  for _, flag in ipairs(flags or {}) do
    words[#words + 1], named[flag] = flag, true
  end
  for flag, value in pairs { ["--model"] = M.MODEL, ["--log-format"] = "text" } do
    if not named[flag] then
      words[#words + 1], words[#words + 2] = flag, value
    end
  end
  local changes = {}
  for name, value in pairs(PLAIN) do changes[name] = value end
  for name, value in pairs(env or {}) do changes[name] = value end
  local self = setmetatable({ process = process.start(words, changes) }, Serving)
  process.wait_for(START_SECONDS, function()
    self.port = tonumber(self.process:log():match 'serving [^\n]- at http://[%w.:]+:(%d+)["\n]')
    return self.port or not self.process:runs()
  end)
  if not self.port then
    local log = self.process:log()
    self.process:remove()
    error("it does not serve:\n" .. log, 2)
  end
  self.url = client.parse_url("http://127.0.0.1:" .. self.port)
  assert(self:get("/health").status == 200)
  return self
end

local Answer = {}
Answer.__index = Answer

-- The events of a stream, decoded but for the last, which must be [DONE].
function Answer:events()
  local list, last = {}, nil
  local feed = client.events(function(data)
    assert(last ~= "[DONE]", "an event after [DONE]")
    last = data
    if data ~= "[DONE]" then list[#list + 1] = assert(cjson.decode(data)) end
  end)
  assert(feed(self.text))
  assert(last == "[DONE]", "no [DONE] in " .. self.text:sub(-200))
  return list
end

local function request_text(self, method, path, body, headers)
  if type(body) == "table" then body = assert(cjson.encode(body)) end
  local sent = {}
  for name, value in pairs(headers or {}) do sent[name] = value end
  if body and sent["Content-Type"] == nil then sent["Content-Type"] = "application/json" end
  local lines = { ("%s %s HTTP/1.1\r\nHost: h"):format(method, path) }
  for name, value in pairs(sent) do
    if value then lines[#lines + 1] = name .. ": " .. value end
  end
  if self.key then lines[#lines + 1] = "Authorization: Bearer " .. self.key end
  if body then lines[#lines + 1] = "Content-Length: " .. #body end
  return table.concat(lines, "\r\n") .. "\r\n\r\n" .. (body or "")
end

-- Sends a request on a connection of its own; answer() of it is a function.
function Serving:begin(method, path, body, headers)
  local connection = socket.connect(self.port)
  local text = request_text(self, method, path, body, headers)
  connection:send_all(text)
  local parts = {}
  local response = client.response(function(piece) parts[#parts + 1] = piece end)
  if method == "HEAD" then response.head_only = true end
  return setmetatable({ connection = connection, response = response, parts = parts },
    Answer)
end

-- Waits for the whole answer: sets status, headers, text and, if it is JSON, json.
function Answer:finish()
  local r = self.response
  while not r.done do
    local bytes, why = self.connection:receive(ANSWER_MS)
    assert(bytes, why)
    if bytes == "" then
      assert(r:close())
    else
      assert(r:feed(bytes))
    end
    if r.head_only and r.status then break end
  end
  self.connection:close()
  self.status, self.headers = r.status, r.headers
  self.text = table.concat(self.parts)
  self.json = cjson.decode(self.text)
  return self
end

function Serving:request(method, path, body, headers)
  return self:begin(method, path, body, headers):finish()
end

function Serving:get(path, headers) return self:request("GET", path, nil, headers) end

-- `body`: a table, or the bytes.
function Serving:post(path, body, headers) return self:request("POST", path, body, headers) end

-- Many at once: a list of bodies to one path; their answers in order.
function Serving:post_all(path, bodies)
  local begun = {}
  for i, body in ipairs(bodies) do begun[i] = self:begin("POST", path, body) end
  for _, answer in ipairs(begun) do answer:finish() end
  return begun
end

-- The value of a series of /metrics, its labels summed; nil where there is none.
function Serving:metric(name)
  local sum
  for series, value in self:get("/metrics").text:gmatch "([^\n]+) (%S+)\n" do
    if series:match "^[^{]+" == name then sum = (sum or 0) + tonumber(value) end
  end
  return sum
end

-- Whether, in that time, nothing runs or waits and no block is in use.
function Serving:idle(seconds)
  return process.wait_for(seconds or 10, function()
    return self:metric "vllm:num_requests_running" == 0
      and self:metric "vllm:num_requests_waiting" == 0
      and self:metric "vllm:kv_cache_usage_perc" == 0
      and self:get("/load").json.server_load == 0
  end)
end

-- Stops it by SIGTERM; it must end well and in time, and say nothing alarming.
function Serving:stop(signal)
  local p = self.process
  p:signal(signal or "TERM")
  local code, why = p:wait(20)
  local log = p:log()
  p:remove()
  assert(code == 0, ("exit code %s, %s:\n%s"):format(tostring(code), tostring(why), log))
  assert(not log:find "\nERROR" and not log:find '"level":"ERROR"', log)
  return log
end

-- Requests, for others that have a port and a url.
M.begin, M.request, M.get, M.post = Serving.begin, Serving.request, Serving.get, Serving.post
M.metric, M.PLAIN = Serving.metric, PLAIN

return M
