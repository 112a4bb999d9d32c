#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the small reference models of this folder and their reference outputs (README.md).

    pip install torch transformers tokenizers safetensors numpy gguf accelerate
    tests/golden/generate.py [NAME ...]                 all models, or those named
    tests/golden/generate.py --smollm2 FILE.gguf        smollm2.json, from the model ./dev fetches
    tests/golden/generate.py --types                    types.json, what GGUF's quantized blocks stand for

Weights come from seeded generators; outputs are computed by transformers in float32 from the weights
as they are stored. The same library versions make the same files.
"""
import argparse
import importlib.metadata
import json
import math
import os
import random
import shutil
from collections import Counter

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, \
    processors, trainers

import material

HERE = os.path.dirname(os.path.abspath(__file__))
LENGTHS = (1, 7, 40, 150)   # of the prompts
SCORED = 40                 # the prompt whose own logprobs are listed
STEPS = 24
GAP = 0.025                 # the two best logits are never closer than this in a greedy continuation
TRIES = 384
PIECE_BYTES = [f"<0x{b:02X}>" for b in range(256)]
SPLITS = {"digits": r"\p{N}", "triples": r"\p{N}{1,3}"}
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")


# ---- tokenizers ----------------------------------------------------------------------------------

def add_tokens(tok, spec):
    def tokens(key):
        return [AddedToken(t, normalized=False, rstrip=t in spec.get("rstrip", ())) for t in spec.get(key, ())]
    tok.add_special_tokens(tokens("special"))
    tok.add_tokens(tokens("added"))


def with_bos(tok, spec, *before):
    if "bos" in spec:
        bos = spec["bos"]
        put = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tok.token_to_id(bos))])
        tok.post_processor = processors.Sequence([*before, put]) if before else put


def bytes_tokenizer(spec):
    """Byte-level BPE, as GPT-2's descendants have it."""
    tok = Tokenizer(models.BPE(ignore_merges=spec.get("ignore_merges", False)))
    if spec.get("nfc"):
        tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT % SPLITS[spec["split"]]), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(material.CORPUS, trainers.BpeTrainer(
        vocab_size=spec["size"] - len(spec.get("special", ())) - len(spec.get("added", ())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    add_tokens(tok, spec)
    with_bos(tok, spec, processors.ByteLevel(trim_offsets=False))
    return tok


def control_of(spec):
    return spec.get("control", ["<unk>", "<s>", "</s>"])


def pieces_of(spec):
    """The vocabulary of a SentencePiece-style BPE, in order: control, bytes, pieces given and learned."""
    room = spec["size"] - len(control_of(spec)) - 256 - len(spec["special"]) - len(spec.get("runs", ()))
    seen = Counter("".join(material.CORPUS).replace(" ", "▁"))
    alphabet = sorted(seen, key=lambda c: (-seen[c], c))[:80]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    learner.train_from_iterator(material.CORPUS, trainers.BpeTrainer(
        vocab_size=room, initial_alphabet=alphabet, limit_alphabet=len(alphabet), show_progress=False))
    vocab = learner.get_vocab()
    return control_of(spec) + PIECE_BYTES + spec.get("runs", []) + sorted(vocab, key=vocab.get)


def pieces_tokenizer(spec):
    """BPE over characters, U+2581 for the space. Every pair of pieces that makes a piece may merge, the
    earlier piece first, which is how SentencePiece itself merges (by score)."""
    pieces = pieces_of(spec)
    vocab = {p: i for i, p in enumerate(pieces)}
    control = control_of(spec)
    merges = [(p[:cut], p[cut:]) for p in pieces[len(control) + 256:] for cut in range(1, len(p))
              if p[:cut] in vocab and p[cut:] in vocab]
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if spec.get("metaspace"):
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    elif spec.get("prefix", True):
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:    # as Gemma has it; the split finds nothing, for there are no spaces left
        tok.normalizer = normalizers.Replace(" ", "▁")
        tok.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    strip = [decoders.Strip(" ", 1, 0)] if spec.get("prefix", True) else []
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    add_tokens(tok, {**spec, "special": control + spec["special"], "added": spec.get("runs", ())})
    with_bos(tok, spec)
    return tok


def make_tokenizer(spec):
    tok = (bytes_tokenizer if spec["kind"] == "bytes" else pieces_tokenizer)(spec)
    assert tok.get_vocab_size() == spec["size"], (tok.get_vocab_size(), spec["size"])
    return tok


# ---- weights -------------------------------------------------------------------------------------

def draw(config, seed):
    """Random weights by their names in HuggingFace's files, scaled so that every part matters."""
    rng = np.random.default_rng(seed)
    kind, hidden, vocab = config["model_type"], config["hidden_size"], config["vocab_size"]
    dim = config.get("head_dim", hidden // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    gemma, out = kind.startswith("gemma"), {}    # whose norms' weights lack the 1

    def matrix(name, rows, columns, gain=1.0):
        out[name + ".weight"] = rng.normal(0, gain / math.sqrt(columns), (rows, columns))

    def norm(name, n, gain=1.0):
        out[name + ".weight"] = rng.normal(gain - gemma, 0.2 * gain, n)

    def mlp(name, width):
        if kind == "phi3":
            matrix(name + ".gate_up_proj", 2 * width, hidden)
        else:
            matrix(name + ".gate_proj", width, hidden)
            matrix(name + ".up_proj", width, hidden)
        matrix(name + ".down_proj", hidden, width, 1.5)

    # Gemma's embeddings are scaled up: small ones, or each token would be followed by itself.
    matrix("model.embed_tokens", vocab, hidden, 0.6 if gemma else 1.5 if config["tie_word_embeddings"] else 3.0)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        norm(at + "input_layernorm", hidden)
        for part, rows in (("qkv", q + 2 * kv),) if kind == "phi3" else (("q", q), ("k", kv), ("v", kv)):
            matrix(at + f"self_attn.{part}_proj", rows, hidden)
            if kind == "qwen2":
                out[at + f"self_attn.{part}_proj.bias"] = rng.normal(0, 0.4, rows)
        matrix(at + "self_attn.o_proj", hidden, q, 1.5)
        if kind.startswith("qwen3") or kind == "gemma3_text":
            norm(at + "self_attn.q_norm", dim)
            norm(at + "self_attn.k_norm", dim)
        norm(at + "post_attention_layernorm", hidden, 2.0 if gemma else 1.0)
        if gemma:
            norm(at + "pre_feedforward_layernorm", hidden)
            norm(at + "post_feedforward_layernorm", hidden, 2.0)
        if kind == "qwen3_moe":
            matrix(at + "mlp.gate", config["num_experts"], hidden, 2.0)
            for e in range(config["num_experts"]):
                mlp(at + f"mlp.experts.{e}", config["moe_intermediate_size"])
        else:
            mlp(at + "mlp", config["intermediate_size"])
    norm("model.norm", hidden, 6.0 if gemma else 1.0)
    if not config["tie_word_embeddings"]:
        matrix("lm_head", vocab, hidden, 1.5)
    return {name: torch.from_numpy(value.astype(np.float32)) for name, value in out.items()}


def write_weights(path, weights, shards):
    names = list(weights)
    if shards == 1:
        save_file(weights, os.path.join(path, "model.safetensors"), {"format": "pt"})
        return
    index, size = {}, -(-len(names) // shards)
    for s in range(shards):
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        part = names[s * size:(s + 1) * size]
        save_file({n: weights[n] for n in part}, os.path.join(path, file), {"format": "pt"})
        index.update({n: file for n in part})
    total = sum(w.numel() * w.element_size() for w in weights.values())
    write_json(os.path.join(path, "model.safetensors.index.json"),
               {"metadata": {"total_size": total}, "weight_map": index})


# ---- what the network answers --------------------------------------------------------------------

@torch.no_grad()
def continue_greedily(model, prompts):
    """The ids and logits of STEPS greedy tokens after each prompt; all prompts have one length."""
    ids, cache, chosen, seen = torch.tensor(prompts), None, [], []
    for _ in range(STEPS):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, out.logits[:, -1].float()
        ids = logits.argmax(-1, keepdim=True)
        chosen.append(ids)
        seen.append(logits)
    return torch.cat(chosen, 1), torch.stack(seen, 1)


@torch.no_grad()
def logprobs_of(model, ids):
    return torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1)


def rounding_error(exact, rounded, prompt, new):
    """How far the logprobs that are listed move where all is computed in the stored type."""
    a, b = logprobs_of(exact, prompt + new), logprobs_of(rounded, prompt + new)
    moved, from_ = (a - b).abs(), len(prompt) - 1
    most = moved.gather(-1, a.topk(5).indices)[from_:-1].max()
    if len(prompt) == SCORED:
        most = max(most, moved[torch.arange(SCORED - 1), torch.tensor(prompt[1:])].max())
    return float(most)


def choose_prompt(exact, rounded, length, allowed, never, rng):
    """Of random prompts of a length, one whose continuation is well determined and not dull: the one
    that suffers least from rounding among those that keep GAP at every step."""
    if length == 1:
        tries = [[i] for i in rng.sample(allowed, min(TRIES, len(allowed)))]
    else:
        tries = [[rng.choice(allowed) for _ in range(length)] for _ in range(TRIES)]
    ids, logits = continue_greedily(exact, tries)
    best = logits.topk(2).values
    gaps = (best[..., 0] - best[..., 1]).amin(1).tolist()
    good = []
    for n, prompt in enumerate(tries):
        new = ids[n].tolist()
        if gaps[n] >= GAP and len(set(new)) >= 8 and not never & set(new):
            error = rounding_error(exact, rounded, prompt, new)
            good.append((error - min(gaps[n], 0.06) - 0.004 * min(len(set(new)), 16), n, error))
    assert good, f"no prompt of length {length} will do: try another seed"
    _, n, error = min(good)
    return tries[n], ids[n].tolist(), logits[n], error, gaps[n]


def generation(name, exact, rounded, allowed, never, seed):
    rng, cases, own = random.Random(seed), [], None
    original = getattr(exact.config, "original_max_position_embeddings", None)    # of longrope
    for length in LENGTHS:
        prompt, new, logits, error, gap = choose_prompt(exact, rounded, length, allowed, never, rng)
        logprobs = torch.log_softmax(logits, -1)
        again = logprobs_of(exact, prompt + new)[length - 1:-1]
        assert (again - logprobs).abs().max() < 1e-3, "with and without a cache must agree"
        top, pair = logprobs.topk(5), logits.topk(2).values
        limit = {"max_model_len": original} if original and length + STEPS <= original else {}
        cases.append({
            **limit, "prompt_ids": prompt, "greedy_ids": new, "stored_type_error": round(error, 4),
            "top5": [[[i, round(v, 5)] for i, v in zip(*row)]
                     for row in zip(top.indices.tolist(), top.values.tolist())],
            "gap": [round(v, 5) for v in (pair[:, 0] - pair[:, 1]).tolist()]})
        print(f"{name:12} prompt {length:3}: gap {gap:.3f}, rounding {error:.3f}, {len(set(new))} different",
              flush=True)
        if length == SCORED:
            scored = logprobs_of(exact, prompt)
            own = {"case": len(cases) - 1, "logprobs": [None] + [
                round(float(scored[i - 1, prompt[i]]), 5) for i in range(1, length)]}
    return cases, own


# ---- text ----------------------------------------------------------------------------------------

def random_strings(seed):
    rng = random.Random(seed)
    return ["".join(chr(rng.randint(*rng.choice(some))) for _ in range(5 + 4 * n))
            for n in range(12) for some in [rng.sample(material.RANGES, 3) + [(0x20, 0x7E)]]]


def text_cases(tok, seed, more):
    encode = [{"text": s, "ids": tok.encode(s, add_special_tokens=False).ids, "ids_special": tok.encode(s).ids}
              for s in material.STRINGS + more + random_strings(seed)]
    rng, decode = random.Random(seed), []
    for ids in [e["ids"] for e in encode] + [
            [rng.randrange(tok.get_vocab_size()) for _ in range(n)] for n in range(1, 16)]:
        case = {"ids": ids, "text": tok.decode(ids, skip_special_tokens=False)}
        short = tok.decode(ids)
        if short != case["text"]:
            case["text_skip_special"] = short
        decode.append(case)
    return {"encode": encode, "decode": decode}


def chat_cases(tok, template, **tokens):
    hf = transformers.PreTrainedTokenizerFast(tokenizer_object=tok, chat_template=material.TEMPLATES[template], **tokens)
    out = []
    for chat in material.CHATS:
        if template not in chat["templates"]:
            continue
        case = {k: v for k, v in chat.items() if k != "templates"}
        messages = json.loads(json.dumps(chat["messages"]))
        for call in [c for m in messages for c in m.get("tool_calls", ())]:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        try:
            case["rendered"] = hf.apply_chat_template(
                messages, tools=chat.get("tools"), add_generation_prompt=chat["add_generation_prompt"],
                tokenize=False, **chat.get("chat_template_kwargs", {}))
            case["ids"] = tok.encode(case["rendered"], add_special_tokens=False).ids
        except Exception as refusal:    # jinja2's, by raise_exception
            case["error"] = str(refusal)
        out.append(case)
    return out


# ---- files ---------------------------------------------------------------------------------------

def write_json(path, value, indent=None):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=indent)
        f.write("\n")


def fresh_folder(name):
    path = os.path.join(HERE, name)
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    return path


def network(path_or_config, weights=None, dtype=torch.float32):
    if weights is None:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            path_or_config, dtype=dtype, attn_implementation="eager", output_loading_info=True)
        assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        return model.eval()
    model = transformers.AutoModelForCausalLM.from_config(path_or_config, attn_implementation="eager")
    missing, extra = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not extra, (missing, extra)
    model.tie_weights()
    return model.to(dtype).eval()


def write_golden(path, name, stored, tok, eos, vocab, exact, rounded, seed, chats, strings):
    special = set(tok.get_added_tokens_decoder()) | set(eos)
    size = tok.get_vocab_size()
    cases, own = generation(name, exact, rounded, [i for i in range(size) if i not in special],
                            special | set(range(size, vocab)), seed)
    write_json(os.path.join(path, "golden.json"), {
        "model": name, "stored_dtype": stored, "math": "float32",
        "versions": {m.__name__: m.__version__ for m in (transformers, torch, tokenizers)},
        "generation": cases, "prompt_logprobs": own, "tokenizer": text_cases(tok, seed, strings), "chat": chats})
    for file in os.listdir(path):    # safetensors leaves files that only their owner may read
        os.chmod(os.path.join(path, file), 0o644)


def make_folder(spec):
    """A model as HuggingFace has it: a folder."""
    path, config = fresh_folder(spec["name"]), dict(spec["config"])
    tok = make_tokenizer(spec["tokenizer"])
    tok.save(os.path.join(path, "tokenizer.json"), pretty=False)
    bos = spec["tokenizer"].get("bos")
    eos = [tok.token_to_id(t) for t in spec["eos"]]
    names = {"eos_token": spec["eos"][0], **({"bos_token": bos} if bos else {})}
    config.update(bos_token_id=tok.token_to_id(bos) if bos else None,
                  eos_token_id=eos if "gguf" in spec else eos[0])
    write_json(os.path.join(path, "config.json"), config, 2)
    if "gguf" not in spec:
        write_json(os.path.join(path, "generation_config.json"), {
            "eos_token_id": eos if len(eos) > 1 else eos[0], **spec.get("generation", {})}, 2)
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048,
             "clean_up_tokenization_spaces": False, **names}
    if spec.get("template_file"):
        with open(os.path.join(path, "chat_template.jinja"), "w", encoding="utf-8") as f:
            f.write(material.TEMPLATES[spec["template"]])
    else:
        words["chat_template"] = material.TEMPLATES[spec["template"]]
    write_json(os.path.join(path, "tokenizer_config.json"), words, 2)
    dtype = getattr(torch, spec["stored"])
    weights = {n: w.to(dtype) for n, w in draw(config, spec["seed"]).items()}
    write_weights(path, weights, spec.get("shards", 1))
    if "gguf" in spec:
        write_gguf(os.path.join(path, "model.gguf"), config, {n: w.float() for n, w in weights.items()}, spec)
    low = torch.bfloat16 if dtype == torch.float32 else dtype
    write_golden(path, spec["name"], spec["stored"], tok, eos, config["vocab_size"], network(path),
                 network(path, dtype=low), spec["seed"], chat_cases(tok, spec["template"], **names),
                 spec["tokenizer"].get("strings", []))


# ---- the GGUF twin -------------------------------------------------------------------------------

GGUF_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm"}
GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm"}


def pairs_from_halves(weight, heads):
    """Rows of Q and K as kind `llama` keeps them: the two that rotate together lie side by side."""
    dim = weight.shape[0] // heads
    return weight.reshape(heads, 2, dim // 2, -1).transpose(0, 2, 1, 3).reshape(weight.shape)


def rope_factors(config):
    """What kind `llama` keeps of rope scaling `llama3`: by how much each frequency is divided."""
    scaling, dim = config["rope_scaling"], config["head_dim"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    out = []
    for i in range(0, dim, 2):
        turns = scaling["original_max_position_embeddings"] / (2 * math.pi * config["rope_theta"] ** (i / dim))
        smooth = min(max((turns - low) / (high - low), 0), 1)
        out.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(out, np.float32)


def write_gguf_tokenizer(w, spec):
    tokens, kinds = spec["tokenizer"], gguf.TokenType
    control, pieces = control_of(tokens), pieces_of(tokens)
    given, special = tokens.get("runs", []), tokens["special"]
    before = len(control) + 256 + len(given)
    learned = len(pieces) - before
    w.add_tokenizer_model("llama")
    # Converters spell added tokens with the spaces that they stand for.
    w.add_token_list([p.replace("▁", " ") if p in given else p for p in pieces] + special)
    w.add_token_scores([0.0] * before + [-float(i) for i in range(learned)] + [0.0] * len(special))
    w.add_token_types([kinds.UNKNOWN if t == "<unk>" else kinds.CONTROL for t in control] + [kinds.BYTE] * 256
                      + [kinds.USER_DEFINED] * len(given) + [kinds.NORMAL] * learned + [kinds.CONTROL] * len(special))
    w.add_bos_token_id((pieces + special).index(tokens["bos"]))
    w.add_eos_token_id((pieces + special).index(spec["eos"][0]))
    w.add_unk_token_id(control.index("<unk>"))
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_add_space_prefix(tokens.get("prefix", True))
    w.add_chat_template(material.TEMPLATES[spec["template"]])


def write_gguf_options(w, config, kind):
    dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    w.add_block_count(config["num_hidden_layers"])
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_head_count_kv(config["num_key_value_heads"])
    if kind in ("llama", "phi3"):
        w.add_rope_dimension_count(int(dim * config.get("partial_rotary_factor", 1)))
    else:
        w.add_key_length(dim)
        w.add_value_length(dim)
    w.add_rope_freq_base(config["rope_theta"])
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    w.add_vocab_size(config["vocab_size"])
    if config.get("sliding_window"):
        w.add_sliding_window(config["sliding_window"])
    if "sliding_window_pattern" in config:
        w.add_sliding_window_pattern(config["sliding_window_pattern"])
    if "rope_local_base_freq" in config:
        w.add_rope_freq_base_swa(config["rope_local_base_freq"])
    if "original_max_position_embeddings" in config:
        original = config["original_max_position_embeddings"]
        factor = config["max_position_embeddings"] / original
        w.add_rope_scaling_orig_ctx_len(original)
        w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(factor) / math.log(original)))
    if (config.get("rope_scaling") or {}).get("rope_type") == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(config["rope_scaling"]["factor"])
    if config.get("attn_logit_softcapping"):
        w.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping"):
        w.add_final_logit_softcapping(config["final_logit_softcapping"])
    if "query_pre_attn_scalar" in config:
        w.add_attention_scale(config["query_pre_attn_scalar"] ** -0.5)


def gguf_name(name, gemma):
    short = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}.get(name)
    if short:
        return short
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{(GEMMA_NAMES if gemma else {}).get(part) or GGUF_NAMES[part]}.weight"


def write_gguf(path, config, weights, spec):
    kind = spec.get("gguf", "llama")
    w = gguf.GGUFWriter(path, kind)
    w.add_name(spec["name"])
    write_gguf_options(w, config, kind)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    write_gguf_tokenizer(w, spec)
    if kind == "llama":
        w.add_tensor("rope_freqs.weight", rope_factors(config))
    if kind == "phi3":
        for which in ("long", "short"):
            factors = np.array(config["rope_scaling"][which + "_factor"], np.float32)
            w.add_tensor(f"rope_factors_{which}.weight", factors)
    gemma = kind.startswith("gemma")
    for name, value in weights.items():
        value = value.numpy()
        if kind == "llama" and (".q_proj" in name or ".k_proj" in name):
            value = pairs_from_halves(value, config["num_attention_heads" if ".q_" in name else "num_key_value_heads"])
        if gemma and value.ndim == 1:
            value = 1 + value
        w.add_tensor(gguf_name(name, gemma), value if value.ndim == 1 else value.astype(np.float16))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def make_twin(spec):
    path = fresh_folder(spec["name"])
    config = dict(next(m for m in material.MODELS if m["name"] == spec["of"])["config"])
    source = next(m for m in material.MODELS if m["name"] == spec["of"])
    # The folder's weights are bfloat16; this file's matrices are float16 of those.
    weights = {n: v.to(torch.bfloat16).float() for n, v in draw(config, source["seed"]).items()}
    weights = {n: v if v.ndim == 1 else v.half().float() for n, v in weights.items()}
    write_gguf(os.path.join(path, "model.gguf"), config, weights, spec)
    tok = make_tokenizer(spec["tokenizer"])
    hf = transformers.AutoConfig.for_model(**config, bos_token_id=1, eos_token_id=2)
    write_golden(path, spec["name"], "float16", tok, [2], config["vocab_size"], network(hf, weights),
                 network(hf, weights, torch.float16), spec["seed"],
                 chat_cases(tok, spec["template"], bos_token="<s>", eos_token="</s>"), [])


# ---- a real model --------------------------------------------------------------------------------

@torch.no_grad()
def make_smollm2(file):
    folder, name = os.path.split(os.path.abspath(file))
    tok = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    cases = [{"text": text} for text in material.SMOLLM2["texts"]]
    cases += [{"messages": m, "text": tok.apply_chat_template(m, tokenize=False, add_generation_prompt=True)}
              for m in material.SMOLLM2["chats"]]
    for case in cases:
        case["ids"] = tok(case["text"], add_special_tokens=False).input_ids
        case.update(greedy_ids=[], top5=[], gap=[])
        ids, cache = torch.tensor([case["ids"]]), None
        for _ in range(48):
            out = model(ids, past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[0, -1]
            top, pair = torch.log_softmax(logits, -1).topk(5), logits.topk(2).values
            ids = top.indices[:1].view(1, 1)
            case["greedy_ids"].append(int(ids))
            case["top5"].append([[i, round(v, 4)] for i, v in zip(top.indices.tolist(), top.values.tolist())])
            case["gap"].append(round(float(pair[0] - pair[1]), 4))
        case["greedy_text"] = tok.decode(case["greedy_ids"])
    write_json(os.path.join(HERE, "smollm2.json"), {
        "model": name, "math": "float32, weights expanded",
        "versions": {m.__name__: m.__version__ for m in (transformers, torch)}, "cases": cases})


TYPES = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2),
          "Q6_K": (208,)}   # where a block has its float16 numbers; else at 0


def make_types():
    """A row of 256 values of each type, of random bytes, and what gguf says they are."""
    rng, types = np.random.default_rng(20), {}
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        columns, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (256 // columns, size), dtype=np.uint8)
        for at in HALVES.get(name, (0,)):
            halves = rng.uniform(-0.1, 0.1, len(blocks)).astype(np.float16)
            blocks[:, at:at + 2] = halves.view(np.uint8).reshape(-1, 2)
        row = blocks.reshape(1, -1)
        values = gguf.quants.dequantize(row, kind).astype(np.float32)
        types[name] = {"bytes": row.tobytes().hex(), "values": values.tobytes().hex()}
    write_json(os.path.join(HERE, "types.json"), {"gguf": importlib.metadata.version("gguf"), "types": types})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smollm2", metavar="FILE")
    parser.add_argument("--types", action="store_true")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.types:
        return make_types()
    if args.smollm2:
        return make_smollm2(args.smollm2)
    for spec in material.MODELS:
        if not args.names or spec["name"] in args.names:
            make_folder(spec)
    if not args.names or material.TWIN["name"] in args.names:
        make_twin(material.TWIN)


if __name__ == "__main__":
    main()
