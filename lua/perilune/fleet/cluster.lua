-- SPDX-License-Identifier: Apache-2.0
-- fleet/cluster.lua - who is here: the workers that a frontend may send to, theirs and
-- ours.
--
-- A worker is a table: name, served (its model: fleet/served_models.lua), and where its
-- engine is (engine; or peer and index; or the server's url). A process's hello brings
-- its workers, another changes them, its loss takes them away. state, as they say
-- themselves (fleet/upstream.lua says it of servers, which may be away):
--
--   ready --drain--> draining (takes nobody new) --time is up--> leaving (gives all back)
--     ^                 |
--     +-----resume------+

local pl = require "perilune.ffi"
local acquainted = require "perilune.fleet.acquainted"
local calls = require "perilune.fleet.calls"
local card = require "perilune.fleet.card"
local cjson = require "cjson.safe"
local counters = require "perilune.fleet.counters"
local decisions = require "perilune.fleet.decisions"
local flow = require "perilune.flow"
local holdings = require "perilune.fleet.holdings"
local log = require "perilune.log"
local sent = require "perilune.fleet.sent"
local C, ffi = pl.C, pl.ffi

local M = {}

local Cluster = {}
Cluster.__index = Cluster

-- A worker that was lost, though its process still says hello, is left alone so long.
local SUSPECT_SECONDS = 2
local REFRESH_SECONDS = 0.5
local LOOK_SECONDS, ASK_AGAIN_SECONDS = 0.01, 1
local MAX_WORKERS, MAX_TAGS = 4096, 64
local MAX_INTERVAL = 2 ^ 24
local MAX_NAME = 4096                       -- bytes: a path may be so long

M.LOST = { [C.PL_LOST_GONE] = "gone", [C.PL_LOST_SILENT] = "silent",
  [C.PL_LOST_LEFT] = "left", [C.PL_LOST_RESET] = "reset", [C.PL_LOST_BUS] = "bus away",
  [C.PL_LOST_REFUSED] = "refused", [C.PL_LOST_RECALLED] = "recalled" }

-- `models`: of fleet/served_models.lua. `matches(model)`: whether to serve what a hello
-- says of its model; nil and why not. `changed()` is called when workers come, go, or
-- change state.
function M.new(rt, models, matches, changed)
  return setmetatable({ rt = rt, models = models, matches = matches, changed = changed,
    workers = {}, of_peer = {}, fetching = {}, refused = {}, said = {}, n_joined = 0 },
    Cluster)
end

-- It takes requests, again or as a new one: who waits for one may ask it.
local function invite(w)
  local line = w.served.line
  if line and w.pool == w.served.pool then line:room(w, math.huge) end
end

local function join(self, w)
  w.streams, w.n, w.suspect_until, w.others = {}, 0, 0, 0
  w.pool = w.pool or w.served.pool
  counters.open(w)
  w.changed, w.number, w.rt = self.changed, self.n_joined, self.rt
  self.n_joined = self.n_joined + 1
  decisions.know(w)
  acquainted.come(w)
  self.workers[#self.workers + 1] = w
  table.insert(w.pool.workers, w)
  holdings.update(w)
  self.changed()
  invite(w)
  return w
end

local function remove(list, item)
  for i, other in ipairs(list) do
    if other == item then return table.remove(list, i) end
  end
end

-- A worker that no hello told of: name, served, pool (of served's), engine (or url:
-- fleet/upstream.lua), numerics, tells (holdings.tells), follow (how one learns what it
-- caches, if not as of any engine), state (ready unless said).
function Cluster:add(w)
  w.state = w.state or "ready"
  return join(self, w)
end

-- After the last request.
function Cluster:close()
  for _, w in ipairs(self.workers) do counters.close(w) end
end

-- ---- other processes ------------------------------------------------------------------

-- What a worker must have in common with those who serve its model already. Another
-- numerics id is no stranger, only the last to be moved to.
local SAME = { "fingerprint", "vocab", "max_model_len", "block_size", "kv_layout",
  "hash_algo", "hash_seed" }

local function is_name(v)
  return type(v) == "string" and #v <= MAX_NAME and not v:find "%c"
end

-- A value of a hello, for the log.
local function shown(v)
  return (is_name(v) or type(v) == "number") and tostring(v) or "malformed"
end

-- A worker that serves it, or reads its prompts; or nil.
local function first_of(served)
  return served.workers[1] or served.prefill.workers[1]
end

-- What keeps a model from the workers of a served one, with both sides' values; or nil.
local function differing(served, model)
  local list, first = {}, first_of(served)
  for _, field in ipairs(SAME) do
    local theirs, ours = model[field], served.terms[field]
    if theirs ~= ours then
      list[#list + 1] = ("its %s is %s, that of %s is %s"):format(field, shown(theirs),
        first and first.name or "the last one", shown(ours))
    end
  end
  return list[1] and table.concat(list, "; ")
end

-- Logs why a process is not taken: once, however often it says hello.
local function refuse(self, peer, name, why)
  if self.said[peer] == why then return end
  self.said[peer] = why
  log.warning("%s is not taken: %s", name, why)
end

-- That model, served from now on, by what its card says.
local function add_served(self, model, bytes)
  local told, tok = card.decode(bytes)
  if not told then return nil, tok end
  if told.names[1] ~= model.names[1] then return nil, "its card is another model's" end
  local served, why = self.models:add(told, tok, model)
  if not served then return nil, why end
  local interval = tonumber(model.stream_interval)
  if interval and interval >= 1 and interval <= MAX_INTERVAL then
    served.stream_interval = interval
  end
  return served
end

-- The served model that a peer's belongs to. Where there is none its card is fetched:
-- once, however many come at a time, for each tokenizer is kept. A peer that does not
-- answer is asked again while it is here, for its hello may never change.
local function served_for(self, peer, model)
  local name = model.names[1]
  while true do
    while self.fetching[name] do flow.sleep(LOOK_SECONDS) end
    local served = self.models:find(name)
    local why = served and differing(served, model)
    if served and not why then return served end
    if served and first_of(served) then return nil, why end
    self.fetching[name] = true
    local bytes, no, unheard = calls.ask(self.rt, peer, "card")
    self.fetching[name] = nil
    if bytes then return add_served(self, model, bytes) end
    if not unheard or not self.of_peer[peer] then return nil, no end
    flow.sleep(ASK_AGAIN_SECONDS)
  end
end

local function is_count(v)
  return type(v) == "number" and v >= 1 and v % 1 == 0
end

local function are_names(list)
  if type(list) ~= "table" then return false end
  for _, name in ipairs(list) do
    if not is_name(name) then return false end
  end
  return true
end

local function well_formed(hello)
  local m = type(hello) == "table" and hello.model
  return type(m) == "table" and is_name(hello.name) and are_names(m.names) and m.names[1]
    and are_names(m.known_as) and is_count(hello.engines) and hello.engines <= 64
    and is_count(m.block_size) and is_count(m.max_num_batched_tokens)
    and (m.pools == nil or are_names(m.pools))
end

-- Why a worker that said hello is not wanted, or nil.
local function unwanted(self, hello)
  if well_formed(hello) then
    local ok, why = self.matches(hello.model)
    return not ok and why or nil
  end
  return ("what it says of its model is not understood (its version is %s, ours %s)")
    :format(shown(hello.version), ffi.string(C.pl_version()))
end

-- One that rounds in another way is taken, but a request is moved to it last, and it
-- reads no prompts for the others.
local function tell_numerics(served, hello)
  local first = first_of(served)
  if not first or first.numerics == hello.model.numerics then return end
  log.warning("%s rounds differently from %s: its numerics are %s, not %s", hello.name,
    first.name, shown(hello.model.numerics), shown(first.numerics))
end

-- What a hello says of tags, as far as it makes sense.
local function tags_of(model)
  local tags = model.tags
  return are_names(tags) and #tags <= MAX_TAGS and tags or nil
end

-- The pool of a process's engine number i, from 0.
local function pool_of(served, hello, i)
  local name = (hello.model.pools or {})[i + 1]
  return name == "prefill" and served.prefill or served.pool
end

local function add_peer(self, peer, hello)
  local served, why = served_for(self, peer, hello.model)
  if not self.of_peer[peer] then return end           -- it left meanwhile
  if not served or #self.workers >= MAX_WORKERS then
    self.of_peer[peer], self.refused[peer] = nil, true
    return refuse(self, peer, hello.name, why or "there are too many workers")
  end
  log.info("%s is here: %s, %s", hello.name, hello.model.names[1],
    hello.host or "somewhere")
  tell_numerics(served, hello)
  for i = 0, hello.engines - 1 do
    table.insert(self.of_peer[peer], join(self, { served = served, peer = peer, index = i,
      pool = pool_of(served, hello, i),
      name = hello.engines > 1 and hello.name .. "." .. i or hello.name,
      numerics = hello.model.numerics, state = hello.state,
      knows_roles = hello.model.pools ~= nil,
      tells = holdings.tells(hello.model), tags = tags_of(hello.model) }))
  end
end

-- Takes the streams away from a worker that wants to go: each is then lost, and moves.
local function recall(w)
  for _, stream in pairs(w.streams) do C.pl_stream_recall(stream) end
end

function M.set_state(w, state)
  if w.state == state then return end
  w.state = state
  if state == "leaving" then recall(w) end
  holdings.update(w)
  w.changed()
  if state == "ready" then invite(w) end
end

-- Offers a worker in the other pool of its model. What runs there goes on.
function M.set_pool(w, pool)
  if w.pool == pool then return end
  remove(w.pool.workers, w)
  w.pool = pool
  table.insert(pool.workers, w)
  acquainted.come(w)
  w.changed()
  invite(w)
end

-- Empties a worker of this process: who runs there may finish within so many seconds, the
-- rest moves to the others. Whether it came to that, and was not resumed.
function M.drain(w, seconds)
  M.set_state(w, "draining")
  local deadline = flow.now() + seconds
  while counters.load(w) > 0 and flow.now() < deadline and w.state == "draining" do
    flow.sleep(LOOK_SECONDS)
  end
  if w.state ~= "draining" then return false end
  M.set_state(w, "leaving")
  return true
end

function M.resume(w)
  M.set_state(w, "ready")
end

local function hello_of(self, peer)
  local buf = ffi.new "pl_buf"
  if C.pl_peer_hello(self.rt, peer, buf) < 0 then return nil end
  return cjson.decode(pl.take(buf))
end

-- What process `peer` says of itself: { id, hello, engines }; nil: it is not here.
Cluster.hello_of = hello_of

local function on_hello(self, peer)
  local said = hello_of(self, peer)
  local hello = said and said.hello
  if type(hello) ~= "table" or not hello.model then return end
  local why = unwanted(self, hello)
  if why then
    return refuse(self, peer, shown(hello.name), why)
  end
  local workers = self.of_peer[peer]
  if not workers then
    self.of_peer[peer] = {}
    add_peer(self, peer, hello)
    said = hello_of(self, peer)             -- it may say something else by now
    hello = said and said.hello
    workers = self.of_peer[peer]
    if not workers or not well_formed(hello) then return end
  end
  for _, w in ipairs(workers) do
    w.name = hello.engines > 1 and hello.name .. "." .. w.index or hello.name
    M.set_pool(w, pool_of(w.served, hello, w.index))
    M.set_state(w, hello.state)
  end
end

local function on_gone(self, peer, why)
  local workers, last = self.of_peer[peer] or {}, false
  self.of_peer[peer], self.refused[peer], self.said[peer] = nil, nil, nil
  for _, w in ipairs(workers) do
    w.was_leaving = w.state ~= "ready" or why == C.PL_LOST_LEFT
    w.state = "lost"
    holdings.update(w)
    remove(self.workers, w)
    remove(w.pool.workers, w)
    counters.close(w)
    sent.forget(w)
    acquainted.gone(w)
    last = last or not first_of(w.served)
    log.info("%s is not here any more: %s", w.name, M.LOST[why] or "?")
  end
  if workers[1] then self.changed() end
  if not last then return end
  local again = self.refused                -- who was a stranger to those may serve now
  self.refused = {}
  for other in pairs(again) do flow.spawn(on_hello, self, other) end
end

-- News of a process: event "peer" of flow.
function Cluster:on_peer(ev)
  if ev.a == 0 then on_hello(self, ev.id) else on_gone(self, ev.id, ev.a) end
end

local function trust_again(w)
  while w.suspect_until > flow.now() do flow.sleep(w.suspect_until - flow.now()) end
  w.suspected = nil
  invite(w)
end

-- A stream of this worker was lost. Its process may be there all the same.
function M.suspect(w)
  w.suspect_until = flow.now() + SUSPECT_SECONDS
  if w.suspected then return end
  w.suspected = true
  flow.spawn(trust_again, w)
end

-- Looks now and then what the engines count; a task.
function Cluster:watch()
  while true do
    flow.sleep(REFRESH_SECONDS)
    for peer, workers in pairs(self.of_peer) do
      counters.refresh(self.rt, peer, workers)
    end
    for _, w in ipairs(self.workers) do counters.tell_room(w) end
  end
end

return M
