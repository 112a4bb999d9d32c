# SPDX-License-Identifier: Apache-2.0
"""What generate.py works on: the text its tokenizers learn from, the strings they are tried on, the
chat templates with their conversations, and the models."""

# Prose, code, figures and other scripts in small doses: enough for a few hundred merges.
CORPUS = """
The moon goes round the earth, and the point of an orbit that comes closest to the moon has a name.
A satellite that comes too close falls; one that stays too far away sees nothing of the craters below.
She had counted the craters twice and written the numbers down, because nobody had believed her before.
What is the shortest way from the harbour to the lighthouse? Follow the water until the water follows you.
A sailor who reads the stars needs no map, but a sailor who has a map needs no luck either.
There were seven lamps on the pier, and the keeper lit them one after another when the evening came.
When the engine starts, it reads the file once, then it waits for somebody to ask it something.
Every answer is made of pieces, and every piece is chosen from all the pieces that might have come next.
The cook said that the soup wasn't ready; the guests said they'd wait; the soup said nothing at all.
I don't think it's the same clock, they're never wound at the same hour, and we've heard both of them strike.
It couldn't be helped, he'll come tomorrow, I'm sure of that, and you'd better be there when he does.
In 1969 there were 3 men, 1 ship and 384400 kilometres; in 2026 there are 8 ships and 12 stations.
Add 2 to 2 and get 4, add 20 to 20 and get 40, add 200 to 200 and get 400; the rest is 0.5 or 99.9 percent.
Either the worker takes the next request, or the request waits in the queue until the worker has room for it.
The cache remembers what was computed, the index remembers where it lies, and the hash remembers its name.
local function orbit(body, radius)
  local period = 2 * pi * sqrt(radius ^ 3 / body.mass)
  return { radius = radius, period = period }
end
static int compare(const void *left, const void *right)
{
    const struct item *a = left, *b = right;
    if (a->size != b->size) return a->size < b->size ? -1 : 1;
    return strcmp(a->name, b->name);
}
def total(values):
    result = 0
    for value in values:
        result += value
    return result
{"name": "orbiter", "mass": 1290, "fuel": [310, 290, 40], "crew": null, "landed": false}
SELECT name, mass FROM ships WHERE mass > 1000 ORDER BY name LIMIT 10;
| ship | mass | fuel |
|------|-----:|-----:|
| one  | 1290 |  640 |
# A heading
* a list, with `code` and *emphasis*
* another item, see https://example.com/moon?phase=full
Le phare s'allume à la tombée de la nuit, et la mer répète ce que dit le vent.
Der Mond ist aufgegangen, die goldnen Sternlein prangen am Himmel hell und klar.
La luna llena ilumina el puerto; ¿quién vigila el faro esta noche?
Луна светит над морем, и корабль идёт домой.
月亮升起来了，海面上一片银光。我们在灯塔下面等船回来。
月が海の上に出ている。灯台の光が船を導く。
달이 바다 위에 떠 있다. 등대가 배를 기다린다.
""".strip().splitlines(keepends=True)

STRINGS = [
    "", " ", "  ", "\n", "\n\n\n", "\t", "x", "The moon", " The moon", "The moon ", "the lighthouse keeper",
    "don't, it's, we've, they'll, I'm, you're, he'd", "DON'T IT'S WE'VE", "1", "12", "123", "1234",
    "123456789012345", "3.14159", "1,000,000.00", "-7e-3", "v2.0.1-rc4", "a\nb", "a\r\nb\r\n", "a\n\n\nb",
    "ends in spaces   ", "   begins with spaces", "in   the    middle", "\ttab\t\ttabs", " \n \n", "\r",
    "if (a[i] != b[j]) { return -1; }", "def f(x):\n    return x ** 2\n", "/* c */ // d", "...!?!?---",
    "{\"a\": [1, 2.5, null], \"b\": \"c\\n\"}", "https://example.com/a?b=c&d=%20#e", "user@example.com",
    "<|im_start|>user\nhello<|im_end|>\n", "<|im_end|><|im_end|>", "<|im_st", "<s>[INST] x [/INST]</s>",
    "<|eot_id|> between <|eot_id|>", "<|begin_of_text|>", "a<|endoftext|>b", "<tool_call>{}</tool_call>",
    "<think>\nhm\n</think>\n", "é e\u0301 \u0065\u0301\u0323", "\u212b \u00c5 A\u030a", "ﬁ ﬂ ½ ² ① Ⅳ",
    "naïve Größe façade señor", "Луна и море", "月亮升起来了", "月が海の上に", "달이 바다 위에",
    "\u1103\u1161\u11af", "قمر فوق البحر ٢٠٢٦", "ירח מעל הים", "चाँद समुद्र के ऊपर", "พระจันทร์เหนือทะเล",
    "🌙", "🌙🚀 🌕", "👩‍🚀👨🏽‍🚀", "🇫🇷🇯🇵", "a\u00a0b\u2003c\u3000d", "\u200b\u200d\ufeff", "\u2581 \u2581\u2581x",
    "\u2028\u2029\u0085", "\x00", "a\x01\x02\x7fb", "𝔏𝔲𝔫𝔞", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "lighthousekeeperlighthousekeeper" * 16, "の" * 40, " " * 40, "ab" * 100,
]

# Code point ranges that tokenizers treat differently, for random strings.
RANGES = [
    (0x20, 0x7E), (0x09, 0x0D), (0xA0, 0xFF), (0x300, 0x345), (0x3B1, 0x3C9), (0x430, 0x44F),
    (0x5D0, 0x5EA), (0x660, 0x669), (0x915, 0x939), (0xE01, 0xE30), (0x1100, 0x1112), (0x2000, 0x200F),
    (0x3041, 0x3096), (0x4E00, 0x4EFF), (0xAC00, 0xACFF), (0xFF10, 0xFF5A), (0x1F300, 0x1F3FF),
]

# Our own, in the manner of the templates that models of these kinds carry.
TEMPLATES = {
    "header": """\
{{- bos_token }}
{%- set ns = namespace(duty='') %}
{%- for m in messages if m['role'] == 'system' %}
    {%- set ns.duty = ns.duty + m['content'] | trim %}
{%- endfor %}
{%- if date_string is not defined %}
    {%- set date_string = '20 Jul 1969' %}
{%- endif %}
{%- macro head(role) %}<|start_header_id|>{{ role }}<|end_header_id|>{{ '\\n\\n' }}{% endmacro %}
{{- head('system') ~ 'Date: ' ~ date_string }}
{%- if tools is defined and tools is not none %}
    {{- '\\nInstruments, ' ~ tools | length ~ ':' }}
    {%- for tool in tools %}
        {{- '\\n' ~ loop.index ~ '. ' ~ (tool.function | tojson(indent=2)) }}
    {%- endfor %}
{%- endif %}
{{- ('\\n' ~ ns.duty if ns.duty else '') ~ '<|eot_id|>' }}
{%- for m in messages if m['role'] != 'system' %}
    {%- if m.role == 'tool' %}
        {{- head('reading') ~ (m.content if m.content is string else m.content | tojson) }}
    {%- elif m.tool_calls %}
        {{- head(m.role) }}
        {%- for call in m.tool_calls %}
            {%- for key, value in call.function.arguments | items %}
                {{- call.function.name ~ '.' ~ key ~ ' = ' ~ value | tojson ~ ('; ' if not loop.last) }}
            {%- endfor %}
        {%- endfor %}
    {%- else %}
        {{- head(m['role']) + m['content'] | trim }}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ head('assistant') }}{% endif %}
""",
    "chatml": """\
{% set known = ['system', 'user', 'assistant', 'tool'] %}
{% set watch = messages[0].content if messages[0].role == 'system' else 'You watch the harbour.' %}
<|im_start|>system
{{ watch }}{% if tools %}


Instruments:
{% for tool in tools %}
{{ tool | tojson }}
{% endfor %}
Ask one by <tool_call>{"name": ..., "arguments": ...}</tool_call>{% endif %}<|im_end|>
{% for m in messages %}
    {% if m.role not in known %}
        {{ raise_exception("unknown role '" ~ m.role ~ "' in message " ~ loop.index) }}
    {% elif m.role == 'tool' %}
        {% if loop.previtem.role != 'tool' %}
<|im_start|>user
        {% endif %}
<tool_response>{{ m.content }}</tool_response>
        {% if loop.nextitem is not defined or loop.nextitem.role != 'tool' %}
<|im_end|>
        {% endif %}
    {% elif not (loop.first and m.role == 'system') %}
<|im_start|>{{ m.role }}
{{ m.content -}}
        {% for call in m.tool_calls or [] %}
            {% if m.content or not loop.first %}

            {% endif %}
<tool_call>{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}</tool_call>
        {%- endfor %}
<|im_end|>
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
""",
    "think": """\
{#- Thoughts are shown again only since the last question. #}
{%- set ns = namespace(asked=0) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{%- set ns.asked = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set said = m.content or '' %}
    {{- '<|im_start|>' ~ m.role ~ '\\n' }}
    {%- if m.role == 'assistant' %}
        {%- set thought = m.reasoning_content | default('') %}
        {%- if not thought and '</think>' in said %}
            {%- set parts = said.split('</think>') %}
            {%- set thought = parts[0].split('<think>')[-1].strip('\\n') %}
            {%- set said = parts[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if thought and loop.index0 > ns.asked %}
            {{- '<think>\\n' ~ thought ~ '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- said }}
        {%- for call in m.tool_calls | default([], true) %}
            {{- '<tool_call>' ~ call.function.name ~ ' ' ~ call.function.arguments | tojson ~ '</tool_call>' }}
        {%- endfor %}
    {%- else %}
        {{- said }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    "inst": """\
{{ bos_token }}{% set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}
{% for m in turns %}
{% if m['role'] != ('user' if loop.index0 is even else 'assistant') %}
{{ raise_exception('after a user comes the assistant, and the other way round') }}
{% endif %}
{% if m['role'] == 'user' %}
[INST] {% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] ~ '\\n\\n' }}{% endif %}
{{- m['content'] }} [/INST]
{%- else %}
 {{ m['content'] | trim }}{{ eos_token }}
{%- endif %}
{% endfor %}
""",
}

TEMPLATES["turn"] = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {{ raise_exception('there is no system role here') }}
{%- endif -%}
{%- for m in messages -%}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('user and model take turns') }}
    {%- endif -%}
    {%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
# A system message goes before what the first user says; content may be a list of parts.
TEMPLATES["parts"] = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = (messages[0]['content'] if messages[0]['content'] is string
                     else messages[0]['content'][0]['text']) + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for m in turns -%}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("user and model take turns") }}
    {%- endif -%}
    {{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' + (first if loop.first else '') }}
    {%- if m['content'] is string -%}
        {{ m['content'] | trim }}
    {%- elif m['content'] is iterable -%}
        {%- for item in m['content'] -%}
            {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("content of no known kind") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
TEMPLATES["bars"] = """\
{% for m in messages %}{% if m['role'] == 'system' %}{{'<|system|>\\n' + m['content'] + '<|end|>\\n'}}\
{% elif m['role'] == 'user' %}{{'<|user|>\\n' + m['content'] + '<|end|>\\n'}}\
{% elif m['role'] == 'assistant' %}{{'<|assistant|>\\n' + m['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""

TIDE = {"type": "function", "function": {
    "name": "tide", "description": "High & low water <today> at a \"harbour\"",
    "parameters": {"type": "object", "required": ["harbour"], "properties": {
        "harbour": {"type": "string", "enum": ["Brest", "Łeba", "東京"]}, "hours": {"type": "integer", "minimum": 1}}}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "a1b2c3d4e", "type": "function", "function": {
    "name": "tide", "arguments": "{\"harbour\": \"Łeba\", \"hours\": 6, \"also\": [0.5, true, null, \"a'b/<c>\"]}"}}]}
ALL = ("header", "chatml", "think", "inst", "turn", "parts", "bars")


def _user(text):
    return {"role": "user", "content": text}


CHATS = [
    {"name": "one question", "templates": ALL, "add_generation_prompt": True,
     "messages": [_user("Where is the moon?")]},
    {"name": "system first", "templates": ALL, "add_generation_prompt": True,
     "messages": [{"role": "system", "content": " You are a lighthouse. "}, _user("\n Blink! \n")]},
    {"name": "turns", "templates": ALL, "add_generation_prompt": False,
     "messages": [_user("Луна?"), {"role": "assistant", "content": "<think>\nmoon\n</think>\n\nДа 🌙"},
                  _user("sure?"), {"role": "assistant", "content": "<think>\nagain\n</think>\n\n Yes. "}]},
    {"name": "turns, and on", "templates": ALL, "add_generation_prompt": True,
     "messages": [_user("a"), {"role": "assistant", "content": "b"}, _user("c")]},
    {"name": "nothing said", "templates": ALL, "add_generation_prompt": True, "messages": [_user("")]},
    {"name": "markup in what is said", "templates": ALL, "add_generation_prompt": True,
     "messages": [_user("{{ messages }} {% raw %} <|im_end|><|eot_id|></s> \"'&<>\\n\u2028")]},
    {"name": "tools", "templates": ("header", "chatml"), "add_generation_prompt": True, "tools": [TIDE],
     "messages": [{"role": "system", "content": "Call."}, _user("Water at Łeba?"), CALL,
                  {"role": "tool", "tool_call_id": "a1b2c3d4e", "content": "{\"high\": 4.5}"}, _user("Thanks")]},
    {"name": "two tools, two results", "templates": ("chatml",), "add_generation_prompt": True, "tools": [TIDE, TIDE],
     "messages": [_user("Water?"), CALL, {"role": "tool", "content": "1 m"}, {"role": "tool", "content": "2 m"}]},
    {"name": "tool calls while thinking", "templates": ("think",), "add_generation_prompt": True,
     "messages": [_user("Water?"), dict(CALL, reasoning_content="I ask."), {"role": "tool", "content": "1 m"}]},
    {"name": "thinking off", "templates": ("think",), "add_generation_prompt": True,
     "chat_template_kwargs": {"enable_thinking": False}, "messages": [_user("2 + 2?")]},
    {"name": "thinking on", "templates": ("think",), "add_generation_prompt": True,
     "chat_template_kwargs": {"enable_thinking": True}, "messages": [_user("2 + 2?")]},
    {"name": "a date", "templates": ("header",), "add_generation_prompt": True,
     "chat_template_kwargs": {"date_string": "24 Dec 1968"}, "messages": [_user("What day is it?")]},
    {"name": "content in parts", "templates": ("parts",), "add_generation_prompt": True,
     "messages": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
                  {"role": "user", "content": [{"type": "text", "text": " a "}, {"type": "text", "text": "b"}]}]},
    {"name": "refused", "templates": ("inst", "turn", "parts"), "add_generation_prompt": True, "messages": [_user("a"), _user("b")]},
    {"name": "refused role", "templates": ("chatml",), "add_generation_prompt": True,
     "messages": [_user("a"), {"role": "moon", "content": "b"}]},
]

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOOL = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
GEMMA = ["<mask>", "<unused0>", "<unused1>", "<start_of_turn>", "<end_of_turn>"]
RUNS = ["\n\n", "\n\n\n", "▁▁", "▁▁▁▁"]    # pieces that are added tokens too; Gemma has many more
GEMMA_STRINGS = [
    "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n", "<bos>a <eos> b<pad><mask>  c", "a\n\nb\n\n\nc\n\n\n\nd",
    "two  three   four    five     ", "▁▁ ▁▁▁▁▁ x", " \n\n ", "  <end_of_turn>  ", "<unused0> <unused1>x<unk>y"]
PHI_STRINGS = [
    "<|user|>\nHello <|end|>\n\n<|assistant|> hi</s>  x<s>  y<|endoftext|> z", "<|end|>\u00a0x<|end|>\u2003\u3000 y", "<|user|>",
    "<|end|> ", "  <|system|>\t\r\n<|end|><|end|> \n", "<unk>  <unk>x", "a<|end|>b <|end|> c", "<|end|>\u200b x<|end|>\x1f y\u0085z"]
PHI = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
HEADER = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def _config(kind, name, **more):
    return {"architectures": [name + "ForCausalLM"], "model_type": kind, "hidden_act": "silu",
            "max_position_embeddings": 2048, "attention_bias": False, "attention_dropout": 0.0, **more}


# special: written out and skipped when decoding; added: written out, kept.
MODELS = [
    {"name": "llama", "seed": 101, "stored": "bfloat16", "template": "header", "eos": ["<|eot_id|>", "<|end_of_text|>"],
     "tokenizer": {"kind": "bytes", "split": "triples", "size": 600, "special": HEADER, "bos": "<|begin_of_text|>",
                   "ignore_merges": True},
     "generation": {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
     "config": _config("llama", "Llama", hidden_size=64, intermediate_size=160, num_hidden_layers=3,
                       num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=600, rms_norm_eps=1e-5,
                       rope_theta=50000.0, mlp_bias=False, tie_word_embeddings=True, torch_dtype="bfloat16",
                       rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                     "high_freq_factor": 4.0, "original_max_position_embeddings": 128})},
    {"name": "qwen2", "seed": 202, "stored": "float32", "template": "chatml", "eos": ["<|im_end|>", "<|endoftext|>"],
     "tokenizer": {"kind": "bytes", "split": "digits", "nfc": True, "size": 560, "special": CHATML},
     "config": _config("qwen2", "Qwen2", hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                       num_attention_heads=4, num_key_value_heads=1, vocab_size=576, rms_norm_eps=1e-6,
                       rope_theta=1000000.0, use_sliding_window=False, sliding_window=32, max_window_layers=2,
                       tie_word_embeddings=False, torch_dtype="float32")},
    {"name": "qwen3", "seed": 303, "stored": "bfloat16", "template": "think", "template_file": True, "shards": 2,
     "eos": ["<|im_end|>", "<|endoftext|>"], "generation": {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
     "tokenizer": {"kind": "bytes", "split": "digits", "nfc": True, "size": 640, "special": CHATML, "added": TOOL},
     "config": _config("qwen3", "Qwen3", hidden_size=72, intermediate_size=176, num_hidden_layers=3,
                       num_attention_heads=4, num_key_value_heads=2, head_dim=32, vocab_size=640, rms_norm_eps=1e-6,
                       rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, use_sliding_window=False,
                       tie_word_embeddings=True, dtype="bfloat16")},
    {"name": "mistral", "seed": 404, "stored": "float16", "template": "inst", "eos": ["</s>"],
     "tokenizer": {"kind": "pieces", "size": 560, "special": ["[INST]", "[/INST]"], "bos": "<s>", "metaspace": True},
     "config": _config("mistral", "Mistral", hidden_size=64, intermediate_size=144, num_hidden_layers=3,
                       num_attention_heads=4, num_key_value_heads=2, head_dim=24, vocab_size=560, rms_norm_eps=1e-5,
                       rope_theta=10000.0, sliding_window=20, tie_word_embeddings=False, torch_dtype="float16")},
    {"name": "qwen3-moe", "seed": 505, "stored": "bfloat16", "template": "chatml", "eos": ["<|im_end|>"],
     "tokenizer": {"kind": "bytes", "split": "digits", "nfc": True, "size": 520, "special": CHATML, "added": TOOL},
     "config": _config("qwen3_moe", "Qwen3Moe", hidden_size=64, intermediate_size=128, moe_intermediate_size=40,
                       num_experts=6, num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=1,
                       mlp_only_layers=[], num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                       head_dim=24, vocab_size=520, rms_norm_eps=1e-6, rope_theta=1000000.0, rope_scaling=None,
                       use_sliding_window=False, tie_word_embeddings=False, torch_dtype="bfloat16")},
]

MODELS += [
    {"name": "gemma2", "seed": 707, "stored": "float16", "template": "turn", "eos": ["<end_of_turn>", "<eos>"], "gguf": "gemma2",
     "tokenizer": {"kind": "pieces", "size": 520, "control": ["<pad>", "<eos>", "<bos>", "<unk>"], "special": GEMMA,
                   "runs": RUNS, "bos": "<bos>", "prefix": False, "strings": GEMMA_STRINGS},
     "config": _config("gemma2", "Gemma2", hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh",
                       hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                       num_key_value_heads=2, head_dim=16, vocab_size=520, rms_norm_eps=1e-6, rope_theta=10000.0,
                       query_pre_attn_scalar=24, attn_logit_softcapping=1.5, final_logit_softcapping=12.0,
                       sliding_window=20, tie_word_embeddings=True, torch_dtype="float16")},
    {"name": "gemma3", "seed": 808, "stored": "float16", "template": "parts", "eos": ["<end_of_turn>", "<eos>"], "gguf": "gemma3",
     "tokenizer": {"kind": "pieces", "size": 520, "control": ["<pad>", "<eos>", "<bos>", "<unk>"], "special": GEMMA,
                   "runs": RUNS, "bos": "<bos>", "prefix": False, "strings": GEMMA_STRINGS},
     "config": _config("gemma3_text", "Gemma3", hidden_activation="gelu_pytorch_tanh", hidden_size=64,
                       intermediate_size=80, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=1,
                       head_dim=32, vocab_size=520, rms_norm_eps=1e-6, rope_theta=50000.0, rope_local_base_freq=500.0,
                       rope_scaling={"rope_type": "linear", "factor": 4.0}, query_pre_attn_scalar=24,
                       attn_logit_softcapping=None, final_logit_softcapping=None, sliding_window=20,
                       sliding_window_pattern=3, tie_word_embeddings=True, torch_dtype="float16")},
    # What fits in original_max_position_embeddings is computed with the short factors, the rest with the long ones.
    {"name": "phi3", "seed": 909, "stored": "float16", "template": "bars", "eos": ["<|end|>", "<|endoftext|>"], "gguf": "phi3",
     "tokenizer": {"kind": "pieces", "size": 520, "special": PHI, "bos": "<s>",
                   "rstrip": ["</s>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"], "strings": PHI_STRINGS},
     "config": _config("phi3", "Phi3", hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                       num_key_value_heads=2, vocab_size=520, rms_norm_eps=1e-5, rope_theta=1000.0,
                       pad_token_id=None, original_max_position_embeddings=64, partial_rotary_factor=0.75, sliding_window=100,
                       tie_word_embeddings=False, torch_dtype="float16",
                       rope_scaling={"type": "longrope", "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5],
                                     "long_factor": [1.1, 1.5, 2.5, 4.0, 7.0, 12.0]})},
]

# The llama model once more as a GGUF file of kind `llama`: the same network, another tokenizer.
TWIN = {"name": "llama-gguf", "of": "llama", "seed": 606, "template": "inst", "eos": ["</s>"],
        "tokenizer": {"kind": "pieces", "size": 600, "special": ["[INST]", "[/INST]"], "bos": "<s>"}}

SMOLLM2 = {
    "texts": ["The capital of Italy is", "def is_even(n):\n    ", "The moon orbits the", "Dear Sir or Madam,\n\nI am writing to",
              "Five animals:\n1.", "A ship sails from the harbour to the lighthouse and back again. " * 32 + "A ship"],
    "chats": [[_user("What is the capital of Italy?")],
              [{"role": "system", "content": "You answer in one word."}, _user("Which planet do we live on?")],
              [_user("Name a colour."), {"role": "assistant", "content": "Blue."}, _user("Another one?")]],
}
