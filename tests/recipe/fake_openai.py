# SPDX-License-Identifier: Apache-2.0
"""A server that speaks OpenAI's API just enough to test its clients, and misbehaves on
request: the model's name says how. Prints its port, serves until its stdin closes."""
import json, os, socket, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, {"data": [{"id": "fake"}]})

    def write(self, text):
        data = text.encode()
        whole = b"%x\r\n%s\r\n" % (len(data), data)
        for i in range(0, len(whole), 7):        # pieces that end anywhere
            self.wfile.write(whole[i : i + 7])
            self.wfile.flush()

    def event(self, value):
        self.write("data: " + json.dumps(value) + "\n\n")

    def stream(self, q, chat):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        said = " ".join(m["content"] for m in q["messages"]) if chat else "word"
        for i in range(q.get("max_tokens") or 3):
            text = f"{said}{i} "
            choice = {"delta": {"content": text}} if chat else {"text": text}
            self.event({"choices": [{**choice, "finish_reason": None}]})
            if q["model"] == "dies":
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if q["model"] == "slow":
                time.sleep(0.3)
        if "stream_options" in q and q["model"] != "countless":
            n = len(said.split() if chat else q["prompt"].split())
            usage = {"prompt_tokens": n, "completion_tokens": q.get("max_tokens") or 3}
            self.event({"choices": [], "usage": usage})
        self.write("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")
        if q["model"] == "forgetful":            # closes what it said it would keep
            self.close_connection = True

    def do_POST(self):
        q = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if q["model"] == "nobody":
            return self.answer(404, {"error": {"message": "no model 'nobody'"}})
        if q["model"] == "closed" and self.headers["Authorization"] != "Bearer k":
            return self.answer(401, {"error": "Unauthorized"})
        self.stream(q, "messages" in q)


ThreadingHTTPServer.request_queue_size = 128
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
server.handle_error = lambda *args: None         # clients may leave
print(server.server_port, flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
os._exit(0)
