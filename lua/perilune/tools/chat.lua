-- SPDX-License-Identifier: Apache-2.0
-- tools/chat.lua - perilune chat: a conversation with any OpenAI server, in a terminal.
--
-- Ctrl-C ends an answer, Ctrl-D the conversation. At a terminal lines are edited and
-- kept, what is pasted is one message, and answers are wrapped by words and followed by
-- their speed. What is piped in is read line by line.

local client = require "perilune.tools.http_client"
local engine = require "perilune.ffi"
local flags = require "perilune.recipe.command_line"
local json = require "cjson.safe"
local lines = require "perilune.tools.terminal_line"
local wrap = require "perilune.tools.wrap"
local C = engine.C

local M = {}

local rows = flags.rows {
  { "url", "http://127.0.0.1:8000", "the server" },
  { "model", nil, "which of its models; unset: its first", kind = "string" },
  { "system", nil, "the system message", kind = "string" },
  { "api_key", nil, "sent as Bearer; unset: $PERILUNE_API_KEY", kind = "string" },
  { "temperature", nil, "unset: the server's", kind = "number", min = 0 },
  { "max_tokens", nil, "most tokens in an answer; unset: the server's", kind = "integer",
    min = 1 },
  { "timeout", 300, "seconds to wait for the next piece", min = 1, max = 86400 },
}

-- A model may print anything: what would move the terminal's cursor is left out.
local function harmless(text)
  return (text:gsub("[%z\1-\8\11-\31\127]", ""):gsub("\194[\128-\159]", ""))
end

local function first_messages(options)
  return options.system and { { role = "system", content = options.system } } or {}
end

local function question(chat)
  return json.encode {
    model = chat.model, messages = chat.messages, stream = true,
    temperature = chat.options.temperature, max_tokens = chat.options.max_tokens,
    stream_options = { include_usage = true },
  }
end

-- The text of one event, and its count of tokens if it has one; nil, why where it is an
-- error.
local function delta(data)
  if data == "[DONE]" then return "" end
  local event = json.decode(data)
  if type(event) ~= "table" then return nil, "the server sent invalid JSON" end
  if type(event.error) == "table" then return nil, tostring(event.error.message) end
  local choice = type(event.choices) == "table" and event.choices[1]
  local message = type(choice) == "table" and choice.delta
  local text = type(message) == "table" and message.content
  local usage = type(event.usage) == "table" and event.usage.completion_tokens
  return type(text) == "string" and text or "", tonumber(usage or nil)
end

-- How an answer is shown: as it comes, or at a terminal wrapped. show(text), and show()
-- at the end.
local function display(chat)
  local width = chat.line and C.pl_terminal_width(1) or 0
  local w = width > 0 and wrap.new(width, function(text)
    return C.pl_terminal_columns(text, #text)
  end)
  return function(text)
    if w then text = text and w:push(text) or w:flush() end
    io.write(text or "")
    io.flush()
  end
end

local function now()
  return tonumber(C.pl_now_ns()) / 1e9
end

-- "120 tokens, 34.2 tokens/s": of those after the first, which waits for the prompt.
local function speed(n, first, last)
  if not n or not first then return nil end
  local text = ("%d token%s"):format(n, n == 1 and "" or "s")
  if n < 2 or last <= first then return text end
  return ("%s, %.1f tokens/s"):format(text, (n - 1) / (last - first))
end

-- Asks and prints: the answer as far as it came, why it ended early, and its speed.
local function ask(chat)
  local parts, raw, broken = {}, {}, nil
  local show, first, last, tokens = display(chat), nil, nil, nil
  local feed = client.events(function(data)
    local text, more = delta(data)
    if not text then
      broken = broken or more
    elseif text ~= "" then
      last = now()
      first = first or last
      parts[#parts + 1] = text
      show(harmless(text))
    end
    tokens = text and more or tokens
  end)
  local function on_body(piece)
    if #raw < 64 then raw[#raw + 1] = piece end
    local ok, why = feed(piece)
    if not ok then broken = broken or why end
  end
  local response, why, name = chat.connection:request(
    "POST", "/v1/chat/completions", question(chat), on_body,
    function() return C.pl_terminal_interrupts() > 0 end)
  show()
  if response and response.status ~= 200 then
    why = client.error_text(response, table.concat(raw))
  end
  if name == "PL_ECANCELED" then why = nil end
  return table.concat(parts), why or broken, speed(tokens, first, last)
end

local function say(chat, line)
  chat.messages[#chat.messages + 1] = { role = "user", content = line }
  local answer, why, measured = ask(chat)
  if answer ~= "" or not why then
    chat.messages[#chat.messages + 1] = { role = "assistant", content = answer }
    io.write("\n")
  else
    chat.messages[#chat.messages] = nil     -- as if it had not been asked
  end
  if chat.line and measured then io.write("\27[2m(", measured, ")\27[0m\n") end
  if why then
    io.stderr:write("perilune: ", harmless(why), "\n")
    chat.failed = true
  end
end

local commands = {
  ["/reset"] = function(chat) chat.messages = first_messages(chat.options) end,
  ["/quit"] = function(chat) chat.over = true end,
  ["/help"] = function()
    io.write "/reset starts over, /quit exits; Ctrl-C stops an answer\n"
  end,
}

-- What the person says next: text, or nil at the end. Ctrl-C at the prompt begins anew.
local function read_line(chat)
  while true do
    local text, again
    if chat.line then
      text, again = chat.line:read "> "
      if text and text:find "%S" then chat.line:remember(text) end
    else
      text = io.read "*l"
      again = C.pl_terminal_interrupts() > 0
    end
    if text or not again then return text end
  end
end

local function converse(chat)
  while not chat.over do
    local line = read_line(chat)
    if not line then return end
    C.pl_terminal_interrupts()    -- those before the question do not end the answer
    local command = line:match "^/%a*$"
    if command then
      local known = commands[command] or commands["/help"]
      known(chat)
    elseif line:match "%S" then
      say(chat, line)
    end
  end
end

-- At a terminal, a line to edit; true, or nil and why not.
local function open_line(chat)
  if C.pl_terminal_is(0) == 0 or C.pl_terminal_is(1) == 0 then return true end
  local why
  chat.line, why = lines.open "chat_history"
  if not chat.line then return nil, why end
  io.write(chat.model, "   /reset /quit\n")
  io.flush()
  return true
end

function M.run(words, complain)
  if words[1] == "--help" then
    print("perilune chat: talk to a server\n\n" .. flags.help(rows))
    return 0
  end
  local options, why, hint = flags.options(rows, words)
  if not options then return complain(why, hint or "perilune chat --help") end
  local url, bad = client.parse_url(options.url)
  if not url then return complain(bad) end
  local chat = {
    options = options, messages = first_messages(options), model = options.model,
    connection = client.connection(url, client.headers(options), options.timeout * 1000),
  }
  local ok = true
  if not chat.model then
    chat.model, why = client.first_model(chat.connection)
    ok = chat.model ~= nil
  end
  if ok then ok, why = open_line(chat) end
  if not ok then
    io.stderr:write("perilune: ", why, "\n")
    return 1
  end
  C.pl_terminal_catch(1)
  converse(chat)
  C.pl_terminal_catch(0)
  if chat.line then chat.line:close() end
  chat.connection:close()
  return chat.failed and not chat.line and 1 or 0
end

return M
