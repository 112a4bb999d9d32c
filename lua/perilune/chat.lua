-- SPDX-License-Identifier: Apache-2.0
-- chat.lua - perilune chat: a conversation with any OpenAI server, in a terminal.
--
-- Ctrl-C ends an answer, Ctrl-D the conversation. What is piped in is read line by line.

local client = require "perilune.client"
local engine = require "perilune.ffi"
local flags = require "perilune.flags"
local json = require "cjson.safe"
local C = engine.C

local M = {}

local rows = flags.rows {
  { "url", "http://127.0.0.1:8000", "the server" },
  { "model", nil, "which of its models; unset: its first", kind = "string" },
  { "system", nil, "what the model is told first", kind = "string" },
  { "api_key", nil, "sent as Bearer; unset: $PERILUNE_API_KEY", kind = "string" },
  { "temperature", nil, "unset: the server's", kind = "number", min = 0 },
  { "max_tokens", nil, "most tokens of an answer; unset: the server's", kind = "integer",
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
  }
end

-- The text of one event; nil, why where it is an error.
local function delta(data)
  if data == "[DONE]" then return "" end
  local event = json.decode(data)
  if type(event) ~= "table" then return nil, "the server sent what is no JSON" end
  if type(event.error) == "table" then return nil, tostring(event.error.message) end
  local choice = type(event.choices) == "table" and event.choices[1]
  local message = type(choice) == "table" and choice.delta
  local text = type(message) == "table" and message.content
  return type(text) == "string" and text or ""
end

-- Asks and prints: the answer as far as it came, and why it ended early.
local function ask(chat)
  local parts, raw, broken = {}, {}, nil
  local feed = client.events(function(data)
    local text, why = delta(data)
    broken = broken or why
    if text and text ~= "" then
      parts[#parts + 1] = text
      io.write(harmless(text))
      io.flush()
    end
  end)
  local function on_body(piece)
    if #raw < 64 then raw[#raw + 1] = piece end
    local ok, why = feed(piece)
    if not ok then broken = broken or why end
  end
  local response, why, name = chat.connection:request(
    "POST", "/v1/chat/completions", question(chat), on_body,
    function() return C.pl_terminal_interrupts() > 0 end)
  if response and response.status ~= 200 then
    why = client.error_text(response, table.concat(raw))
  end
  if name == "PL_ECANCELED" then why = nil end
  return table.concat(parts), why or broken
end

local function say(chat, line)
  chat.messages[#chat.messages + 1] = { role = "user", content = line }
  local answer, why = ask(chat)
  if answer ~= "" or not why then
    chat.messages[#chat.messages + 1] = { role = "assistant", content = answer }
    io.write("\n")
  else
    chat.messages[#chat.messages] = nil     -- as if it had not been asked
  end
  if why then
    io.stderr:write("perilune: ", harmless(why), "\n")
    chat.failed = true
  end
end

local commands = {
  ["/reset"] = function(chat) chat.messages = first_messages(chat.options) end,
  ["/quit"] = function(chat) chat.over = true end,
  ["/help"] = function()
    io.write "/reset forgets what was said, /quit ends; Ctrl-C ends an answer\n"
  end,
}

-- A line from the person: text, or nil at the end. Ctrl-C at the prompt begins anew.
local function read_line(prompt)
  while true do
    if prompt then
      io.write "> "
      io.flush()
    end
    local line = io.read "*l"
    if line or C.pl_terminal_interrupts() == 0 then return line end
    io.write "\n"
  end
end

local function converse(chat, prompt)
  while not chat.over do
    local line = read_line(prompt)
    if not line then
      if prompt then io.write "\n" end
      return
    end
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
  if not chat.model then
    chat.model, why = client.first_model(chat.connection)
    if not chat.model then
      io.stderr:write("perilune: ", why, "\n")
      return 1
    end
  end
  local prompt = C.pl_terminal_is(0) ~= 0 and C.pl_terminal_is(1) ~= 0
  if prompt then io.write(chat.model, "   /reset /quit\n") end
  C.pl_terminal_catch(1)
  converse(chat, prompt)
  C.pl_terminal_catch(0)
  chat.connection:close()
  return chat.failed and not prompt and 1 or 0
end

return M
