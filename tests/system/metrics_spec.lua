-- SPDX-License-Identifier: Apache-2.0
-- What Prometheus makes of our metrics: names, configuration, a real scrape, a dashboard.
local cjson = require "cjson.safe"
local metrics = require "perilune.watch.metrics"
local process = require "support.process"
local scratch = require "scratch"
local serving = require "support.serving"

local COMPLETION, CHAT = "/v1/completions", "/v1/chat/completions"

local function read(path)
  local f = assert(io.open(path))
  local text = f:read "*a"
  f:close()
  return text
end

local function has(program)
  return os.execute(("command -v %s >/dev/null"):format(program)) == 0
end

-- Waits for what the log of a process says, by a pattern.
local function told(p, pattern)
  local found
  process.wait_for(60, function()
    found = p:log():match(pattern)
    return found or not p:runs()
  end)
  return found or error("no '" .. pattern .. "' in:\n" .. p:log(), 2)
end

-- A server of which only the port is known.
local function at(port)
  return { port = port, get = serving.get, post = serving.post, request = serving.request,
    begin = serving.begin }
end

-- The names that a rendering has, each series' buckets and all.
local function names_of(text)
  local set = {}
  for name in text:gmatch "\n([%w_:]+)[{ ]" do set[name] = true end
  return set
end

local dashboard = assert(cjson.decode(read "examples/grafana.json"))

local function expressions()
  local list = {}
  for _, panel in ipairs(dashboard.panels) do
    for _, target in ipairs(panel.targets) do list[#list + 1] = target.expr end
  end
  return list
end

-- The metrics that an expression names.
local function metrics_in(expr)
  local list, words = {}, expr:gsub("%b[]", ""):gsub("%f[%w]by%s*%b()", "")
  for word, next_ in words:gmatch "([%a_:][%w_:]*)%s*(.?)" do
    if next_ ~= "(" then list[#list + 1] = word end
  end
  return list
end

describe("the dashboard", function()
  it("shows what is documented, each panel in its place", function()
    local known, places = {}, {}
    for _, row in ipairs(metrics.ROWS) do
      known[row[2] .. (row[1] == "histogram" and "_bucket" or "")] = true
    end
    assert.is_true(#expressions() > 20)
    for _, expr in ipairs(expressions()) do
      local list = metrics_in(expr)
      assert.is_true(#list > 0, expr)
      for _, name in ipairs(list) do assert.is_true(known[name], name) end
    end
    for _, panel in ipairs(dashboard.panels) do
      local place = panel.gridPos.x .. " " .. panel.gridPos.y
      assert.is_nil(places[place], panel.title)
      assert.equal(panel.datasource.uid, "${datasource}")
      places[place] = true
    end
  end)
end)

describe("promtool", function()
  if not has "promtool" then return pending "promtool is not installed" end

  it("takes the example's configuration", function()
    local code, out, err = scratch.sh "promtool check config examples/prometheus.yml"
    assert.equal(0, code, out .. err)
  end)

  it("finds nothing wrong with the names that are ours to choose", function()
    local s, dir = serving.start {}, scratch.folder()
    s:post(COMPLETION, { prompt = "a", max_tokens = 4 })
    s:post(COMPLETION, { prompt = "" })
    local text = s:get("/metrics").text
    local path = dir.write("metrics", text)
    local _, out, err = scratch.sh(("promtool check metrics <'%s'"):format(path))
    for line in (out .. err):gmatch "[^\n]+" do
      if not line:find("dynamo_component_kv_cache_events_applied ", 1, true) then
        assert.matches("^vllm:%S+ ", line)
      end
    end
    dir.remove()
    -- And all that is there is documented.
    local known = {}
    for _, row in ipairs(metrics.ROWS) do known[row[2]] = true end
    for name in text:gmatch "# TYPE (%S+) " do assert.is_true(known[name], name) end
    s:stop()
  end)
end)

-- A frontend and a worker on a bus, and Prometheus that watches both.
describe("a deployment", function()
  if not has "prometheus" or not has "nats-server" then
    return pending "prometheus or nats-server is not installed"
  end
  local dir, nats, frontend, worker, prometheus
  local front, work, prom

  setup(function()
    dir = scratch.folder()
    dir.write("recipe.lua", ("return { model = %q, worker = {}, "
      .. "admit = function() end, http = { port = 0 } }"):format(serving.MODEL))
    nats = process.start({ "-a", "127.0.0.1", "-p", "-1" }, {}, "nats-server")
    local url = "nats://127.0.0.1:" .. told(nats, "client connections on 127.0.0.1:(%d+)")
    local function start(...)
      local words = { "run", dir.path .. "/recipe.lua", ... }
      for _, word in ipairs { "--bus", url, "--log-format", "text" } do
        words[#words + 1] = word
      end
      return process.start(words, serving.PLAIN)
    end
    frontend = start "frontend"
    front = at(tonumber(told(frontend, "at http://[%d.]+:(%d+)\n")))
    assert.equal(503, front:get("/health").status)
    worker = start("worker", "--metrics-endpoint-port", "0",
      "--canary-wait", "0.1")
    work = at(tonumber(told(worker, "at http://[%d.]+:(%d+)\n")))
    local config = read("examples/prometheus.yml")
      :gsub("scrape_interval: 5s", "scrape_interval: 1s")
      :gsub("127.0.0.1:8000", "127.0.0.1:" .. front.port)
      :gsub('"127.0.0.1:9101", "127.0.0.1:9102"', '"127.0.0.1:' .. work.port .. '"')
    prometheus = process.start({ "--config.file=" .. dir.write("prometheus.yml", config),
      "--storage.tsdb.path=" .. dir.path .. "/data", "--web.listen-address=127.0.0.1:0" }, {},
      "prometheus")
    prom = at(tonumber(told(prometheus, '"Listening on" address=127.0.0.1:(%d+)')))
  end)

  teardown(function()
    for _, p in ipairs { prometheus or false, worker or false, frontend or false, nats or false } do
      if p then p:remove() end
    end
    dir.remove()
  end)

  local function query(expr)
    local escaped = expr:gsub("[^%w]", function(c) return ("%%%02X"):format(c:byte()) end)
    local r = prom:get("/api/v1/query?query=" .. escaped)
    assert.equal("success", r.json and r.json.status, expr .. ": " .. r.text)
    return r.json.data.result
  end

  -- The sum of an expression's values, once there are any that `test` likes.
  local function value(expr, test)
    local sum
    process.wait_for(30, function()
      local result = query(expr)
      sum = #result > 0 and 0 or nil
      for _, item in ipairs(result) do sum = sum + tonumber(item.value[2]) end
      return sum and test(sum)
    end)
    return sum
  end

  it("says how it is", function()
    assert.is_true(process.wait_for(30, function()
      return front:get("/health").status == 200
    end))
    local h = front:get("/health").json
    assert.equal("healthy", h.status)
    assert.equal(1, #h.instances)
    assert.equal("ready", h.instances[1].status)
    h = work:get("/health").json
    assert.equal("ready", h.status)
    assert.same({ generate = "ready" }, h.endpoints)
    for _, server in ipairs { front, work } do
      assert.equal("live", server:get("/live").json.status)
    end
    assert.equal(404, work:post(COMPLETION, { prompt = "a" }).status)
    assert.equal(404, work:get("/v1/models").status)
    assert.equal(405, work:post("/metrics", {}).status)
    assert.equal(200, work:request("HEAD", "/health").status)
  end)

  it("is scraped: what was asked is there to be seen", function()
    local tokens = 0
    for i = 1, 3 do
      local r = front:post(i < 3 and COMPLETION or CHAT, { prompt = "a", max_tokens = 4,
        messages = { { role = "user", content = "a" } }, ignore_eos = true })
      assert.equal(200, r.status, r.text)
      tokens = tokens + r.json.usage.completion_tokens
    end
    local function equals(n) return function(v) return v == n end end
    assert.equal(2, value("sum(up)", equals(2)))
    for name, n in pairs {
      ['dynamo_frontend_requests_total{status="success"}'] = 3,
      ['dynamo_frontend_requests_total{status="success",endpoint="chat_completions"}'] = 1,
      ["dynamo_frontend_output_tokens_total"] = tokens,
      ["dynamo_frontend_inflight_requests"] = 0,
      ["dynamo_component_requests_total"] = 3,
      ["dynamo_component_request_duration_seconds_count"] = 3,
      ["vllm:generation_tokens_total"] = tokens,
      ["vllm:time_to_first_token_seconds_count"] = 3,
    } do assert.equal(n, value(name, equals(n)), name) end
    assert.is_true(value("dynamo_component_model_load_time_seconds",
      function(v) return v > 0 end) > 0)
    -- A worker's canary sings all the while, and is not among these.
    assert.equal(3, value("dynamo_component_requests_total", equals(3)))
    assert.equal(0, #query 'vllm:num_requests_running{job="perilune-frontend"}')
  end)

  it("has all that the dashboard shows", function()
    local there = names_of(front:get("/metrics").text)
    for name in pairs(names_of(work:get("/metrics").text)) do there[name] = true end
    for _, expr in ipairs(expressions()) do
      for _, name in ipairs(metrics_in(expr)) do assert.is_true(there[name], name) end
      query((expr:gsub("%$__rate_interval", "1m")))
    end
  end)

  it("says that it drains", function()
    worker:signal "TERM"
    assert.equal(0, (worker:wait(20)))
    assert.is_true(process.wait_for(30, function()
      local r = front:get "/health"
      return r.status == 503 and r.json.status == "unhealthy" and #r.json.instances == 0
    end))
    assert.equal(200, front:get("/live").status)
  end)
end)
