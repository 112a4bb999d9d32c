-- SPDX-License-Identifier: Apache-2.0
local M = {}
function M.open() end
function M.ask(server, name, job)
  if name == "migrate" then
    if job.moves >= server.recipe.migration_limit then
      return { fail = "Migration limit exhausted" }
    end
    return {}
  end
end
return M
