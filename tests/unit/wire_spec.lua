-- SPDX-License-Identifier: Apache-2.0
-- Sequences and tokens as bytes: what this release writes must be understood by each that
-- comes, and what is not understood must not be lost in silence.
local changes = require "support.changes"
local engine = require "support.engine"
local pl = require "perilune.ffi"
local C, ffi = pl.C, pl.ffi

ffi.cdef [[
void pl_wire_put_seq(pl_buf *out, const pl_seq *s);
pl_status pl_wire_get_seq(const void *data, size_t len, pl_seq **out);
void pl_wire_put_token(pl_buf *out, const pl_token *t, int32_t seq, int64_t waited_ns);
pl_status pl_wire_get_token(const char **at, const char *end, pl_token *t,
                            int64_t *waited_ns, pl_buf *tops);
typedef struct pl_beat {
    uint64_t serial;
    int64_t now_ns;
    uint64_t there;
    pl_engine_stats engines[64];
} pl_beat;
void pl_wire_put_beat(pl_buf *out, uint64_t serial);
void pl_wire_put_engine(pl_buf *out, uint32_t index, const pl_engine_stats *st,
                        int64_t now_ns);
pl_status pl_wire_get_beat(const void *data, size_t len, int64_t now_ns, pl_beat *out);
void pl_wire_put_changes(pl_buf *out, const pl_changes *c);
pl_status pl_wire_get_changes(const void *data, size_t len, pl_changes **out);
]]

local function bytes(hex)
  return (hex:gsub("%s", ""):gsub("%x%x", function(b) return string.char(tonumber(b, 16)) end))
end

local function hex(data)
  return (data:gsub(".", function(c) return ("%02x"):format(c:byte()) end))
end

-- Little-endian, 32 bits each.
local function words(...)
  local list = { ... }
  return ffi.string(ffi.new("int32_t[?]", #list, list), 4 * #list)
end

-- Closes it.
local function written(seq)
  local b = ffi.new "pl_buf"
  C.pl_wire_put_seq(b, seq)
  C.pl_seq_close(seq)
  return pl.take(b)
end

-- The sequence, or nil, why and the status's name.
local function read(data)
  local out = ffi.new "pl_seq *[1]"
  local status = C.pl_wire_get_seq(data, #data, out)
  if status < 0 then return pl.refusal(status) end
  return out[0]
end

local function rows()
  local i = -1
  return function()
    i = i + 1
    local row = C.pl_params_row(i)
    if row ~= nil then return row, ffi.string(row.name) end
  end
end

-- The options of the first release: frozen bytes below hold them.
local FIRST = { temperature = 0.75, top_p = 0.5, min_p = 0.25, top_k = 40, repetition_penalty = 1.5,
  presence_penalty = -0.5, frequency_penalty = 2, max_tokens = 40, min_tokens = 3, logprobs = 2,
  prompt_logprobs = 1, ignore_eos = 1, priority = -7, seed = 0x123456789abcdef0ULL }
-- Those, and a value for each option that came later: one that is not its default.
local ALL = setmetatable({}, { __index = FIRST })
local LISTS = { temperature = 0, resumed = 1, eos = { 1, 2 }, stop_ids = { 3 },
  allowed = { 4, 5, 6 }, bad_words = { { 9 }, { 10, 11 } }, bias = { [12] = -2.5 },
  salt = "k\195\164se" }

-- What the first release writes. These stay as they are: a release that writes something
-- else brings cases of its own.
local SEQUENCES = {
  { "the least there is", { 5 }, {}, "010000000400000005000000" },
  { "defaults", { 5 }, {}, "010000000400000005000000020000000400000000000000" },
  { "every option of the first release", { 5, 6, 7 }, FIRST, [[
    20000000040000000000403f21000000040000000000003f22000000040000000000803e
    2c00004004000000f9ffffff23000000040000002800000024000000040000000000c03f
    2500000004000000000000bf260000000400000000000040270000000400000028000000
    2800000004000000030000002900000004000000020000002a0000000400000001000000
    2b00000004000000010000002d00000008000000f0debc9a78563412010000000c000000
    050000000600000007000000020000000400000000000000]] },
  { "every list", { 5, 6, 7, 8 }, LISTS, [[
    200000000400000000000000010000001000000005000000060000000700000008000000
    020000000400000001000000030000000800000001000000020000000400000004000000
    03000000050000000c000000040000000500000006000000070000001400000001000000
    09000000020000000a0000000b00000006000000080000000c000000000020c009000040
    0000000008000000050000006bc3a473650a0000400f000000726571756573745f696400
    612d3100]], function(seq)
      C.pl_seq_uncounted(seq)
      assert.equal(0, C.pl_seq_label(seq, "request_id\0a-1\0", 15))
    end },
}
local TOKEN = [[
  4c000000090000004d0000000b00000001000000030000001000000015cd5b0700000000
  02000000010000004d000000020000000000c0bf4600000001000000000000bf06000000
  03000000000080c0]]

describe("a sequence on the wire", function()
  local least = bytes(SEQUENCES[1][4])

  for _, case in ipairs(SEQUENCES) do
    it("is understood for ever: " .. case[1], function()
      local seq = engine.seq(case[2], case[3])
      if case[5] then case[5](seq) end
      assert.equal(hex(written(seq)), hex(written(assert(read(bytes(case[4]))))))
    end)
  end

  it("keeps the ticket of its prompt's KV", function()
    local lends = "0b00004008000000f0debc9a78563412"
    local takes = "0c00004014000000f0debc9a78563412efcdab896745230101000000"
    for _, ticket in ipairs { lends, takes } do
      local data = bytes(SEQUENCES[2][4] .. ticket)
      assert.equal(hex(data), hex(written(assert(read(data)))))
    end
    -- Too short to be one, or of more tokens than there are.
    assert.equal(SEQUENCES[2][4],
      hex(written(assert(read(bytes(SEQUENCES[2][4] .. "0b0000400400000001020304"))))))
    assert.equal(SEQUENCES[2][4] .. takes, hex(written(assert(read(bytes(
      SEQUENCES[2][4] .. takes:gsub("01000000$", "ffffff7f")))))))
  end)

  it("has each option that is not its default, and no other", function()
    local plain = written(engine.seq({ 5 }, {}))
    for row, name in rows() do
      local value = ALL[name]
      assert.is_truthy(value, name .. " is new: give ALL a value that is not its default")
      local data = written(engine.seq({ 5 }, { [name] = value }))
      local size = row.kind == C.PL_PARAM_U64 and 8 or 4
      assert.equal(#plain + 8 + size, #data, name)
      assert.is_truthy(data:find(words(row.tag, size), 1, true), name)
      assert.equal(hex(data), hex(written(assert(read(data)))))
    end
  end)

  it("is refused with a part that is not known, unless that may be left out", function()
    for _, tag in ipairs { 0, 10, 31, 44, 999 } do   -- a label and a priority are advice
      local seq, why, name = read(least .. words(tag, 4, 1))
      assert.is_nil(seq)
      assert.equal("PL_EUNSUPPORTED", name, why)
      assert.is_truthy(why:find(("does not know part %d "):format(tag), 1, true), why)
    end
  end)

  it("is as it was without what may be left out", function()
    for _, tag in ipairs { 31, 45, 999 } do
      local seq = assert(read(least .. words(tag + 0x40000000, 5, 1) .. "\0"))
      assert.equal(hex(written(assert(read(least)))), hex(written(seq)))
    end
  end)

  it("is refused if it is malformed", function()
    for why, more in pairs {
      ["seed has 4 bytes, wanted 8"] = words(45, 4, 1),
      ["top_k has 8 bytes, wanted 4"] = words(35, 8, 1, 0),
      ["temperature has 0 bytes, wanted 4"] = words(32, 0),
      ["part 35 of a sequence came twice"] = words(35, 4, 1, 35, 4, 1),
      ["part 1 of a sequence came twice"] = words(1, 4, 1),
      ["part 35 of a sequence has 4 bytes, but 0 came"] = words(35, 4),
      ["ends within a part's head"] = words(35),
      ["top_k must be 0 (disable), or at least 1, got -2"] = words(35, 4, -2),
      ["ignore_eos must be true or false, got 2"] = words(43, 4, 2),
      ["temperature must be non-negative, got nan"] = words(32, 4, 0x7fc00000),
    } do
      local seq, said, name = read(least .. more)
      assert.is_nil(seq)
      assert.equal("PL_EFORMAT", name)
      assert.is_truthy(said:find(why, 1, true), said)
    end
    assert.equal("PL_EFORMAT", (select(3, read(words(35, 4, 1)))))     -- no tokens
  end)
end)

describe("a token on the wire", function()
  local t, waited, tops

  local function take(data)
    local at, start = ffi.new "const char *[1]", ffi.cast("const char *", data)
    at[0], t, waited, tops = start, ffi.new "pl_token", ffi.new "int64_t[1]", ffi.new "pl_buf"
    return C.pl_wire_get_token(at, start + #data, t, waited, tops), at[0] - start
  end
  after_each(function() C.pl_buf_fini(tops) end)

  local function is_whole()
    assert.same({ 9, 77, 11, 1, 3, 16, 2, 1 }, { t.seq, t.token, t.index, t.finish,
      t.stop_reason, t.n_cached, t.n_top, t.n_prompt_top })
    assert.equal(123456789, tonumber(waited[0]))
    assert.same({ 70, 1, -0.5 }, { t.top[1].token, t.top[1].rank, t.top[1].logprob })
    assert.same({ 6, 3, -4 },
      { t.prompt_top[0].token, t.prompt_top[0].rank, t.prompt_top[0].logprob })
  end

  it("is understood for ever", function()
    local data = bytes(TOKEN)
    assert.same({ 0, #data }, { take(data) })
    is_whole()
  end)

  it("may be longer than it is known here", function()
    local data = bytes(TOKEN)
    data = words(#data - 4 + 6) .. data:sub(5) .. "newer!"
    assert.same({ 0, #data }, { take(data) })
    is_whole()
  end)

  it("is refused if it is shorter", function()
    assert.equal(C.PL_EFORMAT, (take(bytes(TOKEN):sub(1, -2))))
  end)
end)

-- What the first release writes: engines 0 and 3.
local BEAT = [[
  0700000000000000
  01000000e800000000000000 0100000002000000000000000200000003000000000000000300000004000000
  00000000040000000500000000000000050000000600000000000000060000000700000000000000070000000800
  000000000000080000000900000000000000090000000a000000000000000a0000000b000000000000000b000000
  0c000000000000000c0000000d000000000000000d0000000e000000000000000e0000000f000000000000000f00
  000010000000000000001000000011000000000000001100000012000000000000001200000064000000000000
  0013000000c800000000000000
  010000001000000003000000 040000000100000000000000]]
local COUNTERS = { "running", "waiting", "waiting_remote", "blocks", "blocks_used",
  "blocks_cached", "steps", "preemptions", "prompt_tokens", "generation_tokens",
  "cached_tokens", "prefix_queries", "prefix_hits", "chunked", "finished", "aborted",
  "prefill_tokens" }

describe("a heartbeat on the wire", function()
  local NOW = 1000000
  local beat = ffi.new "pl_beat"

  local function take(data) return C.pl_wire_get_beat(data, #data, NOW, beat) end

  local function is_whole()
    assert.equal("7ULL 9ULL", tostring(beat.serial) .. " " .. tostring(beat.there))
    local st = beat.engines[0]
    for i, name in ipairs(COUNTERS) do assert.equal(i + 1, tonumber(st[name])) end
    assert.equal(NOW - 100, tonumber(st.last_step_ns))
    assert.equal(NOW - 200, tonumber(st.busy_since_ns))
    assert.equal(1, beat.engines[3].blocks)
    assert.equal(0, beat.engines[3].running)
  end

  it("is understood for ever, and written so", function()
    assert.equal(0, take(bytes(BEAT)))
    is_whole()
    local b = ffi.new "pl_buf"
    C.pl_wire_put_beat(b, beat.serial)
    C.pl_wire_put_engine(b, 0, beat.engines, NOW)
    C.pl_wire_put_engine(b, 3, beat.engines + 3, NOW)
    assert.equal(hex(bytes(BEAT)), hex(pl.take(b)))
  end)

  it("carries each field of pl_engine_stats", function()
    local fields = ffi.string(C.pl_cdef()):match "typedef struct pl_engine_stats (%b{})"
    local n = 0
    for name in fields:gsub("/%*.-%*/", ""):gmatch "([%l_]+)[,;]" do
      n = n + 1
      local st, b = ffi.new "pl_engine_stats", ffi.new "pl_buf"
      st[name] = 5
      C.pl_wire_put_beat(b, 1)
      C.pl_wire_put_engine(b, 0, st, NOW)
      assert.equal(0, take(pl.take(b)), name)
      assert.equal(5, tonumber(beat.engines[0][name]), name)
    end
    assert.equal(#COUNTERS + 3, n)          -- blocks_changed came later
  end)

  it("may say more than is known here", function()
    local data = bytes(BEAT) .. words(9, 5) .. "newer"
    assert.equal(0, take(data))
    is_whole()
    assert.equal(0, take(words(7, 0, 1, 28, 3, 4, 1, 0, 99, -1, -1)))
    assert.equal(1, beat.engines[3].blocks)
  end)

  it("is refused if it is malformed", function()
    for why, data in pairs {
      ["a heartbeat of 4 bytes"] = words(7),
      ["ends in a part's head"] = words(7, 0, 1),
      ["part 1 of a heartbeat has 4 bytes, but 0 came"] = words(7, 0, 1, 4),
      ["counters of an engine in 0 bytes"] = words(7, 0, 1, 0),
      ["counters of an engine in 8 bytes"] = words(7, 0, 1, 8, 0, 0),
      ["engine 64: wanted 0 to 63"] = words(7, 0, 1, 4, 64),
      ["counter 1 of an engine is out of range"] = words(7, 0, 1, 16, 0, 1, -1, 0),
      ["counter 7 of an engine is out of range"] = words(7, 0, 1, 16, 0, 7, 0, -1),
      ["counter 18 of an engine is out of range"] = words(7, 0, 1, 16, 0, 18, 0, -1),
    } do
      assert.equal(C.PL_EFORMAT, take(data))
      local said = ffi.string(C.pl_error_text())
      assert.is_truthy(said:find(why, 1, true), said)
    end
  end)
end)

describe("changes of a cache on the wire", function()
  -- What this release writes.
  local CHANGES = "07000000000000000b00000000000000000000000300000000000000010000001000000001"
    .. "00000000000000efcdab89674523010200000008000000020000000000000001000000080000000300"
    .. "000000000000"
  local WHOLE = "0b000000000000000b00000000000000010000000100000008000000efcdab8967452301"

  local function read_changes(data)
    local out = ffi.new "pl_changes *[1]"
    local status = C.pl_wire_get_changes(data, #data, out)
    if status < 0 then return nil, ffi.string(C.pl_error_text()), status end
    return out[0]
  end

  local function written_changes(c)
    local b = ffi.new "pl_buf"
    C.pl_wire_put_changes(b, c)
    return pl.take(b)
  end

  it("are understood for ever, and written so", function()
    local c = assert(read_changes(bytes(CHANGES)))
    assert.equal(CHANGES, hex(written_changes(c)))
    assert.same({ whole = false, before = 7, after = 11,
      { "cleared" }, { "stored", "1ULL", "81985529216486895ULL" }, { "removed", "2ULL" },
      { "stored", "3ULL" } }, changes.table_of(c))
    c = assert(read_changes(bytes(WHOLE)))
    assert.equal(WHOLE, hex(written_changes(c)))
    assert.same({ whole = true, before = 11, after = 11,
      { "stored", "81985529216486895ULL" } }, changes.table_of(c))
  end)

  it("may say more than is known here, where that may be left out", function()
    local head = words(0, 0, 1, 0, 0)
    assert.same({ whole = false, before = 0, after = 1, { "stored", "5ULL" } },
      changes.table_of(assert(read_changes(head .. words(0x40000009, 3) .. "new"
        .. words(1, 8, 5, 0)))))
    local _, why, status = read_changes(head .. words(9, 3) .. "new")
    assert.equal(C.PL_EUNSUPPORTED, status)
    assert.equal("changes of a kind 9, which is not known here", why)
  end)

  it("are refused if they are malformed", function()
    local head = words(0, 0, 1, 0, 0)
    for why, data in pairs {
      ["changes in 19 bytes"] = head:sub(1, 19),
      ["changes 1 to 0"] = words(1, 0, 0, 0, 0),
      ["changes end in a part's head"] = head .. words(1),
      ["part 1 of changes has 16 bytes, but 8 came"] = head .. words(1, 16, 5, 0),
      ["changes of kind 1 in 4 bytes"] = head .. words(1, 4, 5),
      ["changes of kind 3 in 8 bytes"] = head .. words(3, 8, 5, 0),
    } do
      local c, said, status = read_changes(data)
      assert.is_nil(c)
      assert.same({ C.PL_EFORMAT, why }, { status, said })
    end
  end)
end)

describe("the table of the sampler's options", function()
  it("has a row for each field of pl_params, and a tag of its own", function()
    local fields = ffi.string(C.pl_cdef()):match "typedef struct pl_params (%b{})"
    local wanted, names, tags = {}, {}, {}
    for name in fields:gsub("/%*.-%*/", ""):gmatch "([%l_]+)[,;]" do wanted[name] = true end
    for row, name in rows() do
      assert.is_nil(tags[row.tag], name)
      names[name], tags[row.tag] = true, name
      assert.equal(row.offset, ffi.offsetof("pl_params", name))
      assert.is_true(bit.band(row.tag, 0x3fffffff) >= 32, name)
    end
    assert.same(wanted, names)
  end)

  it("has defaults within its bounds", function()
    local p = ffi.new "pl_params"
    C.pl_params_init(p)
    for row, name in rows() do
      assert.is_true(row.initial >= row.low and row.initial <= row.high, name)
      assert.equal(row.initial, tonumber(p[name]))
    end
    local seq = engine.seq({ 5 }, {})
    assert.is_truthy(seq ~= nil)
    C.pl_seq_close(seq)
  end)
end)
