-- SPDX-License-Identifier: Apache-2.0
local heap = require "perilune.heap"
local pl = require "perilune.ffi"

local function is_less(a, b) return a.key < b.key end

describe("a heap", function()
  it("gives its items in order, whoever has left from the middle", function()
    local n = 0
    local function roll(max)
      n = n + 1
      return tonumber(pl.C.pl_random_at(7, n, 1) % max) + 1
    end
    for _ = 1, 50 do
      local h, inside = heap.new(is_less), {}
      for _ = 1, 200 do
        if #inside > 0 and roll(3) == 1 then
          local item = table.remove(inside, roll(#inside))
          heap.remove(h, item)
          assert.is_nil(item.place)
        else
          inside[#inside + 1] = { key = roll(60) }
          heap.push(h, inside[#inside])
        end
        local at = 1
        while h[at] and h[at].place == at do at = at + 1 end
        assert.equal(#inside, h.n)
        assert.equal(h.n + 1, at)
      end
      table.sort(inside, is_less)
      for _, item in ipairs(inside) do
        assert.equal(item.key, h[1].key)
        heap.remove(h, h[1])
      end
      assert.same({ 0, nil }, { h.n, h[1] })
    end
  end)
end)
