"""What the bars of quantization share: a pretrained model, held-out text, outliers, and the loss after each preset."""

from __future__ import annotations

import copy
import importlib.util
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.bar import Unavailable
from benchmarks.data import data_root
from benchmarks.domains import known


def model_folder(name: str) -> Path:
    """The folder of a small pretrained model, beside the data."""
    for root in (data_root().parent, data_root()):
        if (root / "models" / name / "config.json").is_file():
            return root / "models" / name
    raise Unavailable(f"no models/{name} beside {data_root()}")


def load(name: str, device: str) -> tuple[Any, Any]:
    """(model in fp32, tokenizer)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def ids_of(tokenizer: Any, lines: Sequence[str]) -> Any:
    """One row of ids of many lines."""
    import torch

    return torch.tensor([i for ids in tokenizer(list(lines), verbose=False)["input_ids"] for i in ids])


def texts(tokenizer: Any, seed: int, calibration: int, test: int, length: int) -> tuple[list[Any], list[Any]]:
    """Calibration rows from training text, drawn by `seed`, and held-out rows, as batches of ids (8, length).

    Both are WMT sentences, German and English; the models have seen those for calibration. Novels, which they have seen
    too, would mislead: AWQ's clipping by them costs more on news than rounding does.
    """
    held, seen = ids_of(tokenizer, known().held_out), ids_of(tokenizer, known().train)
    rows = held[: held.numel() // length * length].view(-1, length)
    rows = rows[:: max(1, len(rows) // test)][:test]
    return drawn(seen, seed, calibration, length), list(rows.split(8))


def drawn(ids: Any, seed: int, count: int, length: int) -> list[Any]:
    """Rows that begin at random places of one row of ids, in batches (8, length)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, ids.numel() - length, (count,), generator=generator)
    return list(torch.stack([ids[s : s + length] for s in starts.tolist()]).split(8))


PACKAGES, MOST_BYTES = ("numpy", "torch", "transformers"), 48 << 20


def library(tokenizer: Any, most_bytes: int = MOST_BYTES) -> tuple[Any, list[Any]]:
    """Python source: training ids in one row, and held-out batches (8, 512).

    Every twentieth file of the standard library is held out; the others and those of large packages, up to so many
    bytes of them, are for training.
    """
    import torch

    files = sources(Path(sysconfig.get_paths()["stdlib"]))
    held, train, size = files[::20], [file for number, file in enumerate(files) if number % 20], 0
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        for file in sources(Path(spec.origin).parent) if spec is not None and spec.origin else ():
            size += file.stat().st_size
            if size <= most_bytes:
                train.append(file)

    def ids(chosen: list[Path]) -> Any:
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in chosen]
        rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return torch.cat([torch.tensor(row, dtype=torch.long) for row in rows])

    tested = ids(held)
    count = min(128, tested.numel() // 512)
    return ids(train), list(tested[: count * 512].view(count, 512).split(8))


def sources(root: Path) -> list[Path]:
    """Python files below a folder in order, without tests and without packages that are installed there."""
    left_out = {"site-packages", "dist-packages", "test", "tests"}
    return sorted(file for file in root.rglob("*.py") if not left_out & set(file.relative_to(root).parts))


def nll(model: Any, batches: Sequence[Any]) -> float:
    """Nats a token."""
    import torch

    device, total, count = next(model.parameters()).device, 0.0, 0
    with torch.no_grad():
        for batch in batches:
            batch = batch.to(device)
            total += float(model(input_ids=batch, labels=batch, use_cache=False).loss) * batch.numel()
            count += batch.numel()
    return total / count


def inject(model: Any, factor: float, channels: int, seed: int) -> Any:
    """Multiply random gains of every norm by `factor` and divide the columns that read them: the same function."""
    import torch

    from core.models.topology import ModelTopology

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for ref in ModelTopology.of(model).blocks:
            for norm, readers in ((ref.norms[0], (ref.q, ref.k, ref.v)), (ref.norms[1], (ref.gate, ref.up))):
                chosen = torch.randperm(norm.weight.numel(), generator=generator)[:channels].to(norm.weight.device)
                norm.weight[chosen] *= factor
                for reader in readers:
                    reader.weight[:, chosen] /= factor
    return model


def increase(model: Any, spec: Any, calib: Sequence[Any], test: Sequence[Any], base: float, **options: Any) -> float:
    """Loss after `spec` less `base`; the model itself is left as it is."""
    from core.quantization import parse, quantize_model

    made = copy.deepcopy(model)
    spec = parse(spec)
    quantize_model(made, spec, calib if spec.needs_calibration else None, **options)
    return nll(made, test) - base


def plain_w8a8() -> Any:
    """Rows and tokens in int8, nothing kept out: what LLM.int8() is compared with."""
    from core.quantization import parse

    return replace(parse("llm_int8"), act="int8")
