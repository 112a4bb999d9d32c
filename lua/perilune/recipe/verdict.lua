-- SPDX-License-Identifier: Apache-2.0
-- recipe/verdict.lua - what hooks answer with: pl.reject, pl.retry, pl.fail.
--
-- Plain values that do nothing by themselves; recipe/hooks.lua alone reads them.

local M = {}

local verdicts = {                          -- the metatable that tells one
  __tostring = function(v) return ("pl.%s(%s)"):format(v.kind, v.why or "") end,
}

local function make(kind, fields)
  fields.kind = kind
  return setmetatable(fields, verdicts)
end

local function is_seconds(v)
  return type(v) == "number" and v >= 0 and v < math.huge
end

-- Is it one of these kinds?
function M.is(v, kind)
  return getmetatable(v) == verdicts and v.kind == kind
end

-- Of `admit`, `pick` or `cost`: no, with a status, a reason and perhaps when to come
-- again, in seconds.
function M.reject(status, why, retry_after)
  if type(status) ~= "number" or status % 1 ~= 0 or status < 400 or status > 599 then
    error(("pl.reject: status is '%s'; it wants an integer from 400 to 599"):format(
      tostring(status)), 2)
  end
  if type(why) ~= "string" then error("pl.reject: wants a status and a reason", 2) end
  if retry_after ~= nil and not is_seconds(retry_after) then
    error("pl.reject: retry_after wants seconds", 2)
  end
  return make("reject", { status = status, why = why, retry_after = retry_after })
end

-- Of `migrate`: try again, but not on the worker `avoid`, and only `after` seconds.
function M.retry(how)
  how = how or {}
  if type(how) ~= "table" then error("pl.retry: wants { avoid =, after = }", 2) end
  for key in pairs(how) do
    if key ~= "avoid" and key ~= "after" then
      error(("pl.retry has no '%s'; it wants avoid, after"):format(tostring(key)), 2)
    end
  end
  if how.avoid ~= nil and type(how.avoid) ~= "string" then
    error("pl.retry: avoid wants the name of a worker", 2)
  end
  if how.after ~= nil and not is_seconds(how.after) then
    error("pl.retry: after wants seconds", 2)
  end
  return make("retry", { avoid = how.avoid, after = how.after or 0 })
end

-- Of `migrate`: the request ends here, with an error that says why.
function M.fail(why)
  if type(why) ~= "string" then error("pl.fail: wants a reason", 2) end
  return make("fail", { why = why })
end

return M
