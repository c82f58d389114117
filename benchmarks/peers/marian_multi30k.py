"""A Marian-configured encoder-decoder on Multi30k en→de, trained by a plain loop for a given time.

Joint byte-level BPE of 8,192; the feed-forward width is set so that the parameters are as many as asked for. AdamW,
warm-up and cosine over the time given, label smoothing, dropout, bf16 autocast; the weights best in greedy BLEU on 400
development sentences are taken, and decoded with five beams. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from pathlib import Path

import sacrebleu
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MarianConfig, MarianMTModel

PAD, EOS, WARMUP = 0, 1, 0.08
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# cuDNN's attention plans anew for every shape, and padded batches have many: 325 ms a step instead of about 40.
torch.backends.cuda.enable_cudnn_sdp(False)
arguments = argparse.ArgumentParser()
arguments.add_argument("--data", type=Path, required=True)
arguments.add_argument("--limit", type=int, default=None, help="training pairs, for a trial")
DEFAULTS = {"seconds": 300.0, "parameters": 14_000_000, "layers": 3, "width": 384, "dropout": 0.3, "lr": 1e-3,
            "tokens": 12288, "evaluations": 10, "seed": 42}  # fmt: skip
for name, default in DEFAULTS.items():
    arguments.add_argument(f"--{name}", type=type(default), default=default)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    settings = {"vocab_size": 8192, "special_tokens": ["<pad>", "</s>"], "initial_alphabet": alphabet}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(**settings, show_progress=False))
    return tokenizer


def size(model: MarianMTModel) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def build(a: argparse.Namespace, ffn: int = 1024) -> MarianMTModel:
    torch.manual_seed(a.seed)
    heads = a.width // 64
    return MarianMTModel(MarianConfig(
        vocab_size=8192, d_model=a.width, encoder_layers=a.layers, decoder_layers=a.layers, encoder_ffn_dim=ffn,
        decoder_ffn_dim=ffn, encoder_attention_heads=heads, decoder_attention_heads=heads, dropout=a.dropout,
        attention_dropout=0.1, activation_dropout=0.0, activation_function="relu", scale_embedding=True,
        max_position_embeddings=256, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD, bos_token_id=None,
        forced_eos_token_id=None,
    ))  # fmt: skip


def batches(pairs: list[tuple[list[int], list[int]]], tokens: int, rng: random.Random):
    """Batches of similar length in random order, for ever; `tokens` bounds source and target with their padding."""
    while True:
        groups, group, longest = [], [], 0
        for pair in sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1]) + 4 * rng.random()):
            longest = max(longest, *map(len, pair))
            if 2 * longest * (len(group) + 1) > tokens:
                groups.append(group)
                group, longest = [], max(map(len, pair))
            group.append(pair)
        groups.append(group)
        rng.shuffle(groups)
        yield from groups


def pad(rows: list[list[int]]) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows]).to(DEVICE, non_blocking=True)


@torch.inference_mode()
def translate(model: MarianMTModel, tokenizer: Tokenizer, sources: list[list[int]], beams: int) -> list[str]:
    model.eval()
    order, texts = sorted(range(len(sources)), key=lambda i: -len(sources[i])), [""] * len(sources)
    for part in (order[start : start + 128] for start in range(0, len(order), 128)):
        ids = pad([sources[i] for i in part])
        with torch.autocast(DEVICE, torch.bfloat16):
            out = model.generate(input_ids=ids, attention_mask=(ids != PAD).long(), num_beams=beams, max_new_tokens=80)
        for i, text in zip(part, tokenizer.decode_batch(out.tolist())):
            texts[i] = text.strip()
    model.train()
    return texts


def main(a: argparse.Namespace) -> None:
    parts = [(part, lang) for part in ("train", "val", "test_2016_flickr") for lang in ("en", "de")]
    text = {p: (a.data / ".".join(p)).read_text(encoding="utf-8").removesuffix("\n").split("\n") for p in parts}
    tokenizer = train_tokenizer(text["train", "en"] + text["train", "de"])
    ids = {part: [e.ids + [EOS] for e in tokenizer.encode_batch(lines)] for part, lines in text.items()}
    pairs = list(zip(ids["train", "en"], ids["train", "de"]))[: a.limit]
    unit = 2 * a.layers * (2 * a.width + 1)  # parameters of one feed-forward unit in every layer
    model = build(a, max(64, 1024 + round((a.parameters - size(build(a))) / unit))).to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=a.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    best, weights, done, start = -1.0, None, 0, time.perf_counter()
    for step, group in enumerate(batches(pairs, a.tokens, random.Random(a.seed))):
        share = (time.perf_counter() - start) / a.seconds
        if share >= (done + 1) / a.evaluations:
            done += 1
            found = translate(model, tokenizer, ids["val", "en"][:400], beams=1)
            bleu = sacrebleu.corpus_bleu(found, [text["val", "de"][:400]]).score
            print(f"{share:.2f} step {step} development BLEU {bleu:.2f}", flush=True)
            if bleu > best:
                best, weights = bleu, copy.deepcopy(model.state_dict())
        if share >= 1:
            break
        rate = a.lr * min(1.0, (share + 1e-4) / WARMUP) * 0.5 * (1 + math.cos(math.pi * share))
        optimizer.param_groups[0]["lr"] = rate
        source, target = pad([source for source, _ in group]), pad([target for _, target in group])
        given = torch.cat([torch.full_like(target[:, :1], PAD), target[:, :-1]], dim=1)
        with torch.autocast(DEVICE, torch.bfloat16):
            mask = (source != PAD).long()
            logits = model(input_ids=source, attention_mask=mask, decoder_input_ids=given, use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), ignore_index=PAD, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = round(time.perf_counter() - start, 1)
    model.load_state_dict(weights)
    found, references = (
        translate(model, tokenizer, ids["test_2016_flickr", "en"], beams=5),
        text["test_2016_flickr", "de"],
    )
    scores = {"bleu": sacrebleu.corpus_bleu(found, [references]), "chrf": sacrebleu.corpus_chrf(found, [references])}
    result = {name: round(score.score, 2) for name, score in scores.items()}
    result |= {"parameters": size(model), "steps": step, "seconds": seconds, "development_bleu": round(best, 2)}
    settings = {name: getattr(a, name) for name in DEFAULTS if name not in ("seconds", "parameters")}
    print(json.dumps({**result, "settings": settings}))


if __name__ == "__main__":
    main(arguments.parse_args())
