-- SPDX-License-Identifier: Apache-2.0
-- agg.lua - one model, one process, one port. Choose it unless you know why not.

return {
  http   = { port = 8000 },
  worker = {},
}
