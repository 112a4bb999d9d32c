-- SPDX-License-Identifier: Apache-2.0
-- Routes as rows: which one a request is for, and what is said when there is none.
local route_table = require "perilune.api.route_table"

describe("a table of routes", function()
  local routes = route_table.new {
    { "GET", "/models", "list" },
    { "GET", "/models/{id}", "one" },
    { "POST", "/models/{id}", "change", max_body = 10 },
    { "POST", "/reset", "reset", when = function(server) return server.dev end },
    { "GET", "/limits", "limits" },
    { "POST", "/limits", "limit", when = function(server) return server.dev end },
  }

  local function handler(method, path, server)
    local row, id = routes:find(server or {}, method, path)
    return row and row.handler, id
  end

  it("finds a row by method and path", function()
    assert.equal("list", (handler("GET", "/models")))
    assert.equal("list", (handler("HEAD", "/models")))
    assert.same({ "one", "a" }, { handler("GET", "/models/a") })
    assert.same({ "change", "a" }, { handler("POST", "/models/a") })
  end)

  it("takes all that follows as an id", function()
    assert.same({ "one", "Org/Name" }, { handler("GET", "/models/Org/Name") })
    assert.same({ "one", "{id}" }, { handler("GET", "/models/{id}") })
  end)

  it("takes no empty id", function()
    assert.same({ nil, 404 }, { handler("GET", "/models/") })
  end)

  it("has a row only when its server does", function()
    assert.equal("reset", (handler("POST", "/reset", { dev = true })))
    assert.same({ nil, 404 }, { handler("POST", "/reset") })
    assert.equal("limit", (handler("POST", "/limits", { dev = true })))
    assert.same({ nil, 405 }, { handler("POST", "/limits") })
  end)

  it("says which paths there are, and repeats no more of a long one than 200 bytes", function()
    local _, _, why = routes:find({}, "GET", "/nowhere")
    assert.equal("Not Found: no path '/nowhere' here; there are /limits, /models, /models/{id}", why)
    why = select(3, routes:find({}, "GET", "/" .. ("x"):rep(5000)))
    assert.is_true(#why < 400)
  end)

  it("says which methods a path takes", function()
    local row, status, why, headers = routes:find({}, "PUT", "/models/a")
    assert.same({ nil, 405 }, { row, status })
    assert.equal("Method Not Allowed: /models/a takes GET, HEAD, POST, not PUT", why)
    assert.equal("Allow: GET, HEAD, POST\r\n", headers)
    assert.equal("Allow: GET, HEAD\r\n", (select(4, routes:find({}, "POST", "/limits"))))
  end)

  it("bounds a body by its row", function()
    local row = routes:find({}, "POST", "/models/a")
    assert.is_nil(route_table.too_long(row, 10))
    assert.equal("Content Too Large: POST /models/{id} takes a body of at most 10 bytes, not 11",
      route_table.too_long(row, 11))
    assert.is_nil(route_table.too_long(routes:find({}, "GET", "/models"), 2 ^ 30))
  end)
end)
