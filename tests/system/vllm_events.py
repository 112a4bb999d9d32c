# SPDX-License-Identifier: Apache-2.0
"""vLLM's KV events, spoken by what vLLM and foreign routers use: pyzmq, msgspec and cbor2.

  vllm_events.py subscribe URL MODEL EVENTS REPLAY    follows a perilune and asks it things
  vllm_events.py publish map|array                    is a vLLM, until its input ends

The classes of events and the ways of both sockets are vLLM's. Prints "ok" lines; fails with
an exception.
"""
import hashlib
import json
import select
import sys
import time
import urllib.request

import cbor2
import msgspec
import zmq

SECONDS = 60
SEED = "vllm-none-hash"
BLOCK = 16
END = (-1).to_bytes(8, "big", signed=True)


def digest(value):
    return hashlib.sha256(cbor2.dumps(value, canonical=True)).digest()


def names(tokens, salt=None):
    """The names of a prompt's full blocks: by sha256_cbor, as events have them."""
    parent, out = digest(SEED), []
    for at in range(0, len(tokens) // BLOCK * BLOCK, BLOCK):
        extra = (salt,) if salt is not None and at == 0 else None
        parent = digest((parent, tuple(tokens[at:at + BLOCK]), extra))
        out.append(int.from_bytes(parent, "big") & ((1 << 64) - 1))
    return out


def classes(array_like):
    """vLLM's events; arrays until the middle of 2026, maps since."""
    class Event(msgspec.Struct, array_like=array_like, omit_defaults=True, gc=False, tag=True):
        pass

    if array_like:
        class BlockStored(Event):
            block_hashes: list[int | bytes]
            parent_block_hash: int | bytes | None
            token_ids: list[int]
            block_size: int
            lora_id: int | None
            medium: str | None
            lora_name: str | None
    else:
        class BlockStored(Event, forbid_unknown_fields=True):
            block_hashes: list[int | bytes]
            parent_block_hash: int | bytes | None
            token_ids: list[int]
            block_size: int
            lora_id: int | None
            medium: str | None
            lora_name: str | None
            extra_keys: list[tuple | None] | None = None
            group_idx: int | None = None
            kv_cache_spec_kind: str | None = None
            kv_cache_spec_sliding_window: int | None = None
            locality: str | None = None

    class BlockRemoved(Event):
        block_hashes: list[int | bytes]
        medium: str | None
        group_idx: int | None = None

    class AllBlocksCleared(Event):
        pass

    class KVEventBatch(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
        ts: float
        events: list[BlockStored | BlockRemoved | AllBlocksCleared]
        data_parallel_rank: int | None = None

    return BlockStored, BlockRemoved, AllBlocksCleared, KVEventBatch


# ---- a subscriber ----------------------------------------------------------------------


def complete(url, model, tokens, salt=None):
    body = {"model": model, "prompt": tokens, "max_tokens": 1, "temperature": 0}
    if salt is not None:
        body["cache_salt"] = salt
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        assert answer.status == 200


def receive(socket):
    assert socket.poll(SECONDS * 1000), "nothing comes"
    return socket.recv_multipart()


def replay(context, endpoint, first):
    """All that is replayed from a number on, as (number, payload)."""
    socket = context.socket(zmq.DEALER)
    socket.connect(endpoint)
    socket.send_multipart([b"", first.to_bytes(8, "big")])
    out = []
    while True:
        empty, number, payload = receive(socket)
        assert empty == b""
        if number == END:
            assert payload == b""
            socket.close()
            return out
        out.append((int.from_bytes(number, "big"), payload))


def subscribe(url, model, endpoint, replay_endpoint):
    stored_class, removed_class, cleared_class, batch_class = classes(False)
    decoder = msgspec.msgpack.Decoder(batch_class)
    context = zmq.Context()
    sub = context.socket(zmq.SUB)
    sub.connect(endpoint)
    sub.setsockopt_string(zmq.SUBSCRIBE, "kv-events")
    deadline = time.time() + SECONDS
    k = 0
    while not sub.poll(200):  # until it has subscribed
        assert time.time() < deadline, "nothing comes"
        k += 1
        complete(url, model, [10 + k % 200] * 40)
    while sub.poll(500):
        number = int.from_bytes(sub.recv_multipart()[1], "big")
    print("ok a subscriber hears of requests")

    seen = []
    for tokens, salt in ([[(7 * i + 3) % 250 for i in range(50)], None],
                         [[(11 * i + 5) % 250 for i in range(33)], "käse"],
                         [[255] * 16 + [0] * 17, None]):
        complete(url, model, tokens, salt)
        topic, sequence, payload = receive(sub)
        seen.append(payload)
        assert topic == b"kv-events", topic
        assert int.from_bytes(sequence, "big") == number + len(seen)
        batch = decoder.decode(payload)
        assert abs(batch.ts - time.time()) < SECONDS and batch.data_parallel_rank == 0
        event = [e for e in batch.events if isinstance(e, stored_class)][0]
        assert event.block_hashes == names(tokens, salt), (event, names(tokens, salt))
        assert event.token_ids == tokens[:len(tokens) // BLOCK * BLOCK]
        assert (event.parent_block_hash, event.block_size) == (None, BLOCK)
        assert (event.medium, event.lora_id, event.lora_name) == ("GPU", None, None)
        assert event.extra_keys[0] == (None if salt is None else (salt,)), event.extra_keys
    print("ok blocks are named as vLLM names them by sha256_cbor")

    told = replay(context, replay_endpoint, number + 1)
    assert told == [(number + 1 + i, p) for i, p in enumerate(seen)], told
    assert replay(context, replay_endpoint, number + 100) == []
    old = context.socket(zmq.REQ)  # as vLLM's own example asks
    old.connect(replay_endpoint)
    old.send((number + 2).to_bytes(8, "big"))
    sequence, payload = receive(old)
    assert (int.from_bytes(sequence, "big"), payload) == (number + 2, seen[1])
    print("ok what was missed is replayed")
    context.destroy(linger=0)


# ---- a publisher -----------------------------------------------------------------------


def publish(form):
    """Publishes; what is told in words is kept for replay, but half of it is never sent."""
    stored_class, removed_class, cleared_class, batch_class = classes(form == "array")
    encoder = msgspec.msgpack.Encoder()
    context = zmq.Context()
    pub, router = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
    pub.bind("tcp://127.0.0.1:*")
    router.bind("tcp://127.0.0.1:*")
    kept = []

    def stored(tokens, as_bytes=False):
        hashes = names(tokens)
        if as_bytes:
            hashes = [b"\0" * 24 + h.to_bytes(8, "big") for h in hashes]
        return stored_class(hashes, None, tokens[:len(hashes) * BLOCK], BLOCK, None, "GPU",
                            None)

    def say(events, is_lost=False):
        payload = encoder.encode(batch_class(time.time(), events, 0))
        if not is_lost:
            pub.send_multipart((b"kv-events", len(kept).to_bytes(8, "big"), payload))
        kept.append(payload)

    def answer():
        client, empty, first = router.recv_multipart()
        for number in range(int.from_bytes(first, "big"), len(kept)):
            router.send_multipart((client, b"", number.to_bytes(8, "big"), kept[number]))
        router.send_multipart((client, b"", END, b""))

    texts = [[i] * (16 * (1 + i % 3)) for i in range(12)]
    say([cleared_class()])
    for i, text in enumerate(texts):
        say([stored(text, as_bytes=i % 4 == 1)], is_lost=i % 2 == 1)
    say([removed_class(names(texts[2])[-1:], "GPU"), removed_class(names(texts[3]), "GPU")],
        is_lost=True)
    say([removed_class(names(texts[5]), "CPU")], is_lost=True)  # of another cache
    gone = {2: 1, 3: len(names(texts[3]))}
    print(json.dumps({"endpoint": pub.last_endpoint.decode(),
                      "replay": router.last_endpoint.decode(), "texts": texts,
                      "depths": [len(names(text)) - gone.get(i, 0)
                                 for i, text in enumerate(texts)]}), flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        if router.poll(50):
            answer()
        else:
            say([stored(texts[0])])  # known already: so that a gap is noticed
    context.destroy(linger=0)


if sys.argv[1] == "subscribe":
    subscribe(*sys.argv[2:])
else:
    publish(sys.argv[2])
