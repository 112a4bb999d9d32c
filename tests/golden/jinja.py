# SPDX-License-Identifier: Apache-2.0
"""Writes jinja.json: snippets, and what Jinja renders them to, set up as transformers does.

    pip install jinja2==3.1.6 && python3 tests/golden/jinja.py
"""
import json
import os
from datetime import datetime

from jinja2 import TemplateSyntaxError, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("render_body"), [], [], body).set_lineno(line)

    def render_body(self, caller):
        return caller()


class Raised(TemplateError):
    pass


def raise_exception(message):
    raise Raised(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


ENV = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
ENV.filters["tojson"] = tojson
ENV.globals["raise_exception"] = raise_exception
ENV.globals["strftime_now"] = lambda format: datetime(2025, 2, 3, 4, 5, 6).strftime(format)

VARS = {
    "n": None, "t": True, "f": False, "zero": 0, "one": 1, "neg": -7, "real": 2.5, "whole": 3.0, "big": 9007199254740993,
    "s": "Hello World", "e": "", "u": "Größe 你好 👍🏽", "pad": " \t\u00a0\u3000 x y \u2028\n", "lines": "a\nb\r\n\nc\n",
    "html": "<a href=\"x\">'&</a>", "ctl": "q\"\\\u0001\u007f\u200b\t/'",
    "l": [3, 1, 2], "words": ["b", "A", "c", "a"], "el": [], "mixed": [1, 2.0, "x", None, True, [1], {"a": 1}],
    "d": {"b": 1, "a": 2, "items": 3, "C": {"x": [1, 2]}}, "ed": {}, "nest": {"keys": "k", "get": 1, "__index": 2, "n": 4},
    "users": [{"name": "Bob", "age": 30, "role": "user"}, {"name": "alice", "age": 25, "role": "admin"},
              {"name": "Carl", "age": 30, "role": "user"}],
    "messages": [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Hi <b>"},
                 {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"z": 1.0, "a": [1, {}]}}}]},
                 {"role": "user", "content": [{"type": "text", "text": "part"}, {"type": "image"}]}],
}

EXPRESSIONS = r"""
1 + 2 * 3 - 4 // 3
7 / 2
6 / 2
7 // 2
-7 // 2
7 % 3
-7 % 3
7.5 % 2
7.0 // 2
2 ** 10
2 ** -1
2 ** 0.5
2 ** 3 ** 2
-2 ** 2
1.0
1e3
1e16
1e15 + 0.3
1e22
1.5e-7
0.1 + 0.2
1_000
0x1f
1 + 1.0
2 * 1.5
3.0 * 2
10 / 5 == 2
true + true
-true
- real
+ real
-0.0
'a' + 'b' ~ 1 ~ none ~ true ~ 2.0
'a' * 3
3 * 'ab'
[1] * 2
[1, 2] + [3]
(1, 2) + (3,)
1, 2
(1)
(1,)
()
[]
{}
{'a': 1, 'b': [1, 2], 3: none}
[1, [2.0, 'x'], (none, true)]
'it\'s'
"it's"
['it\'s', "say \"x\"", "both ' and \"", 'back\\slash', 'new\nline\ttab']
[u, ctl, pad]
'a' 'b'
'\x41\u00e9\n\q'
n
[n, t, f]
undefined_thing
[undefined_thing]
undefined_thing is defined
undefined_thing ~ 'x'
undefined_thing == undefined_other
undefined_thing or 'default'
not undefined_thing
undefined_thing.x
undefined_thing['x']
undefined_thing + 1
undefined_thing()
undefined_thing | length
undefined_thing | trim
undefined_thing | list
undefined_thing | default('d')
undefined_thing | tojson
'x' in undefined_thing
d.missing.deeper
d.missing
n.x
n.x.y
s.x
one.x
1 < 2 < 3
1 < 3 < 2
1 == 1.0
1 == true
0 == false
'1' == 1
'a' < 'b'
'Z' < 'a'
[1, 2] < [1, 3]
[1, 2] == [1.0, 2]
{'a': 1} == {'a': 1.0}
(1, 2) == [1, 2]
1 < 'a'
n < 1
n == n
n is none
s is none
1 in [1, 2]
1.0 in [1, 2]
'x' not in 'abc'
'lo W' in s
'b' in d
1 in 5
1 in 'abc'
not 1 == 2
not (t and f)
t and 'yes' or 'no'
e or el or 'last'
e and 1
'yes' if t
'yes' if f
'yes' if f else 'no'
1 if f else 2 if f else 3
t if t is true else f
s is string
s is not string
d is mapping
l is mapping
l is iterable
s is iterable
one is iterable
n is iterable
l is sequence
d is sequence
d.items() is sequence
d.items() is iterable
one is number
real is number
t is number
one is integer
t is integer
real is float
whole is float
t is boolean
t is true
one is true
f is false
n is false
t is sameas true
one is sameas 1
3 is odd
4 is even
9 is divisibleby 3
9 is divisibleby(2)
one is eq 1
one is equalto 1
one is ne 2
one is lt 2
one is gt 2
one is le 1
one is ge 2
one is in [1, 2]
one is not in [1, 2]
'a' is lower
'A' is upper
range is callable
'upper' is filter
'odd' is test
t is not none and s is defined
d.b
d['b']
d['items']
d.C.x[0]
d.C.x[-1]
d.C.x[5]
d.C['x'][1]
d.get('b')
d.get('zz')
d.get('zz', 5)
d.keys()
d.values()
d.items()
d.keys() | list
d | list
d | length
d.items() | list
nest['keys']
nest.get('get')
nest.n
nest['__index']
nest.__index
ed
ed.items()
l[0]
l[-1]
l[1:]
l[:-1]
l[::-1]
l[::2]
l[5:]
l[-2:]
l[2:0:-1]
l[:]
l[1:2]
l[t]
l['0']
l.0
s[0]
s[-1]
s[1:4]
s[::-1]
s[20:]
s[99]
u[0:3]
u[-2:]
u[::-1]
u[2]
u | length
u | reverse
s | upper
s | lower
s.title()
"they're bill's friends" | title
"they're bill's-friends (x)".title()
'a-b (cd) <e>' | title
'hello WORLD' | capitalize
'hello WORLD' | title
pad | trim
pad.strip()
pad.lstrip()
pad.rstrip()
'xxhixx'.strip('x')
'<think>a</think>'.strip('<>')
'  a b  c '.split()
'  a b  c '.split(none, 1)
' a b  c '.rsplit(none, 1)
'a,b,c'.split(',')
'a,b,c'.split(',', 1)
'a,b,c'.rsplit(',', 1)
'a,b,c'.split(',', maxsplit=1)
'abc'.split('')
'</think>x</think>y'.split('</think>')[-1]
''.split()
''.split(',')
lines.splitlines()
'a\u2028b\x85c\u20acd\xa0\x0be\r'.splitlines()
lines.splitlines(true)
'a-b-c'.partition('-')
'a-b-c'.rpartition('-')
'abc'.partition('-')
s.startswith('He')
s.startswith(('x', 'H'))
s.endswith('ld')
s.endswith('')
s.replace('o', '0')
s.replace('o', '0', 1)
'aaa'.replace('', '-')
s.find('o')
s.rfind('o')
s.find('zz')
u.find('你')
s.index('W')
s.index('zz')
s.count('l')
'aaaa'.count('aa')
'abc'.count('')
','.join(['a', 'b'])
','.join([1])
','.join('abc')
'a1'.isalnum()
'12'.isdigit()
'ab'.isalpha()
' '.isspace()
''.isspace()
'Ab'.isupper()
'AB1'.isupper()
'ab1'.islower()
'prefix-x'.removeprefix('prefix-')
'x.txt'.removesuffix('.txt')
'{} and {}'.format(1, 'b')
'{0}{1}{0} {name} {{}}'.format('a', 2.0, name=none)
'%s is %d and %.2f %% %r' % ('a', 3, 2.5, 'q')
'%05d|%-5s|%5s' | format(42, 'a', 'b')
'%s' % 5
'%d' % 'x'
'abc'.foo
'abc'.foo()
l.append(1)
d.update({'a': 1})
d.pop('b')
l.index(1)
l.count(3)
l | first
l | last
el | first
el | last
l | sum
l | min
l | max
words | min
l | sort
l | sort(reverse=true)
words | sort
words | sort(case_sensitive=true)
users | sort(attribute='age') | map(attribute='name') | list
users | map(attribute='name') | join(', ')
users | map(attribute='zip', default='?') | list
users | selectattr('role', 'equalto', 'user') | map(attribute='name') | list
users | selectattr('role', '==', 'user') | list | length
users | rejectattr('role', 'equalto', 'user') | list
users | selectattr('name') | list | length
users | selectattr('age', 'gt', 26) | map(attribute='age') | sum
users | sum(attribute='age')
words | map('upper') | list
words | map('replace', 'a', 'z') | join
mixed | select('string') | list
mixed | reject('none') | list
mixed | select | list
[1, 2, 3, 4] | select('odd') | list
[1, 2, 3, 4] | select('divisibleby', 2) | list
words | unique | list
[1, 1.0, 2, true] | unique | list
l | list
n | map('upper') | list
n | selectattr('x') | list
0 | select | list
5 | map('string') | list
'abc' | list
'你好 x'[1:3]
'你好 x'[1]
'你好 x'[-1]
'你好 x'[9]
u[::2]
u[1:5:2]
"don't x2y ab".title()
l | join
l | join('-')
users | join(',', attribute='name')
l | reverse | list
l | length
l | count
one | length
n | length
(l | map('string')) | length
l | batch(2) | list
l | batch(2, 0) | list
d | dictsort
d | dictsort(by='value')
ed | items | list
{'a': 1} | items | list
undefined_thing | items | list
n | default('x')
n | default('x', true)
e | default('x', boolean=true)
undefined_thing | d
'12' | int
'12.7' | int
' 12 ' | int
'x' | int
'x' | int(5)
'ff' | int(base=16)
2.9 | int
-2.9 | int
t | int
'1.5' | float
'x' | float
1 | float
neg | abs
-2.5 | abs
2.5 | round
3.5 | round
-0.5 | round
0.125 | round(2)
2.675 | round(2)
1234.5 | round(-2)
1250 | round(-2)
1e17 | round(3)
2.567 | round(2)
2.567 | round(1, 'floor')
2.1 | round(0, 'ceil')
5 | round
42 | string
[42 | string]
html | escape
html | safe
html | e
'a\nb\n\nc' | indent
'a\nb\n\nc' | indent(2, true)
'a\nb\n\nc' | indent(2, blank=true)
'a\nb' | indent('> ')
'one two  three' | wordcount
'x' | replace('x', 'y') | upper
'a' ~ 'b' | upper
1 + -1 | abs
'abc' | length > 2
mixed | tojson
d | tojson
d | tojson(indent=2)
el | tojson(indent=2)
[[], {}, [1]] | tojson(indent=4)
u | tojson
ctl | tojson
html | tojson
none | tojson
whole | tojson
big | tojson
big
1e300 | tojson
{1: 2, none: 3, true: 4} | tojson
d | tojson(sort_keys=true) if f else 'x'
{'b': 1, 'a': 2} | tojson(sort_keys=true)
{'b': 1, 'a': [1, 2]} | tojson(separators=(',', ':'))
(1, 2) | tojson
d.items() | tojson
d | string
mixed
d
users[0].items() | list
range(3) | list
range(1, 4) | list
range(5, 0, -2) | list
range(0) | list
range(3)[1]
range(1000000) | length
dict(a=1, b='x')
dict([['a', 1]])
dict({'a': 1}, b=2)
namespace(a=1).a
namespace(a=1).b
namespace({'a': 1}).a
joiner(',')() ~ 'x'
strftime_now('%d %b %Y')
strftime_now('%Y-%m-%dT%H:%M:%S %A %-d %j')
raise_exception('stop: ' ~ s)
messages[0].role
messages[-1].content[0].text
messages[-1]['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join
messages[2].content is none
messages[2].tool_calls[0].function.arguments | tojson
messages[2].tool_calls is defined and messages[2].tool_calls | length == 1
messages | map(attribute='role') | join(' ')
(messages | selectattr('role', 'equalto', 'user') | list)[0].content
messages | length - 1
'a' if messages[1:] else 'b'
[1, 2, 3][1:] | tojson
'abc'[1]
{'a': {'b': 'c'}}.a.b
{'a': 1}['a']
{'a': 1}.b is undefined
('a', 'b')[1]
s if s else e | upper
not e and not n
1 is 1
s is startswith 'a'
s | nofilter
1 +
(1
{{ 1 }
'open
a b
1 = 2
users[0].name.upper()
users | map(attribute='name') | map('lower') | list
users | first
users | map('length') | list
l | map(attribute='x') | list
words | join(', ') | upper
'x' ~ l ~ d.b
l == [3, 1, 2] and d != {}
2 > 1 and 1 > 2 or 3 > 2
1 if 0 else 2
none or 0
'' is defined
5 // 0
5 % 0
5.5 // 2
1e400
'é' | upper | length
'größe' | upper
'ÉTÉ'.lower()
'état' | capitalize
'ñandú Øre' | title
['ΟΔΟΣ'.lower(), 'İ'.lower(), 'ψ'.upper(), 'ж' | upper, '你'.upper()]
['É', 'a', 'é', 'B'] | sort
'ab'.ljust(4) ~ '|' ~ 'ab'.rjust(4, '.') ~ '|' ~ 'ab'.center(5, '-') ~ 'abc'.center(6) ~ '你'.ljust(3)
'ab'.ljust(4, 'xy')
'abc'.ljust(1)
'7'.zfill(3) ~ '-7'.zfill(4) ~ 'abc'.zfill(2)
'%(k)s and %(n)03d %%' % {'k': 'a', 'n': 7}
'%(z)s' % {'k': 1}
'%(k)s' % 5
'no keys' % {'k': 1}
'%s' % {'k': 1}
'abcabc'.index('c', 3)
'abcabc'.find('b', 2)
'abcabc'.find('b', 2, 4)
'abcabc'.rfind('a', 1)
'abcabc'.count('a', 1)
'abcabc'.startswith('b', 1)
'abcabc'.endswith('b', 0, -1)
u.find('你', 3)
'abcabc'.index('c', -1)
'abc'.find('b', none, 1)
messages[0].copy()
d.copy() == d
l.copy()
(1, 2).copy()
users | groupby('role') | list
users | groupby('role') | map('length') | list
(users | groupby('role') | first).grouper
(users | groupby('role') | first).list | length
users | groupby('age') | list | length
words | groupby('x') | list
words | groupby(0) | list
users | groupby('zip', default='?') | list | length
[1, 2, 3, 4, 5] | slice(2) | list
[1, 2, 3, 4, 5] | slice(3, 0) | list
[1] | slice(3) | list
'a long sentence of words' | truncate(12)
'a long sentence of words' | truncate(12, true)
'a long sentence of words' | truncate(12, end='!', leeway=0)
'a long sentence of words' | truncate(22)
'a long sentence of words' | truncate(2)
'größeres wort' | truncate(9, true, '…', 0)
d | tojson(true)
u | tojson(ensure_ascii=true)
ctl | tojson(true)
'𝄞é' | tojson(true)
'é' | tojson(false)
'é' | tojson(ensure_ascii=false, indent=1)
'<' | safe + '&'
'&' + '<' | safe
'<' | safe + '&' + '"'
'<' | safe + ('>' | safe)
'<' | safe ~ '&'
'<' | e + '<'
('<' | safe) * 2
'a' | safe + 1
d[[1]] is defined
d[{}] is defined
d[none] is defined
d[[1]]
strftime_now('%Z') ~ '|' ~ strftime_now('a%zb%%')
f and s | nofilter
(s | nofilter) if f else 1
(s is notest) if t else 1
1 if f else l | map('nofilter') | list
""".strip("\n").split("\n")

TEMPLATES = [
    "plain", "", "\n", "a\n", "a\n\n", "\r\nx\ry\r\n", "a{# c #}b", "a {#- c -#} b", "a\n{# c #}\nb", "  {# c #}  b", "{# {{ x }} #}",
    "  {% if t %}\n  x\n  {% endif %}\n  y", "a  {% if t %}b{% endif %}", "x\n\t {%- if t -%} \n y \n {%- endif %}\n z", "  {%+ if t %}x{% endif %}",
    "{% if t +%}\nx{% endif %}", "{{ 1 }}\n{{ 2 }}\n", "  {{- 1 -}}  \n {{ 2 }}", "{% if t %}\n\n\nx{% endif %}", "a\n  {%- if t %} b{% endif -%}\n  c",
    "{% raw %}{{ x }}{% if %}{% endraw %}", "{% raw -%}\n {{ a }} {%- endraw %} b", "{%- raw %} x {% endraw -%} y", "{% raw %}\n  a\n  {% endraw %}\nb",
    "{% if f %}a{% elif t %}b{% else %}c{% endif %}", "{% if f %}a{% elif n %}b{% else %}c{% endif %}", "{% if undefined_thing %}a{% endif %}b",
    "{% for x in l %}{{ loop.index }}/{{ loop.index0 }}/{{ loop.revindex }}/{{ loop.revindex0 }}/{{ loop.first }}/{{ loop.last }}/{{ loop.length }} {% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }};{% endfor %}", "{% for x in l %}{{ loop.previtem is defined }}{% endfor %}",
    "{% for x in el %}{{ x }}{% else %}none{% endfor %}", "{% for x in l %}{{ x }}{% else %}none{% endfor %}", "{% for x in l if x > 1 %}{{ x }}{{ loop.last }}{% else %}no{% endfor %}",
    "{% for x in l if x > 9 %}{{ x }}{% else %}no{% endfor %}", "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}",
    "{% for c in 'aé你' %}[{{ c }}]{% endfor %}", "{% for x in 1, 2, 3 %}{{ x }}{% endfor %}", "{% for x in range(3) %}{% for y in range(2) %}{{ loop.index }}{{ loop.depth }}{% endfor %}{{ loop.index }} {% endfor %}",
    "{% for x in undefined_thing %}x{% else %}e{% endfor %}", "{% for x in n %}x{% endfor %}", "{% for x in 5 %}x{% endfor %}", "{% for a, b in [[1, 2], [3, 4]] %}{{ a + b }} {% endfor %}",
    "{% for a, b in [[1, 2, 3]] %}{{ a }}{% endfor %}", "{% for (a, b), c in [[[1, 2], 3]] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}", "{% break %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}", "{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}",
    "{% for x in users | selectattr('role', 'equalto', 'user') %}{{ x.name }}{{ loop.index }}{% endfor %}",
    "{% set x = 1 %}{% for i in l %}{% set x = i %}{{ x }}{% endfor %}{{ x }}", "{% set x = 0 %}{% for i in l %}{{ x }}{% set x = i %}{% endfor %}", "{% for i in l %}{% set y = i %}{% endfor %}{{ y is defined }}",
    "{% if t %}{% set x = 5 %}{% endif %}{{ x }}", "{% if f %}{% set s = 5 %}{% endif %}{{ s }}", "{% set s = s ~ '!' %}{{ s }}", "{% set a, b = 1, 2 %}{{ b }}{{ a }}", "{% set a, b = 1 %}{{ b }}{{ a }}",
    "{% set ns = namespace(x=0) %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}", "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b }}", "{% set d.x = 1 %}",
    "{% set x %}  a {{ s }}\n{% endset %}[{{ x }}]", "{% set x | upper | trim %} a {{ s }} {% endset %}[{{ x }}]", "{% set x %}{% set y = 1 %}{% endset %}{{ y is defined }}", "{% set x = 1, 2 %}{{ x }}",
    "{% macro m(a, b=2, c='x') %}{{ a }}-{{ b }}-{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, c=3) }} {{ m() }} {{ m(1, 2, 3) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}", "{% macro m(n) %}{{ n }}{% if n > 0 %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(3) }}", "{% macro m() %}{{ s }}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}",
    "{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(7) }}", "{% macro m() %}{% set q = 1 %}{{ q }}{% endmacro %}{{ m() }}{{ q is defined }}", "{{ m() }}{% macro m() %}x{% endmacro %}",
    "{% for i in l %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}", "{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}body {{ s }}{% endcall %}",
    "{% macro m() %}{{ caller(1) }}{{ caller(2) }}{% endmacro %}{% call(x) m() %}[{{ x }}]{% endcall %}", "{% macro m(x) -%}\n  {{ x }}\n{%- endmacro %}{{ m(1) }}|{{ m(2) | upper }}",
    "{% filter upper %}a{{ s }}{% endfilter %}", "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}", "{% with a = 1 %}{% set s = 3 %}{{ s }}{% endwith %}{{ s }}", "{% with %}x{% endwith %}",
    "{% generation %}{{ s }}{% endgeneration %}", "{% for m in l %}{% generation %}{{ m }}{{ loop.index }}{% endgeneration %}{% endfor %}",
    "{% set x = messages | selectattr('role', 'equalto', 'tool') %}{% if x %}lazy{% endif %}{{ x | list }}", "{% set x = l | map('string') %}{% for i in x %}{{ i }}{% endfor %}{% for i in x %}{{ i }}{% endfor %}",
    "{% set x = l | map('string') %}{{ x | first }}{{ x | list }}", "{% set r = l | reverse %}{% for i in r %}{{ i }}{% endfor %}", "{% for m in messages %}{{ m.content is string }}{{ m.content is none }}{{ m['tool_calls'] is defined }} {% endfor %}",
    "{% for m in messages[::-1] %}{% set i = (messages | length - 1) - loop.index0 %}{{ i }}{{ m.role }} {% endfor %}", "{% if messages[0]['role'] == 'system' %}{% set sys = messages[0]['content'] %}{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}{{ sys }}{{ loop_messages | length }}",
    "{{ raise_exception('no') }}", "{% if true %}{{ raise_exception('no ' ~ 1) }}{% endif %}", "{% unknown %}", "{% if t %}", "{% for x in l %}", "{% endif %}", "{{", "{{ }}", "{%", "{% set %}", "{% set 1 = 2 %}", "{% for in l %}{% endfor %}", "{{ 'a }}", "{{ {'a': {'b': 1}} }}", "{{ '}}' }}{{ \"%}\" }}", "{{ {'a': 1}}}",
    "{% if 1 %}a{% endif %}{% if 0 %}b{% endif %}{% if '' %}c{% endif %}{% if [] %}d{% endif %}{% if {} %}e{% endif %}{% if 0.0 %}f{% endif %}{% if [0] %}g{% endif %}{% if none %}h{% endif %}",
    "{{ loop is defined }}", "{% for x in l %}{% set messages = x %}{{ messages }}{% endfor %}{{ messages | length }}", "{%- for x in l -%}\n {{ x }} \n{%- endfor -%}\n",
    "{{ caller is defined }}", "{%if t%}x{%endif%}{{s}}", "{%-if t-%} x {%-endif-%} y", "a{% if t %} {% endif %}b\n", "{% if t %}{{ '' }}\n{% endif %}\nz", "{{ s }}{% if t %}\n{% endif %}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}", "{% set j = joiner('|') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}",
    "{% set args = [1, 2] %}{% macro m(a, b, c=0) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(*args) }}{{ m(*args, c=3) }}{{ m(**{'a': 1, 'b': 2}) }}", "{% for x in l %}{{ x }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for x in l %}\n{{ x }}\n{% endfor %}\n", "{% for x in l %}  \n  {%- if x == 1 %} one {% endif -%}\n{% endfor %}", "\n\n  {% set x = 1 %}\n\n{{ x }}",
    "{% set ns = namespace(found=false) %}{% for m in messages %}{% if m.role == 'user' and not ns.found %}{% set ns.found = true %}{{ loop.index0 }}{% endif %}{% endfor %}",
    "{% for tool in [{'function': {'name': 'f', 'parameters': {'properties': {'a': {'type': 'string'}}}}}] %}{{ tool.function.name }}{% for k, p in tool.function.parameters.properties.items() %}{{ k }}: {{ p.type }}{% endfor %}{% for k, p in tool.function.parameters.properties | items %}{{ k }}{% endfor %}{% endfor %}",
    "{% if f %}{{ s | nofilter }}{% endif %}x", "{% if f %}{% elif s is notest %}{% endif %}", "{% if t %}{% elif s is notest %}{% else %}{{ s | nofilter }}{% endif %}x",
    "{% if f %}{% for a in l %}{{ a | nofilter }}{% endfor %}{% endif %}", "{% if f %}{% for a in l | nofilter %}{% endfor %}{% endif %}x", "{% if f %}{% set q = s | nofilter %}{% endif %}x",
    "{% if f %}{% set q %}{{ s | nofilter }}{% endset %}{% endif %}", "{% if f %}{% set q | nofilter %}{% endset %}{% endif %}", "{% if f %}{% filter nofilter %}a{% endfilter %}{% endif %}",
    "{% if f %}{% with a = s | nofilter %}{% endwith %}{% endif %}", "{% if f %}{% macro m(a=s | nofilter) %}{% endmacro %}{% endif %}", "{% for a in l %}{% if f %}{{ a | nofilter }}{% endif %}{{ a }}{% endfor %}",
    "{% if f %}{% for a in l if a is notest %}{% endfor %}{% endif %}", "{% if t %}{% if f %}{{ s | nofilter }}{% endif %}{% endif %}{{ s | nofilter }}", "{% if t %}{{ s | nofilter(1 +) }}{% endif %}",
    "{% for k, g in users | groupby('role') %}{{ k }}:{% for x in g %}{{ x.name }} {% endfor %}{% endfor %}",
    "{% macro r(d) %}{% for k, v in d.items() %}{% if v is mapping %}{{ k }}({{ r(v) }}){% else %}{{ k }}={{ v }}{% endif %}{% endfor %}{% endmacro %}{{ r(d) }}", "{{ ''.join(['a'] * 3) }}", "{{ s.__class__ }}", "{{ '' .__class__.__mro__ }}",
]


def render(source):
    try:
        template = ENV.from_string(source)
    except (TemplateSyntaxError, SyntaxError):
        return {"refused": True}
    try:
        return {"text": template.render(**VARS)}
    except Raised as e:
        return {"raised": str(e)}
    except Exception:
        return {"error": True}


def main():
    sources = ["{{ " + e + " }}" for e in EXPRESSIONS] + TEMPLATES
    cases = [{"source": source, **render(source)} for source in dict.fromkeys(sources)]
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "jinja.json")
    with open(path, "w", encoding="utf-8") as out:
        out.write('{"vars": ' + json.dumps(VARS, ensure_ascii=False) + ',\n"cases": [\n')
        out.write(",\n".join(json.dumps(case, ensure_ascii=False) for case in cases) + "\n]}\n")


if __name__ == "__main__":
    main()
