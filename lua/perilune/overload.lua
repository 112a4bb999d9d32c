-- SPDX-License-Identifier: Apache-2.0
local M = {}
function M.check() end
return M
