-- SPDX-License-Identifier: Apache-2.0
-- front_mix.lua - text to measure with: prose made of words, and a mix of English, code
-- and Chinese from this tree and from below.

local pl = require "perilune.ffi"
local tokenizer = require "perilune.model.tokenizer"
local C, ffi = pl.C, pl.ffi

local M = {}

local WORDS = {}
for word in ([[the server reads a prompt in pieces and answers each client as its tokens
  come so nobody waits for a neighbour whose question is longer while memory is found by
  prefix and given back once an answer ends which keeps many streams going at the same
  time over one small machine and leaves most of it to the model itself]]):gmatch "%a+" do
  WORDS[#WORDS + 1] = word
end

-- About n tokens of text that no other k has.
function M.prose(n, k)
  local out = { "Question " .. k .. ":" }
  for i = 1, n - 4 do
    out[#out + 1] = WORDS[tonumber(C.pl_random_at(k, i, 0) % #WORDS) + 1]
  end
  return table.concat(out, " ")
end

local CHINESE = {
  "服务器把长的问题分成几段来读，", "每个客户都能马上得到自己的回答。", "今天的天气很好，我们去公园散步吧。",
  "模型的参数放在内存里，计算由处理器完成。", "他在图书馆里找到了一本关于月亮的旧书。",
  "如果缓存已经满了，最久没有使用的部分会被丢掉。", "城市里的人越来越多，地铁也越来越忙。",
  "请用三句话说明这个方法的优点和缺点。", "山上的雪到了四月才开始慢慢融化，", "孩子们在河边放风筝，笑声传得很远。",
}

local function read(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read "*a"
  f:close()
  return text
end

local function files(list)
  local out, pipe = {}, io.popen("ls " .. list)
  for path in pipe:lines() do out[#out + 1] = read(path) end
  pipe:close()
  return table.concat(out, "\n")
end

-- A third of each, in turns of about `size` bytes, all pieces of whole characters.
local function pieces(size)
  local chinese = {}
  for i = 1, 4000 do
    chinese[i] = CHINESE[tonumber(C.pl_random_at(7, i, 0) % #CHINESE) + 1]
  end
  local out = {}
  local english, code = files "docs/*.md docs/*/*.md LICENSE", files "core/*.c"
  for _, text in ipairs { english, code:sub(1, 200000), table.concat(chinese) } do
    text = text:sub(1, 100000)
    local at = 1
    while at + size <= #text do
      local stop = at + size - 1
      while (text:byte(stop + 1) or 0) >= 128 and text:byte(stop + 1) < 192 do
        stop = stop + 1
      end
      out[#out + 1] = text:sub(at, stop)
      at = stop + 1
    end
  end
  return out
end

-- MB a second on one core, the best of the rounds.
local function speed(text, size, rounds)
  local all, buf, best = pieces(size), ffi.new "pl_buf", 0
  for _ = 0, rounds do
    local bytes, from = 0, C.pl_now_ns()
    for _, piece in ipairs(all) do
      buf.len = 0
      assert(C.pl_text_encode(text, piece, #piece, 1, buf) == 0)
      bytes = bytes + #piece
    end
    best = math.max(best, bytes / tonumber(C.pl_now_ns() - from) * 1e3)
  end
  C.pl_buf_fini(buf)
  return best
end

function M.encode_speed(model, rounds)
  local weights = C.pl_weights_open(model)
  assert(weights ~= nil, ffi.string(C.pl_error_text()))
  local tok = assert(tokenizer.from_gguf(weights))
  C.pl_weights_close(weights)
  return { mbs_2000 = speed(tok.text, 2000, rounds * 4),
    mbs_20000 = speed(tok.text, 20000, rounds * 4) }
end

return M
