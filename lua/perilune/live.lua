-- SPDX-License-Identifier: Apache-2.0
local M = {}
function M.reload() return nil, "not yet" end
return M
