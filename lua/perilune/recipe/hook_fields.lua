-- SPDX-License-Identifier: Apache-2.0
-- recipe/hook_fields.lua - what hooks see, field by field: a name, its type, its meaning.
--
-- The views have the fields that are listed here; the console, `perilune help` and
-- editors (console/meta.lua) tell of them by these lines. Types are those of LuaLS, which
-- editors read; a row { "name", "()...", doc } is a method.

local hints = require "perilune.recipe.hints"

local M = {}

M.Request = {
  { "id", "string", "the request's id" },
  { "model", "string", "the model's name" },
  { "tenant", "string?", "who sends it: by its key, else the header X-Tenant-Id" },
  { "tokens", "integer", "tokens of the prompt" },
  { "total", "integer", "tokens of the prompt and of the answer so far" },
  { "blocks", "integer", "KV blocks that `total` takes" },
  { "max_tokens", "integer", "most tokens of the answer" },
  { "n", "integer", "choices asked for" },
  { "stream", "boolean", "whether the answer is streamed" },
  { "priority", "integer", "lower goes first" },
  { "headers", "table<string, string>", "by name, whichever the case" },
  { "hints", "perilune.Hints", "what the client says about routing" },
  { "moves", "integer", "workers it has lost so far" },
  { "bucket", "fun(self, k: integer, n: integer): integer",
    "which of n buckets the first k blocks fall into" },
}

M.Worker = {
  { "name", "string", "such as worker/0" },
  { "cached", "integer", "blocks of this prompt that it holds, from the first on" },
  { "sent", "integer", "blocks of this prompt that this frontend sent there lately" },
  { "prefilling", "integer", "blocks of prompts that it has still to read" },
  { "decoding", "integer", "blocks in use" },
  { "free", "integer", "blocks that are not in use" },
  { "capacity", "integer", "blocks it has" },
  { "waiting", "integer", "requests that wait there" },
  { "running", "integer", "requests that run there" },
  { "ttft", "number", "recent mean time to the first token, in seconds; 0: unknown" },
  { "itl", "number", "recent mean time between tokens, in seconds; 0: unknown" },
  { "rank", "integer", "its number within its process" },
  { "tags", "string[]", "the worker's option of that name" },
}

M.Fleet = {
  { "cheapest", "fun(self, req: perilune.Request, cost: perilune.Cost, within?: number): "
    .. "perilune.Worker?",
    "the worker with the lowest cost; within 0.05: up to 5 % above it is as good" },
  { "named", "fun(self, name: string?): perilune.Worker?", "the worker of that name" },
  { "knows", "fun(self, name: string): boolean",
    "whether a worker has that name, even if it cannot take the request now" },
  { "sum", "fun(self, column: string): number", "of a field of all workers" },
  { "min", "fun(self, column: string): number?", "the lowest value of a field" },
  { "filter", "fun(self, test: string|fun(w: perilune.Worker): boolean?): perilune.Fleet",
    "the workers that have a tag or pass a function" },
}

M.Lost = {
  { "name", "string", "the worker's" },
  { "reason", "\"gone\"|\"silent\"|\"reset\"|\"bus away\"", "why it was lost" },
  { "numerics", "string", "identifies its arithmetic; equal ids give equal bits" },
}

local FINISH = "\"stop\"|\"length\"|\"abort\"|\"error\""

M.Result = {
  { "finish", FINISH .. "|\"refused\"", "how it ended; refused: it never began" },
  { "why", "string?", "in words, if it did not end normally" },
  { "tokens", "integer", "tokens of all choices" },
  { "cached", "integer", "prompt tokens found in a cache, the most of a choice" },
  { "moves", "integer", "moves of all choices" },
  { "ttft", "number?", "seconds to the first token" },
  { "itl", "number?", "mean seconds between tokens" },
  { "worker", "string?", "of the first choice; nil: none took it" },
  { "choices", "perilune.Choice[]", "those that a worker took" },
}

M.Choice = {
  { "index", "integer", "from 0" },
  { "worker", "string", "its last worker's name" },
  { "prefill_worker", "string?", "the worker that read its prompt, if another did" },
  { "tokens", "integer", "tokens of the answer" },
  { "cached", "integer", "prompt tokens found in the cache" },
  { "finish", FINISH, "how it ended" },
  { "moves", "integer", "workers it has lost" },
  { "ttft", "number?", "seconds to its first token" },
  { "itl", "number?", "mean seconds between its tokens" },
}

M.Hints = {}
for _, name in ipairs(hints.ORDER) do
  M.Hints[#M.Hints + 1] = { name, hints.TYPES[name] .. "?", hints.SOURCE[name] }
end

-- Of pl, with how the console shows each; those without are for recipes alone.
M.pl = {
  { "version", "string", "the version of perilune", "version" },
  { "now", "fun(): number", "a clock, in seconds", "now()" },
  { "random", "fun(): number", "a number in [0, 1)", "random()" },
  { "lru", "fun(n: integer): perilune.Lru",
    "a table of at most n entries that drops the least recently used", "lru(n)" },
  { "cost", "perilune.Costs", "costs of a request on a worker", "cost.NAME" },
  { "pick", "perilune.Picks", "ways to pick a worker", "pick.NAME" },
  { "queue", "perilune.Queues", "orders of waiting requests", "queue.NAME" },
  { "split", "perilune.Splits", "rules for reading prompts elsewhere", "split.NAME" },
  { "mix", "fun(arms: { [1]: number, [2]: function }[]): function",
    "each hook decides about a share of the requests", "mix { { share, hook }, ... }" },
  { "fleet", "fun(workers: table[]): perilune.Fleet",
    "workers as hooks see them, for a try", "fleet { { name =, ... }, ... }" },
  { "reject", "fun(status: integer, why: string, retry_after?: number): perilune.Reject",
    "admit, pick, cost: no", "reject(status, why, after)" },
  { "retry", "fun(how?: { avoid?: string, after?: number }): perilune.Retry",
    "migrate: continue elsewhere", "retry { avoid =, after = }" },
  { "fail", "fun(why: string): perilune.Fail", "migrate: end the request", "fail(why)" },
  { "keep", "fun(name: string, value: any): any",
    "what the recipe keeps across reloads: pl.keep.NAME, pl.keep.NAME = value", "keep" },
  { "args", "fun(rows: table[]): table<string, any>",
    "the recipe's own flags: { name, default, doc, min =, max =, choices = } each" },
  { "metric",
    "fun(name: string, help: string, buckets?: number[]): perilune.Metric",
    "a metric of the recipe's own" },
  { "load", "fun(name: string): perilune.Recipe", "another recipe, as a table" },
  { "extend", "fun(name: string, changes: perilune.Recipe): perilune.Recipe",
    "another recipe with some values changed" },
  { "log", "perilune.Log", "lines of the log" },
}

M.cost = {
  { "kv", "cost", "Dynamo's formula: blocks to prefill, and blocks in use" },
  { "approx", "cost", "the same by w.sent instead of w.cached" },
  { "backlog", "perilune.Cost", "blocks to prefill before its first token" },
  { "blend", "fun(costs: { [1]: number, [2]: perilune.Cost }[]): perilune.Cost",
    "the sum of costs, each times its weight" },
}

M.pick = {
  { "cheapest", "pick", "the cheapest; of those about as cheap, the first in turn" },
  { "round_robin", "perilune.Pick", "one after the other" },
  { "random", "perilune.Pick", "any" },
  { "least_loaded", "perilune.Pick", "the one with the fewest requests" },
  { "power_of_two", "perilune.Pick", "the less loaded of two random ones" },
  { "direct", "pick", "the one that the request names" },
  { "sticky", "pick", "a session keeps its worker" },
  { "unless_busy", "pick", "the cheapest of those with little to prefill, or none" },
  { "softmax", "pick", "by chance, cheap ones more often" },
}

M.queue = {
  { "fcfs", "perilune.Queue", "first come, first served" },
  { "lcfs", "perilune.Queue", "last come, first served" },
  { "wspt", "perilune.Queue", "short prompts first" },
  { "tenants", "perilune.Queue", "turns by the tokens that each tenant has asked for" },
}

M.split = {
  { "always", "perilune.Split", "whenever there is a prefill worker" },
  { "never", "perilune.Split", "the worker reads all prompts itself" },
  { "by_length", "split", "if much of the prompt is new to the worker" },
  { "by_load", "split", "if a prefill worker has little to read" },
}

-- A field's name; a method's, with those of its parameters.
local function shown(row)
  local method = row[2]:match "^fun(%b())"
  if not method then return row[1] end
  local params = {}
  for name in method:gmatch ", ([%w_]+)%??:" do params[#params + 1] = name end
  return ("%s(%s)"):format(row[1], table.concat(params, ", "))
end

-- The names of some rows, in order, as text of lines of at most `width`.
function M.names(rows, width)
  local lines = { "" }
  for i, row in ipairs(rows) do
    local word = shown(row) .. (i < #rows and "," or "")
    local last = lines[#lines]
    if #last + 1 + #word > width then
      lines[#lines + 1] = word
    else
      lines[#lines] = last == "" and word or last .. " " .. word
    end
  end
  return lines
end

return M
