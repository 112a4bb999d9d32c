-- SPDX-License-Identifier: Apache-2.0
-- api/job.lua - a request under way: what is known of it, and what its hooks are told.
--
--     job:admit(server)             asks `admit`; nil: it is let in
--     job:look(choice)              the request as hooks see it
--     job:tell_done(server, result) tells `done`, once, if it was let in
--
-- A request that was let in is told to the `done` that the recipe had at that moment,
-- whatever replaces it meanwhile: so what one pair of hooks has counted in, the same pair
-- counts out. One that was let in while there was no `done` is told to nobody.

local pl = require "perilune.ffi"
local answer = require "perilune.api.answer"
local hooks = require "perilune.recipe.hooks"
local hook_view = require "perilune.recipe.hook_view"
local identity = require "perilune.api.identity"
local line = require "perilune.fleet.line"
local requests = require "perilune.watch.requests"
local new_table = require "table.new"
local C = pl.C

local M = {}

local Job = {}
Job.__index = Job

local function choices_of(plan)
  local list = new_table(#plan.prompts * plan.n, 0)
  for i, prompt in ipairs(plan.prompts) do
    for k, seq in ipairs(prompt.seqs) do
      local choice = new_table(0, 16)       -- filled by all who have to do with it
      choice.index, choice.prompt, choice.seq = (i - 1) * plan.n + k - 1, prompt, seq
      list[#list + 1] = choice
    end
  end
  return list
end

-- `arrived`: of pl_now_ns; `headers`: for the answer; `who`: api/identity.lua's.
function M.new(server, x, plan, arrived, headers, who)
  local id = identity.settle(who, x, plan.request_id)
  local served = server.models:find(plan.model_key)
  local self = { plan = plan, headers = headers, id = id, arrived = arrived,
    served = served, model = served.key, log = who.log, exchange = x, who = who,
    choices = choices_of(plan), answer = answer.new(plan, served.ctx, id, served.key,
      math.floor(tonumber(C.pl_wall_ns()) / 1e9)) }
  setmetatable(self, Job)
  return self
end

-- Ends a request before its time; `refused`: what to say, or {} for what there is so far.
function Job:cancel(refused)
  if self.over then return end
  self.over = refused
  for _, c in ipairs(self.choices) do
    if c.stream and not c.last then C.pl_stream_cancel(c.stream) end
    if c.relay and not c.last then C.pl_relay_cancel(c.relay) end
  end
  line.release(self)
end

-- ---- hooks --------------------------------------------------------------------------

local function n_tokens(choice)
  local e = requests.so_far(choice)
  return e and e.n_tokens or 0
end

local function facts_of(job)
  local plan = job.plan
  return { id = job.id, model = job.model, tenant = identity.tenant(job.who,
    job.exchange), n = plan.n, stream = plan.stream, priority = plan.priority,
    block_size = job.served.terms.block_size, hints = plan.hints }
end

-- The request as hooks see it: one of its choices, or all that it is. It is one value for
-- all hooks of a request, so it can be a key of a table. `naming`, `seq`: what its blocks
-- are named by, if that is known.
function Job:look(choice, naming, seq)
  local facts = self.facts
  if not facts then
    facts = facts_of(self)
    self.facts, self.view = facts, hook_view.new(facts)
  end
  local tokens, total, moves, max = 0, 0, 0, 0
  for _, prompt in ipairs(choice and { choice.prompt } or self.plan.prompts) do
    tokens, max = tokens + prompt.n_tokens, math.max(max, prompt.max_tokens)
  end
  for _, c in ipairs(choice and { choice } or self.choices) do
    total, moves = total + n_tokens(c), moves + (c.moves or 0)
  end
  facts.tokens, facts.total, facts.max_tokens = tokens, tokens + total, max
  facts.moves, facts.exchange = moves, self.exchange
  facts.naming, facts.seq = naming, seq
  return self.view
end

-- Why the hook `admit` does not let it in; nil: it does.
function Job:admit(server)
  local recipe = server.recipe
  local done = recipe.done
  local no = recipe.admit and hooks.ask(server, "admit", self:look()) or nil
  self.done = not no and done or nil
  return no
end

local function seconds(from, to)
  return math.max(0, (tonumber(to) - tonumber(from)) / 1e9)
end

local function told_of_choice(job, c)
  local e = requests.so_far(c)
  local n = e.n_tokens
  return { index = c.index, worker = c.worker_name, prefill_worker = c.reader_name,
    tokens = n, cached = e.n_cached,
    finish = job.answer.FINISH[e.finish] or "error", moves = c.moves or 0,
    ttft = n > 0 and seconds(job.arrived, e.first_ns) or nil,
    itl = n > 1 and seconds(e.first_ns, e.last_ns) / (n - 1) or nil }
end

-- Of the choices together: the first one's worker, the mean time between tokens.
local function told_of(job, result)
  local choices, gaps, time = {}, 0, 0
  for _, c in ipairs(job.choices) do
    if c.worker_name then
      local told = told_of_choice(job, c)
      choices[#choices + 1] = told
      if told.itl then
        gaps, time = gaps + told.tokens - 1, time + told.itl * (told.tokens - 1)
      end
    end
  end
  local moves = 0
  for _, told in ipairs(choices) do moves = moves + told.moves end
  return { choices = choices, worker = choices[1] and choices[1].worker, moves = moves,
    tokens = result.tokens, cached = result.cached, finish = result.finish,
    why = result.why, ttft = result.first and seconds(job.arrived, result.first) or nil,
    itl = gaps > 0 and time / gaps or nil }
end

-- What has become of it so far: of watch/requests.lua. `finish` and `why`, where they are
-- not how its choices ended.
function Job:outcome(finish, why)
  local result = requests.outcome(self.choices, self.answer.FINISH)
  result.finish, result.why = finish or result.finish or "error", why
  return result
end

-- Tells `done` what became of it, an outcome.
function Job:tell_done(server, result)
  local done = self.done
  if not done then return end
  self.done = nil
  hooks.tell(server, done, self:look(), told_of(self, result))
end

return M
