"""What every trainer in a comparison gets: the same random model of a published shape, the same rows, the same clock.

Speed and memory do not depend on the values of weights. A job runs in a process of its own and prints one line of
JSON: seconds of every step, useful tokens of a step, peak memory, and the losses. Random rows teach nothing, so that
trainers agree on them whatever they do: each job on them has a twin (`J1-losses`) with the same switches on a small
model and rows of uneven lengths that can be learnt, whose losses say whether the trainers do the same.
"""

from __future__ import annotations

import json
import os
import statistics
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
                 "tie_word_embeddings": False, "rope_theta": 500000.0},
    "llama-3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
                 "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
                 "tie_word_embeddings": True, "rope_theta": 500000.0},
    "small": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
              "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
              "tie_word_embeddings": False, "rope_theta": 10000.0, "initializer_range": 0.08},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
             "tie_word_embeddings": False, "rope_theta": 10000.0},
}  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARM_UP, TIMED, COMPARED = 5, 8, 20
CAPTIONS = "translation/multi30k/train"


@dataclass(frozen=True)
class Job:
    """The settings common to all.

    Args:
        rank: of LoRA on the seven projections; 0 trains everything. four_bit: base in NF4 with double quantization.
        checkpoint: recompute activations. mixed: rows of mixed lengths, as instructions have them.
        text: rows are sentence pairs; walks: rows are random walks. fp32: weights and arithmetic.
    """

    shape: str = "llama-8b"
    length: int = 4096
    micro: int = 2
    accumulation: int = 4
    rank: int = 16
    lr: float = 1e-5
    four_bit: bool = False
    checkpoint: bool = False
    mixed: bool = False
    text: bool = False
    walks: bool = False
    fp32: bool = False
    steps: int = WARM_UP + TIMED


JOBS = {
    "J1": Job(),
    "J1c": Job(checkpoint=True),
    "J2": Job(four_bit=True),
    "J2c": Job(four_bit=True, checkpoint=True),
    # the largest micro-batches with which TRL's runs fit into 80 GB
    "J3": Job(shape="llama-3b", micro=2, accumulation=2, mixed=True),
    "J3-padded": Job(shape="llama-3b", micro=2, accumulation=16, mixed=True),
    "J7": Job(shape="small-22m", length=1024, micro=16, accumulation=1, lr=1e-4, text=True, fp32=True),
    "J7-full": Job(shape="small-22m", length=1024, micro=16, accumulation=1, lr=1e-4, rank=0, text=True, fp32=True),
    "tiny": Job(shape="tiny", length=128, micro=2, accumulation=2, steps=4),
    "tiny3": Job(shape="tiny", length=128, micro=4, accumulation=1, mixed=True, steps=4),
}


def losses_twin(job: Job) -> Job:
    """A short job with the switches of `job` whose losses fall: two trainers that differ show it."""
    if job.text:
        return replace(job, steps=COMPARED)
    small = {"shape": "small", "length": 128, "micro": 4, "accumulation": 4, "lr": 3e-3, "steps": COMPARED}
    return replace(job, walks=True, **small)


JOBS |= {f"{name}-losses": losses_twin(job) for name, job in JOBS.items()}


def model_folder(shape: str, place: Path) -> Path:
    """A folder with the shape's random bf16 weights and a tokenizer, made once, on the GPU where there is one."""
    if shape not in SHAPES:
        return _pretrained(shape)
    folder = place / shape
    if (folder / "done").is_file():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    given = dict(SHAPES[shape])
    theta = given.pop("rope_theta")
    config = LlamaConfig(
        **given, rope_parameters={"rope_type": "default", "rope_theta": theta}, max_position_embeddings=131072,
        rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size="4GB")
    _tokenizer(given["vocab_size"]).save_pretrained(folder)
    (folder / "done").touch()
    return folder


def _pretrained(name: str) -> Path:
    """A small model that lies beside the development data."""
    from benchmarks.data import data_root

    folder = data_root().parent / "models" / name
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no model: {folder} is missing")
    return folder


def _tokenizer(size: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["<unk>", "<s>", "</s>", "<pad>", *(f"w{i}" for i in range(size - 4))])}
    made = Tokenizer(models.WordLevel(words, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def rows(job: Job) -> list[list[int]]:
    """Token ids of every row in order: full rows, or lengths drawn as instructions have them (median near 400).

    Returns:
        steps × accumulation × micro rows; 32 a step where they are of mixed lengths, enough to fill packed sequences.
    """
    import torch

    if job.text:
        return _sentence_pairs(job)
    if job.walks:
        return _walks(job)
    generator = torch.Generator().manual_seed(1)
    vocabulary = SHAPES[job.shape]["vocab_size"]
    count = job.steps * (32 if job.mixed else job.accumulation * job.micro)
    lengths = [job.length] * count
    if job.mixed:
        drawn = torch.exp(torch.randn(count, generator=generator) * 0.9 + 6.0 * job.length.bit_length() / 13)
        lengths = drawn.clamp(min=16, max=job.length).long().tolist()
    return [torch.randint(4, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def _walks(job: Job) -> list[list[int]]:
    """Walks on a ring of 64 tokens, one to three steps at a time, of 4 to `length` tokens: ln 3 nats a token remain."""
    import torch

    generator = torch.Generator().manual_seed(2)
    walks = []
    for _ in range(job.steps * job.accumulation * job.micro):
        length = int(torch.randint(4, job.length + 1, (1,), generator=generator))
        walks.append((4 + torch.randint(1, 4, (length,), generator=generator).cumsum(0) % 64).tolist())
    return walks


def same_start(model: Any) -> Any:
    """`model` with LoRA's first factors drawn from their names, whatever each trainer draws them from."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                generator = torch.Generator().manual_seed(zlib.crc32(name[name.index("layers.") :].encode()))
                bound = parameter.shape[-1] ** -0.5
                drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                parameter.copy_(drawn)
    return model


def _sentence_pairs(job: Job) -> list[list[int]]:
    """German captions with their English translations, one pair a row."""
    from transformers import AutoTokenizer

    from benchmarks.data import read_lines

    tokenizer = AutoTokenizer.from_pretrained(_pretrained(job.shape))
    count = job.steps * job.accumulation * job.micro
    pairs = zip(read_lines(f"{CAPTIONS}.de")[:count], read_lines(f"{CAPTIONS}.en")[:count])
    return [[*tokenizer(f"{de} = {en}")["input_ids"], tokenizer.eos_token_id] for de, en in pairs]


class Clock:
    """Seconds of optimizer steps with the device idle at both ends, as a Trainer callback's methods."""

    def __init__(self) -> None:
        import torch

        self.torch, self.gpu, self.seconds = torch, torch.cuda.is_available(), list[float]()

    def now(self) -> float:
        if self.gpu:
            self.torch.cuda.synchronize()
        return time.perf_counter()

    def callback(self) -> Any:
        from transformers import TrainerCallback

        clock = self

        class Timing(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                clock.start = clock.now()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.seconds.append(clock.now() - clock.start)

        return Timing()


def report(peer: str, job: Job, clock: Clock, tokens: list[int], history: list[dict[str, Any]], **more: Any) -> None:
    """Print the line of JSON.

    Args:
        tokens: useful ones of every step.
    """
    import torch

    if len(clock.seconds) < 2:
        raise ValueError(f"{len(clock.seconds)} steps: the first ones compile and allocate, and are no measurement")
    timed = range(min(WARM_UP, len(clock.seconds) // 2), len(clock.seconds))
    rates = [tokens[i] / clock.seconds[i] for i in timed]
    memory = {}
    if torch.cuda.is_available():
        memory = {
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
            "gpu": torch.cuda.get_device_name(0),
        }
    found = {
        "peer": peer,
        "tokens_per_s": round(statistics.median(rates), 1),
        "range": [round(min(rates), 1), round(max(rates), 1)],
        **memory,
        "losses": [round(h["loss"], 5) for h in history if "loss" in h],
        "seconds": [round(s, 4) for s in clock.seconds],
        "versions": _versions(),
        **more,
    }
    print("RESULT " + json.dumps(found), flush=True)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "peft", "trl", "accelerate", "liger-kernel", "unsloth", "bitsandbytes"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def place() -> Path:
    """Where model folders lie: memory where there is room for them."""
    shm = Path("/dev/shm")
    wanted = shm if shm.is_dir() and os.statvfs(shm).f_bavail * os.statvfs(shm).f_frsize > 40e9 else ROOT / "runs"
    (wanted / "graft-peers").mkdir(parents=True, exist_ok=True)
    return wanted / "graft-peers"
