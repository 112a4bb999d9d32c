# SPDX-License-Identifier: Apache-2.0
"""Writes conversations.json: chats as clients send them, and the prompts that they are.

Jinja renders them, set up as in jinja.py, from the messages as vLLM and transformers hand them over:
`hand_over` and `prompt` below say how. `form` is how the template wants contents, by reading it.

    pip install jinja2==3.1.6 && python3 tests/golden/conversations.py
"""
import copy
import json
import os

from jinja import ENV

TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
REASONING = ("reasoning_content", "thinking", "reasoning")
MARK = "THE_END_OF_THE_MESSAGE "


def content_of(message, form):
    content = message.get("content")
    parts = content if isinstance(content, list) else [] if content is None else [content]
    texts = [p if isinstance(p, str) else p.get(TEXTS[p["type"]]) for p in parts]
    texts = [t for t in texts if t is not None]
    if form == "string" or form == "sent" and not isinstance(content, list):
        return "\n".join(texts)
    return [{"type": "text", "text": t} for t in texts]


def calls_of(calls):
    out = []
    for call in calls:
        call = {k: v for k, v in call.items() if v is not None}
        function = {k: v for k, v in call["function"].items() if v is not None}
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = json.loads(arguments) if arguments.strip() else None
        function["arguments"] = {} if arguments is None else arguments
        out.append({**call, "function": function})
    return out


def hand_over(messages, form):
    out = []
    for message in messages:
        m = {"role": message["role"], "content": content_of(message, form)}
        m.update({k: v for k, v in message.items() if k not in m and v is not None})
        if m.get("tool_calls") == []:
            del m["tool_calls"]
        elif "tool_calls" in m:
            m["tool_calls"] = calls_of(m["tool_calls"])
        reasoning = next((m[k] for k in REASONING if k in m), None)
        if reasoning is not None:
            m.update({k: reasoning for k in REASONING if k not in m})
        out.append(m)
    return out


def mark(message):
    if isinstance(message["content"], str):
        message["content"] += MARK
    else:
        message["content"][-1]["text"] += MARK


def prompt(request, form):
    request = copy.deepcopy(request)
    messages = hand_over(request["messages"], form)
    continued = request.get("continue_final_message")
    if continued:
        mark(messages[-1])
    text = ENV.from_string(request["chat_template"]).render(
        messages=messages, tools=request.get("tools") or None, documents=request.get("documents"),
        add_generation_prompt=request.get("add_generation_prompt", True),
    )
    if not continued:
        return text
    at = text.rindex(MARK.strip())
    head = text[:at] if text[at:].startswith(MARK) else text[:at].rstrip()
    return head.replace(MARK, "").replace(MARK.strip(), "")  # transformers leaves earlier ones


def user(content):
    return {"role": "user", "content": content}


def said(content, **more):
    return {"role": "assistant", "content": content, **more}


def call(name="clock", **function):
    return {"id": "c7", "type": "function", "function": {"name": name, **function}}


def texts(*parts):
    return [{"type": "text", "text": p} for p in parts]


CALLED = ("{% for m in messages %}{% if 'tool_calls' in m %}{{ m.tool_calls[0].function.name }}!{% else %}"
          "{{ m.role }}: {{ m.content }}{% endif %}\n{% endfor %}")
ADDED = "{% for m in messages %}{{ '[' + m.role + ']' + m['content'] + '\n' }}{% endfor %}"
LOOKED = "{% for m in messages %}{% if 'so:' in m.content %}{{ m.content.split('so:')[1] }}{% else %}{{ m.content }}{% endif %};{% endfor %}"
WALKED = "{% for m in messages %}{{ m.role }}{% for part in m['content'] %}<{{ part['text'] }}>{% endfor %}{% endfor %}"
EITHER = ("{% for m in messages %}{% if m.content is string %}={{ m.content }}{% else %}"
          "{% for p in m.content if p.type == 'text' %}+{{ p.text }}{% endfor %}{% endif %}{% endfor %}")
ARGUMENTS = ("{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.name }}("
             "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}){{ c }}{% endfor %}{% endfor %}")
REASONED = "{% for m in messages %}{{ m.reasoning_content }}/{{ m.reasoning }}/{{ m.thinking }}/{{ 'reasoning' in m }};{% endfor %}"
CLOSED = "{% for m in messages %}({{ m.role }}) {{ m.content }} (over)\n{% endfor %}"
TRIMMED = "{% for m in messages %}({{ m.role }}) {{ m.content | trim }} (over)\n{% endfor %}"
MACRO = ("{% macro show(what, how='') %}{% if what is string %}{{ what }}{% else %}{% for piece in what %}"
         "{{ how }}{{ piece.text }}{% endfor %}{% endif %}{% endmacro %}")
TALK = [user("Ahoy"), said("Ahoy yourself", refusal=None, annotations=None, tool_calls=[]), user("More")]

CASES = [
    ("an empty list of calls", "string", CALLED, TALK),
    ("calls that are null", "string", CALLED, [user("a"), said("b", tool_calls=None), user("c")]),
    ("calls, none and one", "string", CALLED, [said("a", tool_calls=[]), said("", tool_calls=[call()])]),
    ("keys that are null", "string", "{% for k in messages[0] %}{{ k }} {% endfor %}", [said("x", refusal=None, name="n", audio=None)]),
    ("content that is null", "string", ADDED, [user("a"), said(None, tool_calls=[call()]), {"role": "tool", "content": None}]),
    ("no content", "string", LOOKED, [user("so: a"), {"role": "assistant", "tool_calls": [call()]}, {"role": "user"}]),
    ("content that is null, for a template that walks", "parts", WALKED, [user("a"), said(None, tool_calls=[call()]), user("b")]),
    ("arguments that are empty", "string", ARGUMENTS, [said("", tool_calls=[call(arguments="")])]),
    ("arguments that are null", "string", ARGUMENTS, [said("", tool_calls=[call(arguments=None), call(arguments=" null ")])]),
    ("no arguments", "string", ARGUMENTS, [said("", tool_calls=[call(), call(arguments=" \n")])]),
    ("arguments in their order", "string", ARGUMENTS, [said("", tool_calls=[call(arguments='{"z": 1.0, "a": [2, null]}')])]),
    ("arguments as an object", "string", ARGUMENTS, [said("", tool_calls=[call(arguments={"z": 1})])]),
    ("keys of a call that are null", "string", ARGUMENTS, [said("", tool_calls=[{"id": None, "index": None, **call(arguments="{}")}])]),
    ("no tools", "string", "{{ tools is none }} {{ tools is defined }} {{ tools }}", TALK),
    ("no documents", "string", "{{ documents is none }} {{ documents is defined }}{% if documents %}!{% endif %}", TALK),
    ("an empty list of tools", "string", "{{ 'some' if tools is not none else 'none' }}", TALK, {"tools": []}),
    ("tools in their own words", "string", "{{ tools | tojson }}", TALK,
     {"tools": [{"type": "function", "function": {"parameters": {"type": "object", "properties": {"z": {"default": None}, "a": {}}}, "name": "f"}}]}),
    ("integers beyond 64 bits", "string", "{{ tools | tojson }}{{ messages[0].tool_calls[0].function.arguments.n }}",
     [said("", tool_calls=[call(arguments='{"n": -12345678901234567890123}')])],
     {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"minimum": -9223372036854776000, "maximum": 18446744073709551615}}}]}),
    ("a filter that the template does not reach", "string",
     "{% for m in messages %}{% if m.spec is mapping %}{{ m.spec | to_yaml }}{% elif m.name and m.name is an_alias %}!{% else %}{{ m.content }}{% endif %}{% endfor %}",
     [said("a", spec=None, name=None)]),
    ("parts, joined", "string", ADDED, [user(texts("one", "two")), said("three")]),
    ("parts of a refusal", "string", ADDED, [said([*texts("Hm."), {"type": "refusal", "refusal": "No."}])]),
    ("parts of a refusal, walked", "parts", WALKED, [said([{"type": "refusal", "refusal": "No."}, *texts("Sorry.")])]),
    ("parts of other names", "string", ADDED, [user([{"type": "input_text", "text": "in"}]), said([{"type": "output_text", "text": "out"}])]),
    ("parts that say nothing", "string", ADDED, [user([{"type": "text", "text": None}, *texts("a"), {"type": "refusal"}, "b"])]),
    ("parts with more in them", "parts", "{% for m in messages %}{% for p in m.content %}{{ p }}{% endfor %}{% endfor %}",
     [user([{"cache_control": {"type": "ephemeral"}, "type": "text", "text": "a"}])]),
    ("parts, walked", "parts", WALKED, [user(texts("The sea", " is")), said("wide")]),
    ("parts, walked by another name", "parts",
     "{% set log = messages[1:] %}{% for turn in log | list %}{% set c = turn.get('content') %}{% for p in c %}<{{ p.text }}>{% endfor %}{% endfor %}",
     [user("no"), user(texts("a", "b")), said("c")]),
    ("parts by their number", "parts", "{% for m in messages %}{{ m.content[0].text }}{{ m['content'][-1]['text'] }};{% endfor %}", [user("a"), user(texts("b", "c"))]),
    ("the first part of the last message", "parts", "{% set m = messages | last %}{{ (m.content | first).text }}", [user(texts("a", "b"))]),
    ("parts or a string", "sent", EITHER, [user("a"), user(texts("b", "c")), said(None)]),
    ("parts in a macro", "sent", MACRO + "{% for m in messages %}{{ show(m.content) }}{{ show(how='*', what=m.content) }}{% endfor %}", [user(texts("a", "b")), said("c")]),
    ("parts by their number or a string", "string", "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }}{% endfor %}", [user(texts("a", "b"))]),
    ("letters of a string", "string", "{% for m in messages %}{{ m.content[0] }}{{ m.content[0].upper() }}{{ m.content.split(' ')[0] }}{% endfor %}", [user("ab cd")]),
    ("reasoning", "string", REASONED, [user("a"), said("b", reasoning="r")]),
    ("reasoning of the older name", "string", REASONED, [said("b", reasoning_content="r", reasoning=None), said("c", reasoning="")]),
    ("reasoning of two names", "string", REASONED, [said("b", reasoning="r", thinking="t"), said("c", reasoning=None, reasoning_content=None)]),
    ("a prefill that ends with blanks", "string", CLOSED, [user("6*7?"), said("It is \n ")], {}, True),
    ("a prefill that is trimmed", "string", TRIMMED, [user("6*7?"), said("\n It is \n ")], {}, True),
    ("a prefill of nothing", "string", CLOSED, [user("a"), said("")], {}, True),
    ("a prefill of null", "string", CLOSED, [user("a"), said(None)], {}, True),
    ("a prefill of nothing, trimmed", "string", TRIMMED, [user("a"), said("  ")], {}, True),
    ("a prefill whose text comes again", "string", "{% for m in messages %}{{ m.content }}|{% endfor %}a: done", [user("b"), said("a")], {}, True),
    ("a prefill that is shown twice", "string", "{{ messages[-1].content }} {{ messages[-1].content }}.", [said("a ")], {}, True),
    ("a prefill in parts", "string", CLOSED, [user("a"), said(texts("b", "c "))], {}, True),
    ("a prefill in parts, walked", "parts", WALKED, [user("a"), said(texts("b", "c "))], {}, True),
]


def main():
    out = []
    for name, form, template, messages, *more in CASES:
        request = {"messages": messages, "chat_template": template, **(more[0] if more else {})}
        if len(more) > 1:
            request.update(add_generation_prompt=False, continue_final_message=True)
        out.append({"name": name, "request": request, "prompt": prompt(request, form)})
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "conversations.json")
    with open(path, "w", encoding="utf-8") as file:
        file.write("[\n" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in out) + "\n]\n")


if __name__ == "__main__":
    main()
