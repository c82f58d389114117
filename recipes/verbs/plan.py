"""`graft plan`: what a run will train, need and take, told from the recipe and the model's config.json."""

from __future__ import annotations

import argparse
import json
import subprocess

from recipes.catalogue import find
from recipes.verbs import count

EXAMPLES = """  graft plan recipes/translation/quickstart.yaml
  graft plan recipes/translation/alma.yaml model.path=/models/8b --device h100
  graft plan mine.yaml --data        also read and tokenise the data: rows, tokens, steps"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="key.path=value")
    parser.add_argument("--device", help="h200, h100, a100-80, …, or cpu; default: this machine's")
    parser.add_argument("--gpus", type=count, default=1, help="data-parallel over this many devices")
    parser.add_argument("--data", action="store_true", help="read the data too (seconds to minutes)")
    parser.add_argument("--smoke", action="store_true", help="plan the small form")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(options: argparse.Namespace) -> int:
    from core.config.load import load_recipe, resolve_stages, smoke
    from core.costmodel.hardware import device_named
    from core.costmodel.plan import plan_stages

    recipe = load_recipe(find(options.recipe), options.overrides)
    if options.smoke:
        recipe = smoke(recipe)
    device = device_named(options.device or this_device(recipe.backend.device))
    plans = plan_stages(resolve_stages(recipe), device, options.gpus)
    data = _data(recipe) if options.data else None
    if options.json:
        print(json.dumps({"device": device.name, "stages": [p.to_dict() for p in plans], "data": data}, indent=2))
    else:
        for plan in plans:
            print(describe(plan, device.name))
        for stage in (data or {}).get("stages", []):
            print(
                f"{stage['stage']}: "
                + ", ".join(f"{k} {v}" for k, v in stage.items() if k not in ("stage", "method") and v != [])
            )
    return 0 if all(plan.refusal is None for plan in plans) else 2


def this_device(wanted: str) -> str:
    """The first GPU's name as the cost model knows it; cpu where there is none."""
    from core.costmodel.hardware import known_as

    if wanted == "cpu":
        return "cpu"
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        product = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "cpu"
    return known_as(product) or product


def describe(plan, device: str) -> str:
    """One stage for people."""
    row = plan.to_dict()
    share = row["trainable"] / row["parameters"]
    parts = ", ".join(f"{name} {size:.2f}" for name, size in row["by_category_gib"].items() if size >= 0.005)
    lines = [
        f"{row['stage']} ({row['method']}) on {device}:",
        f"  {row['parameters'] / 1e6:,.2f}M parameters, {row['trainable'] / 1e6:,.2f}M train ({share:.1%})",
        f"  micro-batch {row['micro']} × accumulation {row['accumulation']}, sequences of {row['length']} tokens,"
        f" activation checkpointing {row['activation_checkpoint']}",
        f"  peak {row['peak_gib']:.2f} GiB ({parts}); {row['needed_gib']:.2f} GiB should be free",
        f"  {row['seconds_a_step']:.3g} s a step, {row['tokens_a_second']:,} tokens/s",
    ]
    if plan.refusal:
        lines.append(f"  DOES NOT FIT: {plan.refusal}".replace("\n", "\n  "))
    return "\n".join(lines)


def _data(recipe):
    from core.training.run import plan

    return plan(recipe)
