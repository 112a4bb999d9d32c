-- SPDX-License-Identifier: Apache-2.0
local pl = require "perilune.ffi"
return function(word)
  if word == "version" then print("perilune " .. pl.ffi.string(pl.C.pl_version())) end
  return 0
end
