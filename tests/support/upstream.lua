-- SPDX-License-Identifier: Apache-2.0
-- upstream.lua - OpenAI servers for a pool of `upstream`: openai_server.py, as processes.
--
--   local a = upstream.python "a"      -- its url, port; a:seen(), a:stop()

local cjson = require "cjson.safe"
local client = require "perilune.tools.http_client"
local process = require "support.process"
local serving = require "support.serving"

local M = {}

local Python = {}
Python.__index = Python

-- `certificate`, `key`: files, for TLS.
function M.python(name, certificate, key)
  local p = process.start({ "tests/support/openai_server.py", name, certificate, key }, {},
    "python3")
  local port
  process.wait_for(20, function()
    port = tonumber(p:log():match "port (%d+)")
    return port or not p:runs()
  end)
  if not port then
    local log = p:log()
    p:remove()
    error("no server: " .. log, 2)
  end
  local url = "http://127.0.0.1:" .. port
  return setmetatable({ process = p, port = port, address = url,
    url = client.parse_url(url), name = "127.0.0.1:" .. port }, Python)
end

-- What it got so far: requests, left.
function Python:seen()
  return cjson.decode(serving.get(self, "/seen").text)
end

function Python:stop()
  self.process:remove()
end

Python.request = serving.request
Python.begin = serving.begin

-- A perilune in front of these servers; more flags may follow.
function M.front(servers, flags, env)
  local words = { "--upstream" }
  for _, s in ipairs(servers) do
    words[#words + 1] = s.address or "http://127.0.0.1:" .. s.port
  end
  for _, word in ipairs(flags or {}) do words[#words + 1] = word end
  return serving.start(words, env, "in_front_of_vllm")
end

return M
