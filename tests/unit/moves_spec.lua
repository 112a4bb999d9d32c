-- SPDX-License-Identifier: Apache-2.0
-- Where a choice goes that nobody takes.
local cluster = require "perilune.fleet.cluster"
local fleet = require "support.fleet"
local flow = require "perilune.flow"
local moves = require "perilune.fleet.moves"
local models = require "perilune.fleet.served_models"
local pl = require "perilune.ffi"
local socket = require "support.socket"
local C, ffi = pl.C, pl.ffi

-- An exchange of that process, and its client.
local function exchange(p)
  local client = socket.connect(fleet.must(C.pl_listen(p.rt, "127.0.0.1", 0)))
  client:send_all "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
  return ffi.cast("pl_exchange *", p:event(C.PL_EV_REQUEST).object), client
end

describe("a running choice that every worker refuses", function()
  it("is not passed to and fro for ever, nor without a pause", function()
    C.pl_log_level(C.PL_LOG_ERROR)
    local f = fleet.open()
    local front, served, n_lines = f:process { engines = 1 }, models.blank({ main = "worker" }, "m"), 0
    local c = cluster.new(front.rt, {}, nil, function() end)
    local home = c:add { name = "worker/0", served = served, numerics = "n",
      engine = front.engines[1].engine }
    for i = 1, 2 do
      local w = c:add { name = "worker/" .. i, served = served }
      w.state, w.index = "lost", 0          -- it will be there, but without an engine
      w.peer = front:peer(f:process())
    end
    local server = { cluster = c, waiting = 0, metrics = { moved = function() end },
      recipe = { main = "worker", bus_patience = 1, http = { max_waiting = 9, overload_status = 529 } } }
    local quiet = { info = function() n_lines = n_lines + 1 end, warning = function() end,
      packed = function() return "" end }
    local x, client = exchange(front)
    local st = front:stream({ 1, 2 }, { max_tokens = 1900, ignore_eos = 1 },
      { keep = true })
    local choice = { stream = st.handle, id = st.id,
      seq = tonumber(ffi.cast("uintptr_t", st.seq)) }
    local job = { exchange = x, served = served, log = quiet }
    local ok, refused = nil, nil
    flow.spawn(function()
      flow.listen(st.id, "piece", "lost", "done")
      ok, refused = moves.place(server, job, choice)
      assert.equal("piece", flow.await(st.id, "piece", "done").kind)
      home.state = "draining"
      served.workers[2].state, served.workers[3].state = "ready", "ready"
      served.workers[2].numerics, served.workers[3].numerics = "n", "n"
      C.pl_stream_recall(st.handle)
      while ok and n_lines < 200 do
        local ev = flow.await(st.id, "lost", "done")
        assert.equal("lost", ev.kind)
        ok, refused = moves.move(server, job, choice, ev)
      end
      C.pl_stream_cancel(st.handle)
      flow.await(st.id, "done")
      flow.stop()
    end).on_error = flow.stop
    assert.is_true(flow.run(front.rt))
    assert.is_true(n_lines < 100)           -- two a move
    assert.same({ 529, "overload" }, { refused.status, refused.error_type })
    for _, w in ipairs(served.workers) do assert.equal(0, w.n) end
    C.pl_stream_close(st.handle)
    C.pl_exchange_release(x)
    client:close()
    c:close()
    f:close()
    C.pl_log_level(C.PL_LOG_INFO)
  end)
end)

-- A choice that runs at home, or is refused by another worker before it has a token, and
-- then moves to one that rounds otherwise.
describe("a move to a worker that rounds otherwise", function()
  local function warnings(has_tokens)
    C.pl_log_level(C.PL_LOG_ERROR)
    local f = fleet.open()
    local front, served, n = f:process { engines = 1 }, models.blank({ main = "worker" }, "m"), 0
    local c = cluster.new(front.rt, {}, nil, function() end)
    local home = c:add { name = "worker/0", served = served, numerics = "n",
      engine = front.engines[1].engine }
    local other = c:add { name = "worker/1", served = served }
    other.state, other.index, other.peer, other.numerics = "lost", 0, front:peer(f:process()),
      "m"
    local server = { cluster = c, waiting = 0,
      metrics = { moved = function() end, moved_numerics = function() n = n + 1 end },
      recipe = { main = "worker", bus_patience = 1, http = { max_waiting = 9, overload_status = 529 } } }
    local quiet = { info = function() end, packed = function() return "" end,
      warning = function() n = n + 1 end }
    local x, client = exchange(front)
    local st = front:stream({ 1, 2 }, { max_tokens = 1900, ignore_eos = 1 },
      { keep = true })
    local choice = { stream = st.handle, id = st.id,
      seq = tonumber(ffi.cast("uintptr_t", st.seq)) }
    local job = { exchange = x, served = served, log = quiet }
    local from, to = other, home
    if has_tokens then from, to = home, other end
    flow.spawn(function()
      flow.listen(st.id, "piece", "lost", "done")
      from.state, to.state = "ready", "draining"
      assert(moves.place(server, job, choice))
      if has_tokens then
        assert.equal("piece", flow.await(st.id, "piece", "done").kind)
        C.pl_stream_recall(st.handle)
      end
      local ev = flow.await(st.id, "lost", "done")
      assert.equal("lost", ev.kind)
      from.state, to.state = "draining", "ready"
      assert(moves.move(server, job, choice, ev))
      assert.equal(to, choice.worker)
      C.pl_stream_cancel(st.handle)
      flow.await(st.id, "done")
      flow.stop()
    end).on_error = flow.stop
    assert.is_true(flow.run(front.rt))
    C.pl_stream_close(st.handle)
    C.pl_exchange_release(x)
    client:close()
    c:close()
    f:close()
    C.pl_log_level(C.PL_LOG_INFO)
    return n
  end

  it("is told of, and counted, if there are tokens already", function()
    assert.equal(2, warnings(true))
    assert.equal(0, warnings(false))
  end)
end)
