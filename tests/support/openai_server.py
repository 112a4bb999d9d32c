# SPDX-License-Identifier: Apache-2.0
"""An OpenAI server such as vLLM is one, and such as none should be.

    openai_server.py NAME [CERTIFICATE KEY]      writes its port, then serves, perhaps by TLS

What it does is said in the field `user` of a request: a mode of MODES, or "MODE@NAME" for
the server of that name alone. GET /seen tells what it got, and how many clients left in the
middle of an answer."""
import json
import socketserver
import ssl
import sys
import threading
import time

NAME = sys.argv[1]
seen = {"requests": [], "left": 0}


def event(data):
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def head(status, kind, *more):
    lines = ["HTTP/1.1 %d X" % status, "Content-Type: " + kind, *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def chunked(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


def whole(status, body, *more, kind="application/json"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head(status, kind, "Content-Length: %d" % len(data), *more) + data


def error(status, message, *more):
    return whole(status, {"error": {"message": message, "type": "x", "param": None,
                                    "code": status}}, *more)


EVENTS = head(200, "text/event-stream; charset=utf-8", "Transfer-Encoding: chunked")


class Answer:
    """What vLLM would say: "w0 w1 w2 ..." as many as max_tokens."""

    def __init__(self, body, chat, rid):
        self.body, self.chat = body, chat
        self.n = body.get("max_tokens") or body.get("max_completion_tokens") or 16
        self.id = ("chatcmpl-" if chat else "cmpl-") + rid
        prompt = body.get("prompt")
        self.n_prompt = len(prompt) if isinstance(prompt, list) else 7

    def usage(self):
        return {"prompt_tokens": self.n_prompt, "total_tokens": self.n_prompt + self.n,
                "completion_tokens": self.n, "prompt_tokens_details": {"cached_tokens": 3}}

    def chunk(self, i, **more):
        text = "w%d " % i
        part = {"delta": {"content": text}} if self.chat else {"text": text}
        last = i == self.n - 1
        choice = {"index": 0, **part, "logprobs": None,
                  "finish_reason": "length" if last else None, **more}
        return event({"id": self.id, "object": "x", "created": 1, "model": "m", "choices": [choice],
                      "own_field": [1, {"a": "}\"]"}]})

    def first(self):
        return event({"id": self.id, "choices": [{"index": 0, "delta": {"role": "assistant",
                      "content": ""}, "finish_reason": None}]}) if self.chat else b""

    def last(self):
        options = self.body.get("stream_options") or {}
        tail = event({"id": self.id, "choices": [], "usage": self.usage()}) \
            if options.get("include_usage") else b""
        return tail + event(b"[DONE]")

    def json(self):
        text = "".join("w%d " % i for i in range(self.n))
        part = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {"id": self.id, "choices": [{"index": 0, **part, "finish_reason": "length"}],
                "usage": self.usage(), "own_field": 1}


def events_then(make):
    def mode(send, answer):
        send(EVENTS)
        send(chunked(answer.first() + answer.chunk(0) + answer.chunk(1)))
        make(send, answer)
    return mode


def good(send, answer):
    if not answer.body.get("stream"):
        return send(whole(200, answer.json()))
    send(EVENTS)
    if answer.first():
        send(chunked(answer.first()))
    for i in range(answer.n):
        data = answer.chunk(i)
        send(chunked(data[:7]))             # an event in two pieces
        send(chunked(data[7:]))
    send(chunked(answer.last()) + b"0\r\n\r\n")
    return None


def endless(send, answer):
    send(EVENTS)
    i = 0
    while True:
        send(chunked(answer.chunk(i % 2 + 1000)))
        i += 1


def forever(send, what):
    while True:
        send(what)


CLOSE = object()
MODES = {
    "good": good,
    "endless": endless,
    "cut": events_then(lambda send, a: CLOSE),
    "cut_event": events_then(lambda send, a: send(chunked(b"data: {\"choi"))),
    "clean_cut": events_then(lambda send, a: send(b"0\r\n\r\n")),
    "garbage": events_then(lambda send, a: send(chunked(b"data: {nonsense}\n\n"))),
    "huge_line": events_then(lambda send, a: forever(send, chunked(b"x" * 65536))),
    "huge_event": events_then(lambda send, a: forever(send, chunked(b"data: x\n" * 8192))),
    "stall": events_then(lambda send, a: time.sleep(30)),
    "bad_chunk": events_then(lambda send, a: send(b"zzz\r\nhello\r\n")),
    "error_event": events_then(lambda send, a: send(chunked(
        event({"error": {"message": "EngineCore died", "type": "x", "code": 500}})
        + event(b"[DONE]")) + b"0\r\n\r\n")),
    "after_done": events_then(lambda send, a: send(chunked(
        a.chunk(a.n - 1) + event(b"[DONE]") + a.chunk(2)) + b"0\r\n\r\n")),
    "tools": events_then(lambda send, a: send(chunked(event({"choices": [{"index": 0, "delta": {
        "tool_calls": [{"index": 0}]}}]})))),
    "silent": lambda send, a: time.sleep(30),
    "nothing": lambda send, a: CLOSE,
    "no_http": lambda send, a: send(b"\x00\x01\x02 hello\r\n\r\n"),
    "huge_head": lambda send, a: send(head(200, "text/event-stream", *(
        "X-%d: %s" % (i, "y" * 1000) for i in range(100)))),
    "short_body": lambda send, a: send(head(200, "application/json", "Content-Length: 999")
                                       + b"{\"choices\":"),
    "html": lambda send, a: send(whole(200, b"<html>", kind="text/html")),
    "events_for_json": lambda send, a: send(EVENTS + chunked(a.chunk(0))),
    "json_for_stream": lambda send, a: send(whole(200, a.json())),
    "redirect": lambda send, a: send(whole(307, b"", "Location: http://127.0.0.1:1/")),
    "400": lambda send, a: send(error(400, "no such thing", "X-Own: 1")),
    "429": lambda send, a: send(error(429, "slow down", "Retry-After: 7")),
    "500": lambda send, a: send(error(500, "it broke")),
    "500_html": lambda send, a: send(whole(500, b"<html>it\nbroke", kind="text/html")),
    "503": lambda send, a: send(error(503, "no room", "Retry-After: 9")),
    "504": lambda send, a: send(whole(504, b"<html>", kind="text/html")),
}

METRICS = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1000",prefix_caching_hash_algo="sha256"} 1.0
"""


class Handler(socketserver.StreamRequestHandler):
    def send(self, data):
        self.request.sendall(data)

    def read(self):
        line = self.rfile.readline()
        if not line:
            return None
        headers = {}
        while True:
            field = self.rfile.readline().strip()
            if not field:
                break
            name, _, value = field.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = self.rfile.read(int(headers.get("content-length", 0)))
        return line.split()[1].decode(), headers, body

    def about(self, path):
        if path == "/v1/models":
            self.send(whole(200, {"object": "list", "data": [{"id": "served-as", "owned_by": "vllm"}]}))
        elif path == "/metrics":
            self.send(whole(200, METRICS.encode(), kind="text/plain"))
        elif path == "/seen":
            self.send(whole(200, seen))
        else:
            self.send(error(404, "not found"))

    def handle(self):
        while True:
            try:
                got = self.read()
            except OSError:                 # no TLS with it
                return
            if not got:
                return
            path, headers, body = got
            if not path.endswith("completions"):
                self.about(path)
                continue
            body = json.loads(body)
            seen["requests"].append({"path": path, "headers": headers, "body": body})
            mode, _, name = (body.get("user") or "good").partition("@")
            if name and name != NAME:
                mode = "good"
            answer = Answer(body, "chat" in path, headers.get("x-request-id", "?"))
            try:
                MODES[mode](self.send, answer)
            except OSError:
                seen["left"] += 1
                return
            if mode != "good":
                return


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128


server = Server(("127.0.0.1", 0), Handler)
if len(sys.argv) > 2:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
    # In the thread of the connection: one that does not go on keeps nobody else waiting.
    server.socket = context.wrap_socket(server.socket, server_side=True,
                                        do_handshake_on_connect=False)
print("port %d" % server.server_address[1], flush=True)
threading.Thread(target=server.serve_forever, daemon=False).start()
