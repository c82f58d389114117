"""A larger model's held-out bits per byte, said before it is trained from three smaller ones that read the same text.

Books and speeches in the public domain, whole documents held out, one tokenizer for all. Each size is one run of the
`lm.pretrain` method; the fourth, twice the largest of the three or more, gets their runs as `with.forecast`. The
baseline says that the fourth will be as good as the third.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.data import data_root

TOLERANCE = 3.0
WIDTHS, QUICK_WIDTHS = (64, 96, 128, 192), (32, 48, 64, 96)
STEPS, QUICK_STEPS, BATCH = 120, 40, 4096


def measure(setting: Setting) -> Measured:
    """How far the forecast is from what the fourth run reaches, in percent."""
    from core.models.presets import PRESETS, _llama

    widths, steps = (QUICK_WIDTHS, QUICK_STEPS) if setting.quick else (WIDTHS, STEPS)
    train, dev = write_text(setting.work, 12_000 if setting.quick else 1_000_000)
    found: list[dict[str, Any]] = []
    for number, width in enumerate(widths):
        name = f"bar-{width}"
        PRESETS[name] = _llama(width, 4, width // 16, width // 16, width * 8 // 3 // 16 * 16, 256)
        last = number == len(widths) - 1
        before = [row["run"] for row in found] if last else []
        found.append(run_size(setting, name, steps, train, dev, before, found[0]["run"] if found else None))
    forecast = json.loads((Path(found[-1]["run"]) / "forecast.json").read_text())
    reached, said = found[-1]["bits_per_byte"], forecast["bits_per_byte"]
    off = 100 * abs(said / reached - 1)
    naive = 100 * abs(found[-2]["bits_per_byte"] / reached - 1)
    details = {
        "forecast": round(said, 4),
        "reached": round(reached, 4),
        "law": forecast["law"],
        "runs": [{**row, "run": Path(row["run"]).name} for row in found],
        "bits per byte by byte frequencies": round(found[-1]["byte_entropy"], 3),
    }
    baseline = {"off, had the third run been the forecast": round(naive, 2)}
    return Measured(round(off, 2), off <= TOLERANCE and off < naive, baseline, None, details)


def run_size(
    setting: Setting, preset: str, steps: int, train: Path, dev: Path, forecast: list[str], first: str | None
) -> dict[str, Any]:
    """Train one size; its parameters and held-out figures. All sizes have the first one's tokenizer."""
    from core.config.load import recipe_from
    from core.config.run_folder import RunFolder
    from core.training.run import train as run_recipe

    raw = {
        "app": "lm",
        "output": str(setting.work / preset),
        "model": {"preset": preset, "tokenizer": f"{first}/tokenizer" if first else "bpe:2048"},
        "data": {
            "train": [{"reader": "jsonl", "path": str(train)}],
            "eval": [{"reader": "jsonl", "path": str(dev)}],
            "max_length": 256,
        },
        "method": "lm.pretrain",
        "with": {"forecast": forecast},
        "train": {
            "max_steps": steps, "lr": 4e-3, "schedule": "wsd", "warmup": 0.1, "decay": 0.4, "betas": [0.9, 0.95],
            "weight_decay": 0.1, "batch": {"size": BATCH, "unit": "tokens"},
        },
        "eval": {"every": 0, "retention": False, "metrics": ["bits_per_byte", "byte_entropy"]},
        "checkpoint": {"every": 1000},
    }  # fmt: skip
    run = RunFolder.create(recipe_from(raw))
    result = run_recipe(run.recipe(), run)
    (stage,) = result["stages"]
    return {
        "run": str(run.path),
        "parameters": stage["parameters"],
        "tokens": stage["tokens_seen"],
        "bits_per_byte": float(result["after"].value("bits_per_byte")),
        "byte_entropy": float(result["after"].value("byte_entropy")),
    }


def write_text(folder: Path, longest: int) -> tuple[Path, Path]:
    """Training and held-out documents as JSONL, cut to so many characters; every tenth file is held out."""
    places = [data_root() / "lm" / name for name in ("gutenberg", "inaugural", "state_union")]
    files = sorted(p for place in places for p in place.glob("*.txt") if p.name != "SOURCE.txt")
    train, dev = folder / "train.jsonl", folder / "dev.jsonl"
    for place, chosen in ((train, [f for i, f in enumerate(files) if i % 10]), (dev, files[::10])):
        with open(place, "w", encoding="utf-8") as handle:
            for file in chosen:
                text = file.read_text(encoding="utf-8", errors="replace")
                handle.write(json.dumps({"text": text[: min(longest, 20_000) if place is dev else longest]}) + "\n")
    return train, dev


BAR = Bar(
    "lm.scaling",
    "bits per byte of the next size, forecast from three smaller runs",
    "% off",
    f"<= {TOLERANCE} %, and closer than the third run",
    "cpu",
    8,
    measure,
)
