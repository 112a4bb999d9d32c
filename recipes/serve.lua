-- SPDX-License-Identifier: Apache-2.0
-- serve.lua - one model, one process, one port: what `perilune serve MODEL` runs.
--
-- To change more than flags can, copy it: `perilune run my.lua --model MODEL`.

return {
  http   = { port = 8000 },
  worker = {},
}
