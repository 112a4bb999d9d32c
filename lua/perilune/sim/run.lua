-- SPDX-License-Identifier: Apache-2.0
-- sim/run.lua - a recipe's workers, line and hooks on a trace, in virtual time.
--
--     local result = run(recipe, trace, { workers = 8, speed = 2, timing = t, seed = 1 })
--
-- What decides is what decides in a server: the recipe's hooks, the line, the choice of a
-- worker, each engine's scheduler and block manager. Only the device is another: it
-- computes nothing, and a step takes what the timing says. Time stands still while Lua
-- runs; so the same seed brings the same figures.

local pl = require "perilune.ffi"
local balance = require "perilune.fleet.balance"
local chance = require "perilune.recipe.chance"
local cluster = require "perilune.fleet.cluster"
local decide = require "perilune.fleet.decide"
local flow = require "perilune.flow"
local holdings = require "perilune.fleet.holdings"
local hook_view = require "perilune.recipe.hook_view"
local hooks = require "perilune.recipe.hooks"
local line = require "perilune.fleet.line"
local log = require "perilune.log"
local metric = require "perilune.recipe.metric"
local models = require "perilune.sim.models"
local served_models = require "perilune.fleet.served_models"
local traces = require "perilune.sim.trace"
local worker = require "perilune.fleet.worker"
local C, ffi = pl.C, pl.ffi

local Run = {}
Run.__index = Run

local answer_ptr = ffi.typeof "pl_sim_answer *"

-- ---- a request's life ---------------------------------------------------------------

local function params_of(r)
  local p = ffi.new "pl_params"
  C.pl_params_init(p)
  p.temperature, p.max_tokens, p.ignore_eos, p.priority = 0, r.output, 1, r.priority
  return p
end

local function open_seq(self, r)
  local keys, n = traces.keys(r, self.served.terms.block_size)
  local seq = C.pl_seq_open(self.zeros, r.input, params_of(r))
  C.pl_naming_give(self.naming, seq, keys, n)
  return seq
end

local Job = {}
Job.__index = Job

-- The request as hooks see it: of api/job.lua.
function Job:look(_, naming, seq)
  local facts = self.facts
  facts.naming, facts.seq = naming, seq
  return self.view
end

local function job_of(self, i, r)
  local facts = { id = tostring(i), model = self.served.key, tokens = r.input,
    total = r.input, max_tokens = r.output, n = 1, stream = true, priority = r.priority,
    moves = 0, block_size = self.served.terms.block_size }
  return setmetatable({ id = facts.id, log = log, facts = facts,
    plan = { n = 1, stream = true, priority = r.priority, prompt_logprobs = -1 },
    view = hook_view.new(facts) }, Job)
end

local function submit(self, choice, w, seq)
  local reader, number = choice.reader, w.number_in_sim
  if not reader then
    return C.pl_sim_submit(self.sim, number, seq, w.load, choice.n_cached)
  end
  return C.pl_sim_split(self.sim, reader.number_in_sim, number, seq, w.load,
    choice.n_cached, reader.load, choice.reader_cached or 0)
end

-- Finds a worker that takes the sequence, waiting for one if need be; nil: none will.
local function place(self, job, r, seq)
  local choice = { full = {}, deadline = flow.now() + self.recipe.bus_patience,
    seq = seq, prompt = { n_tokens = r.input, max_tokens = r.output } }
  while true do
    local w = line.of(self, self.served):wait(job, choice)
    if not w then return nil end
    local status = submit(self, choice, w, seq)
    if status == 0 then return w end
    if status ~= C.PL_ELIMIT then return nil end      -- it would fit nowhere
    choice.full[w] = true
  end
end

-- Tells the hook `done` what became of it; as a choice, or of the request, which has one.
local function tell_done(self, job, done, result)
  if not done then return end
  job.facts.total = job.facts.tokens + result.tokens
  result.moves, result.choices = 0, { result }
  hooks.tell(self, done, job:look(), result)
end

local function result_of(r, arrived, w, answer)
  local n, first = answer.n_tokens, tonumber(answer.first_ns) * 1e-9
  local gaps = tonumber(answer.last_ns) * 1e-9 - first
  return { index = 0, worker = w.name, tokens = n, cached = answer.n_cached,
    finish = n == r.output and "length" or "error", ttft = first - arrived,
    itl = n > 1 and gaps / (n - 1) or nil }
end

local function live(self, i)
  local r, arrived = self.trace[i], flow.now()
  local job = job_of(self, i, r)
  local done = self.recipe.done             -- that which is there when it is let in
  if self.recipe.admit and hooks.ask(self, "admit", job:look()) then
    return self:count_refused()
  end
  local seq = open_seq(self, r)
  local id = C.pl_seq_id(seq)
  self.placing[id] = seq
  local w = place(self, job, r, seq)
  self.placing[id] = nil
  if not w then
    C.pl_seq_close(seq)
    tell_done(self, job, done, { tokens = 0, cached = 0, finish = "refused" })
    return self:count_refused()
  end
  w.n = w.n + 1
  local ev = flow.await(id, "done")
  flow.forget(id, "done")
  w.n = w.n - 1
  local answer = ffi.cast(answer_ptr, ev.object)
  if done then tell_done(self, job, done, result_of(r, arrived, w, answer)) end
  self:count(i, w, answer)
  line.of(self, self.served):room(w, 1)
end

-- ---- what is counted ----------------------------------------------------------------

function Run:count_refused()
  self.refused = self.refused + 1
  self:is_over()
end

function Run:count(i, w, answer)
  local r = self.trace[i]
  self.ended = self.ended + 1
  self.ttft[self.ended] =
    tonumber(answer.first_ns) * 1e-6 - r.at / self.speed * 1e3
  self.prompt_tokens = self.prompt_tokens + r.input
  self.cached_tokens = self.cached_tokens + answer.n_cached
  self.output_tokens = self.output_tokens + answer.n_tokens
  w.computed = (w.computed or 0) + r.input - answer.n_cached + answer.n_tokens
  self:is_over()
end

function Run:is_over()
  if self.ended + self.refused == #self.trace then flow.stop() end
end

local function share_of_busiest(self)
  local most, all = 0, 0
  for _, w in ipairs(self.served.workers) do
    most, all = math.max(most, w.computed or 0), all + (w.computed or 0)
  end
  return all > 0 and most / all or 0
end

local function spread(list)
  table.sort(list)
  local sum = 0
  for _, v in ipairs(list) do sum = sum + v end
  local function rank(p) return list[math.max(1, math.ceil(#list * p))] or 0 end
  return { mean = #list > 0 and sum / #list or 0, p50 = rank(0.5), p90 = rank(0.9),
    p99 = rank(0.99) }
end

-- The figures: times in ms, reuse and shares from 0 to 1.
function Run:figures()
  local seconds = tonumber(C.pl_sim_now(self.sim)) * 1e-9
  local function gap(share) return C.pl_sim_gap(self.sim, share) * 1e-6 end
  return { requests = self.ended, refused = self.refused, workers = #self.cluster.workers,
    reuse = self.cached_tokens / math.max(self.prompt_tokens, 1),
    ttft_ms = spread(self.ttft), seconds = seconds,
    itl_ms = { mean = C.pl_sim_gap_mean(self.sim) * 1e-6, p50 = gap(0.5),
      p99 = gap(0.99) },
    output_tokens_per_s = self.output_tokens / math.max(seconds, 1e-9),
    busiest_share = share_of_busiest(self), ttft = self.ttft, metrics = self.metrics }
end

-- ---- time ---------------------------------------------------------------------------

-- What flow polls: lets time pass up to what comes first, an event of the engines, the
-- next arrival, or so many ms.
local function poll_of(self)
  local next_at = 1
  return function(_, events, max, timeout_ms)
    local now = tonumber(C.pl_sim_now(self.sim))
    local r = self.trace[next_at]
    local due = r and r.at / self.speed * 1e9 or math.huge
    local n = C.pl_sim_run(self.sim, math.min(due, now + timeout_ms * 1e6), events, max)
    if n == 0 and r and tonumber(C.pl_sim_now(self.sim)) >= math.floor(due) then
      local ev = events[0]
      ev.kind, ev.id, ev.a, ev.b, ev.object = C.PL_EV_REQUEST, next_at, 0, 0, nil
      next_at, n = next_at + 1, 1
    end
    return n
  end
end

local function go(self)
  local function now() return tonumber(C.pl_sim_now(self.sim)) * 1e-9 end
  flow.on("request", function(ev)
    flow.current().on_error = function(message)
      self.failed = message
      flow.stop()
    end
    live(self, ev.id)
  end)
  if self.recipe.roles then flow.spawn(balance.simulate, self, self.served) end
  local done = chance.pretend(now, self.seed)
  local counted = metric.collect(self.metrics)
  local ok, ran, why = pcall(flow.run, nil, poll_of(self), now)
  metric.collect(counted)
  done()
  if not ok then error(ran, 0) end
  if not ran or self.failed then return nil, self.failed or why end
  return self:figures()
end

-- ---- open, close --------------------------------------------------------------------

local function add_worker(self, pool, i)
  local of = self.recipe[pool.name]
  local number, why = models.join(self, of, self.timing)
  if not number then return nil, why end
  self.cluster:add { name = pool.name .. "/" .. i - 1, served = self.served, pool = pool,
    engine = C.pl_sim_engine(self.sim, number), numerics = "sim",
    number_in_sim = number, tells = of.enable_prefix_caching or nil,
    follow = function(index, at)
      return C.pl_sim_follow(self.sim, number, index, at)
    end }
  return true
end

local function open(self)
  local none = function() return true end
  self.cluster = cluster.new(nil, nil, none, function() end)
  self.naming = served_models.naming(self.served.terms)
  self.served.naming = self.naming
  self.sim = C.pl_sim_open()
  local served = self.served
  local n_readers = self.recipe.main == "decode" and self.recipe.prefill.count or 0
  for i = 1, self.n_workers + n_readers do
    local reads = i > self.n_workers
    local ok, why = add_worker(self, reads and served.prefill or served.pool,
      reads and i - self.n_workers or i)
    if not ok then return nil, why end
  end
  return true
end

local function close(self)
  local served = { list = { self.served } }
  for _, seq in pairs(self.placing) do C.pl_seq_close(seq) end
  holdings.close(served)
  C.pl_sim_close(self.sim)
  self.cluster:close()
  decide.close(served)
  C.pl_naming_close(self.naming)
  models.close(self)
end

-- The figures of a resolved recipe on a trace; or nil and why. `o`: workers (of the pool
-- that answers), speed (how
-- much faster requests come than they did), timing (a pl_timing), seed.
return function(recipe, trace, o)
  local pool = recipe[recipe.main]
  local self = setmetatable({ recipe = recipe, trace = trace, timing = o.timing,
    speed = o.speed or 1, seed = o.seed or 0, n_workers = o.workers or pool.count,
    waiting = 0, ended = 0, refused = 0, ttft = {}, prompt_tokens = 0, cached_tokens = 0,
    output_tokens = 0, models = {}, metrics = {}, placing = {},
    zeros = ffi.new("int32_t[?]", trace.longest_input),
    served = served_models.blank(recipe, "sim"),
  }, Run)
  self.served.terms = { block_size = pool.block_size, kv_events = true,
    hash_algo = pool.prefix_caching_hash_algo, hash_seed = worker.hash_seed(),
    max_num_batched_tokens = pool.max_num_batched_tokens }
  local fits, why = traces.keys(trace[1], pool.block_size)
  if not fits then return nil, why end
  local figures
  figures, why = open(self)
  if figures then figures, why = go(self) end
  close(self)
  return figures, why
end
