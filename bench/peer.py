#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures llama.cpp (through llama-cpp-python's low-level API) as bench/engine.lua measures perilune.

    peer.py MODEL.gguf [--threads 2] [--rounds 3]

decode        one sequence, 128 tokens after a prompt of 8
prefill_512   a prompt of 512 in one batch
batch_16      16 sequences of their own at once, 64 tokens each after prompts of 32

Each in tokens a second, the median of the rounds, for the better of flash attention on and off. The
last line is JSON. Every step takes the best token of its logits, as a server without sampling would.
"""
import argparse
import json
import statistics
import time

import llama_cpp as ll
import numpy as np

@ll.llama_log_callback
def silent(_level, _text, _data):
    pass


class Peer:
    def __init__(self, path, threads, flash):
        self.model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        assert self.model, path
        params = ll.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 16 * 1024, 512, 512    # 1024 a sequence
        params.n_seq_max, params.n_threads, params.n_threads_batch = 16, threads, threads
        params.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else ll.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.kv_unified = False
        self.context = ll.llama_init_from_model(self.model, params)
        self.vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        self.batch = ll.llama_batch_init(512, 0, 1)

    def close(self):
        ll.llama_batch_free(self.batch)
        ll.llama_free(self.context)
        ll.llama_model_free(self.model)

    def step(self, rows):
        """rows: (token, position, sequence, wants logits). The best token of each row that wants."""
        b = self.batch
        b.n_tokens = len(rows)
        for i, (token, position, sequence, wants) in enumerate(rows):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, position, 1, wants
            b.seq_id[i][0] = sequence
        assert ll.llama_decode(self.context, b) == 0
        return [int(np.ctypeslib.as_array(ll.llama_get_logits_ith(self.context, i), (self.vocab,)).argmax())
                for i, row in enumerate(rows) if row[3]]

    def clear(self):
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)

    def prompt(self, sequence, length):
        return [((104729 * i + 7919 * sequence) % self.vocab, i, sequence, i == length - 1) for i in range(length)]

    def generate(self, sequences, prompt, tokens):
        """Tokens a second of so many sequences, without the reading of their prompts."""
        self.clear()
        last = [self.step(self.prompt(s, prompt))[0] for s in range(sequences)]
        start = time.perf_counter()
        for n in range(tokens):
            last = self.step([(t, prompt + n, s, True) for s, t in enumerate(last)])
        return sequences * tokens / (time.perf_counter() - start)

    def read(self, length):
        self.clear()
        start = time.perf_counter()
        self.step(self.prompt(0, length))
        return length / (time.perf_counter() - start)

    def measure(self):
        return {"decode": self.generate(1, 8, 128), "prefill_512": self.read(512),
                "batch_16": self.generate(16, 32, 64)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    ll.llama_log_set(silent, None)
    ll.llama_backend_init()
    better = {}
    for flash in (False, True):
        peer = Peer(args.model, args.threads, flash)
        peer.read(512)    # once unmeasured: pages come in, threads start
        rounds = [peer.measure() for _ in range(args.rounds)]
        for name in rounds[0]:
            value = statistics.median(r[name] for r in rounds)
            print(f"flash attention {'on ' if flash else 'off'}  {name:11} {value:8.1f} tokens/s   "
                  + " ".join(f"{r[name]:.1f}" for r in rounds), flush=True)
            better[name] = max(better.get(name, 0), round(value, 1))
        peer.close()
    print(json.dumps({"engine": "llama.cpp", "version": "llama-cpp-python " + ll.__version__,
                      "threads": args.threads, **better}))


if __name__ == "__main__":
    main()
