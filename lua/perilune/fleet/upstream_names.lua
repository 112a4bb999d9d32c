-- SPDX-License-Identifier: Apache-2.0
-- fleet/upstream_names.lua - whether a server's KV events speak of blocks by the names
-- that we give them.
--
-- Names come from the tokens, the block size, the hash and its seed. Where one of these
-- differs nothing ever matches, and nothing else tells: so when a server has answered a
-- few prompts its events must have one of them. (Not each: what it had cached before we
-- listened is not told again.)

local pl = require "perilune.ffi"
local flow = require "perilune.flow"
local log = require "perilune.log"
local C, ffi = pl.C, pl.ffi

local M = {}

local seq_ptr, new_key = ffi.typeof "pl_seq *", ffi.typeof "uint64_t[1]"
local MAX_KEYS = 8192
local keys = ffi.new("uint64_t[?]", MAX_KEYS)
local depths = ffi.new "int32_t[8192]"      -- of as many workers as an index has

-- Events are on their way for so long at most; so many prompts are looked for.
local LOOK_SECONDS, PROMPTS = 1, 5

local NOTHING = "%s: no KV events have come from %s; it is taken to hold nothing"
local OTHERS = "%s: its KV events have none of the prompts that it has just read; unless "
  .. "it had them before, its block size, hash, PYTHONHASHSEED or chat template differs "
  .. "from ours"

local function look(w, key)
  flow.sleep(LOOK_SECONDS)
  local number, names = w.number_in_index, w.names
  if not number or names.settled then return end
  C.pl_route_match(w.served.index, key, 1, depths)
  names.missed = names.missed + 1
  names.settled = depths[number] > 0 or names.missed == PROMPTS
  if depths[number] > 0 or not names.settled then return end
  local has_any = C.pl_route_held(w.served.index, number) > 0
  log.warning(has_any and OTHERS or NOTHING, w.name, w.events)
end

-- Worker `w` has answered this choice's prompt.
function M.check(w, choice)
  local naming = w.served.naming
  w.names = w.names or { asked = 0, missed = 0, settled = false }
  if not w.tells or w.names.asked == PROMPTS or not naming or not choice.seq then
    return
  end
  local n = C.pl_naming_keys(naming, ffi.cast(seq_ptr, choice.seq), 0, keys, MAX_KEYS)
  if n == 0 then return end                 -- it has no full block
  w.names.asked = w.names.asked + 1
  flow.spawn(look, w, new_key(keys[n - 1]))
end

return M
