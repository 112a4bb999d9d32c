# SPDX-License-Identifier: Apache-2.0
"""The official openai client against a running server.

    python3 tests/system/openai_client.py http://127.0.0.1:8000 MODEL

Prints one line a check, `ok NAME` or `FAIL NAME: why`; the exit code says whether all held.
"""
import asyncio
import json
import sys
import time
import traceback
import urllib.request

import openai

BASE, MODEL = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=BASE + "/v1", api_key="none", max_retries=0, timeout=120)
HELLO = [{"role": "user", "content": "What is the capital of France?"}]
CHECKS = []


def check(f):
    CHECKS.append(f)
    return f


def chat(**kw):
    kw = {"model": MODEL, "messages": HELLO, "temperature": 0, "max_completion_tokens": 16, **kw}
    return client.chat.completions.create(**kw)


def complete(**kw):
    kw = {"model": MODEL, "prompt": "Once upon a time", "temperature": 0, "max_tokens": 12, **kw}
    return client.completions.create(**kw)


def refused(f, kind, *words):
    try:
        f()
    except kind as e:
        for w in words:
            assert w in str(e), (w, str(e))
        body = e.response.json()["error"]
        assert set(body) == {"message", "type", "param", "code"}, body
        assert body["code"] == e.status_code, body
        return
    raise AssertionError("was not refused")


@check
def models_are_listed():
    data = client.models.list().data
    assert [m.id for m in data] == [MODEL]
    assert data[0].max_model_len > 0


@check
def chat_answers():
    r = chat()
    assert r.object == "chat.completion" and r.id.startswith("chatcmpl-")
    c = r.choices[0]
    assert c.message.role == "assistant" and c.message.content
    assert c.finish_reason in ("stop", "length")
    assert r.usage.total_tokens == r.usage.prompt_tokens + r.usage.completion_tokens
    assert 0 < r.usage.completion_tokens <= 16


@check
def chat_stream_equals_whole():
    whole = chat()
    text, finishes, roles, usage = "", [], [], None
    for chunk in chat(stream=True, stream_options={"include_usage": True}):
        assert chunk.object == "chat.completion.chunk"
        if not chunk.choices:
            usage = chunk.usage
            continue
        assert chunk.usage is None
        c = chunk.choices[0]
        if c.delta.role:
            roles.append(c.delta.role)
        text += c.delta.content or ""
        if c.finish_reason:
            finishes.append(c.finish_reason)
    assert text == whole.choices[0].message.content, (text, whole.choices[0].message.content)
    assert roles == ["assistant"] and finishes == [whole.choices[0].finish_reason]
    assert usage.completion_tokens == whole.usage.completion_tokens


@check
def completion_stream_equals_whole():
    whole = complete()
    assert whole.object == "text_completion" and whole.id.startswith("cmpl-")
    chunks = list(complete(stream=True))
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    assert sum(1 for c in chunks if c.choices[0].finish_reason) == 1
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(c.usage is None for c in chunks)


@check
def prompts_in_every_form():
    ids = json.load(post("/tokenize", {"model": MODEL, "prompt": "Once upon a time"}))["tokens"]
    one = complete().choices[0].text
    assert complete(prompt=ids).choices[0].text == one
    many = complete(prompt=["Once upon a time", "The sea is"])
    assert [c.index for c in many.choices] == [0, 1] and many.choices[0].text == one
    assert complete(prompt=[ids, ids]).choices[1].text == one


@check
def tokenize_round_trips():
    text = "Hello, world! \u4f60\u597d \U0001f600"
    r = json.load(post("/tokenize", {"model": MODEL, "prompt": text, "add_special_tokens": False,
                                     "return_token_strs": True}))
    assert r["count"] == len(r["tokens"]) == len(r["token_strs"])
    assert json.load(post("/detokenize", {"model": MODEL, "tokens": r["tokens"]}))["prompt"] == text


@check
def seeds_repeat():
    kw = dict(temperature=1.0, seed=7, max_completion_tokens=24)
    a, b, c = chat(**kw), chat(**kw), chat(**{**kw, "seed": 8})
    assert a.choices[0].message.content == b.choices[0].message.content
    assert a.choices[0].message.content != c.choices[0].message.content


@check
def several_choices():
    r = chat(n=3, temperature=1.0, seed=3)
    assert [c.index for c in r.choices] == [0, 1, 2]
    texts = {}
    for chunk in chat(n=3, temperature=1.0, seed=3, stream=True):
        for c in chunk.choices:
            texts[c.index] = texts.get(c.index, "") + (c.delta.content or "")
    assert [texts[i] for i in range(3)] == [c.message.content for c in r.choices]
    assert len(set(texts.values())) > 1


@check
def logprobs_of_chat():
    r = chat(logprobs=True, top_logprobs=3).choices[0]
    assert len(r.logprobs.content) > 0
    for e in r.logprobs.content:
        assert len(e.top_logprobs) == 3 and e.logprob <= 0
        assert e.top_logprobs[0].logprob == e.logprob  # greedy
    streamed = []
    for chunk in chat(logprobs=True, top_logprobs=3, stream=True):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert [e.logprob for e in streamed] == [e.logprob for e in r.logprobs.content]


@check
def logprobs_of_completion():
    r = complete(logprobs=2).choices[0]
    n = len(r.logprobs.tokens)
    assert n == 12 == len(r.logprobs.token_logprobs) == len(r.logprobs.top_logprobs)
    assert r.logprobs.text_offset[0] == 0
    # A token that is no whole character is shown as U+FFFD, so it does not add up there.
    assert "\ufffd" in r.text or "".join(r.logprobs.tokens) == r.text
    e = complete(logprobs=1, echo=True).choices[0]
    assert e.logprobs.token_logprobs[0] is None and e.text.startswith("Once upon a time")
    assert e.logprobs.token_logprobs[-n:] == r.logprobs.token_logprobs


@check
def echo_alone():
    assert complete(echo=True, max_tokens=0).choices[0].text == "Once upon a time"


@check
def stop_strings():
    whole = complete(max_tokens=24).choices[0].text
    word = whole.split()[3]
    r = complete(max_tokens=24, stop=[word]).choices[0]
    assert r.finish_reason == "stop" and r.stop_reason == word
    assert word not in r.text and whole.startswith(r.text)
    streamed = list(complete(max_tokens=24, stop=[word], stream=True))
    assert "".join(c.choices[0].text for c in streamed) == r.text
    kept = complete(max_tokens=24, stop=[word], extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].text == r.text + word


@check
def sampling_fields_are_taken():
    r = complete(extra_body={"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.2, "min_tokens": 4,
                             "ignore_eos": True, "return_token_ids": True},
                 temperature=0.7, top_p=0.9, presence_penalty=0.5, frequency_penalty=0.5, seed=1)
    c = r.choices[0]
    assert len(c.token_ids) == 12 and c.prompt_token_ids
    banned = c.token_ids[0]
    r = complete(logit_bias={str(banned): -100}, extra_body={"return_token_ids": True})
    assert banned not in r.choices[0].token_ids
    r = complete(extra_body={"allowed_token_ids": [banned], "return_token_ids": True})
    assert set(r.choices[0].token_ids) == {banned}


@check
def refusals():
    bad = openai.BadRequestError
    refused(lambda: chat(temperature=-1), bad, "temperature")
    refused(lambda: chat(top_p=2), bad, "top_p")
    refused(lambda: chat(max_completion_tokens=0), bad, "max_tokens")
    refused(lambda: chat(n=0), bad, "n must be")
    refused(lambda: chat(n=2), bad, "greedy")
    refused(lambda: chat(messages=[]), bad, "messages")
    refused(lambda: chat(messages=[{"role": "user"}, 3]), bad, "messages")
    refused(lambda: chat(top_logprobs=3), bad, "logprobs")
    refused(lambda: chat(logprobs=True, top_logprobs=21), bad, "20")
    refused(lambda: chat(stream_options={"include_usage": True}), bad, "Stream options")
    refused(lambda: complete(prompt=[10 ** 8]), bad, "vocabulary")
    refused(lambda: complete(prompt=[-1]), bad, "vocabulary")
    refused(lambda: complete(prompt=""), bad)
    refused(lambda: complete(prompt="a " * 20000), bad, "maximum context length")
    refused(lambda: complete(max_tokens=10 ** 6), bad, "maximum context length")
    refused(lambda: complete(logit_bias={"99999999": 1}), bad, "out-of-vocab")
    refused(lambda: complete(stop=[""]), bad, "empty")
    refused(lambda: chat(model="no-such-model"), openai.NotFoundError, "does not exist")
    refused(lambda: chat(response_format={"type": "json_object"}), bad, "response_format")


def post(path, body):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(
        BASE + path, raw, {"Content-Type": "application/json"}), timeout=60)


@check
def many_at_once():
    whole = chat().choices[0].message.content

    async def run():
        c = openai.AsyncOpenAI(base_url=BASE + "/v1", api_key="none", max_retries=0, timeout=300)
        many = [c.chat.completions.create(model=MODEL, messages=HELLO, temperature=0,
                                          max_completion_tokens=16) for _ in range(24)]
        return [r.choices[0].message.content for r in await asyncio.gather(*many)]

    assert set(asyncio.run(run())) == {whole}


def metric(name):
    text = urllib.request.urlopen(BASE + "/metrics", timeout=10).read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
               if line.startswith(name + "{") or line.startswith(name + " "))


@check
def a_client_that_leaves_stops_its_request():
    for stream in (True, False):
        async def leave():
            c = openai.AsyncOpenAI(base_url=BASE + "/v1", api_key="none", max_retries=0)
            r = await asyncio.wait_for(c.completions.create(
                model=MODEL, prompt="Tell me", max_tokens=1500, temperature=0, stream=stream,
                extra_body={"ignore_eos": True}), 0.05 if not stream else 20)
            if stream:
                async for _ in r:
                    break
                await r.close()

        try:
            asyncio.run(leave())
        except (asyncio.TimeoutError, TimeoutError, openai.APITimeoutError):
            pass
        for _ in range(200):
            if metric("vllm:num_requests_running") == 0 and metric("vllm:kv_cache_usage_perc") == 0:
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the request still runs (stream=%s)" % stream)


def main():
    failed = 0
    for f in CHECKS:
        try:
            f()
            print("ok", f.__name__, flush=True)
        except Exception:
            failed += 1
            print("FAIL %s: %s" % (f.__name__, traceback.format_exc()), flush=True)
    sys.exit(1 if failed else 0)


main()
