"""What each preset costs in loss, as a share of what rounding to nearest costs at the same bits.

A pretrained 22M-parameter Llama, held-out text, three draws of calibration text. Outliers, which small models do
not have, are injected by a rescaling that leaves the function as it is: four gains of every norm times 50. On a GPU a
30M model is trained beside, on Python source, because the targets are those that a model of this size and
training reached with the same definitions; it is judged by them too. What rounding costs grows with training, and the
shares of the better presets fall: it is trained as long as that one was. The form for a CPU takes a 7M model and few
presets.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from typing import Any

from benchmarks.bar import Bar, Measured, Setting
from benchmarks.bars.quantization_ternary import fresh, trained
from benchmarks.quantization import drawn, increase, inject, library, load, model_folder, nll, plain_w8a8, texts
from benchmarks.sharing import together

SEEDS = (1, 2, 3)
# preset → the largest share of asymmetric rounding's loss increase, by bits
TARGETS: dict[str, dict[int, float]] = {
    "awq": {4: 0.90, 3: 0.80},
    "bitmod": {4: 1.05, 3: 0.80},
    "squeezellm:dense": {4: 1.05, 3: 0.68},
    "squeezellm": {4: 0.80, 3: 0.50},
    "gptq": {4: 0.80, 3: 0.75},
    "awq:bitmod": {3: 0.62},
}
# what the 7M model and its short calibration reached when they were first measured, and a little more
SMALL = {"gptq": {3: 0.9}, "bitmod": {3: 0.75}}
# with outliers: the largest share of the plain counterpart's
INJECTED = {"awq:4 of rtn:4": 0.55, "llm_int8 of W8A8": 0.05}
FACTOR, CHANNELS = 50.0, 4
STEPS, TEXT = 3720, 72 << 20


def measure(setting: Setting) -> Measured:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = setting.quick or device == "cpu"
    name, seeds = "tiny-7m" if small else "small-22m", SEEDS[:1] if setting.quick else SEEDS
    start, folder = time.perf_counter(), setting.work / "30M"
    jobs: dict[str, Any] = {f"draw {seed}": (_row, (seed, name, device, small)) for seed in seeds}
    if not small:
        jobs["training of 30M"] = (_learn, (str(folder), device))
    found = together(jobs, work=setting.work)
    learnt: list[dict[str, Any]] = []
    if not small:
        again = {f"30M, draw {seed}": (_learnt_row, (seed, str(folder), device)) for seed in seeds}
        learnt = list(together(again, work=setting.work).values())
        shutil.rmtree(folder)
    details = {"model": name, "device": device, "30M training": found.pop("training of 30M", None)}
    details["seconds"] = time.perf_counter() - start
    return _judge(list(found.values()), learnt, small, details)


def _row(seed: int, name: str, device: str, small: bool) -> dict[str, Any]:
    """Loss increases with one draw of calibration text, and after outliers were injected."""
    model, tokenizer = load(name, device)
    calib, test = texts(tokenizer, seed, *((48, 8, 128) if small else (128, 64, 512)))
    base = nll(model, test)
    row = {"seed": seed, "loss": round(base, 4), **_plain(model, calib, test, base, small)}
    if not small:
        inject(model, FACTOR, CHANNELS, seed)
        row["injection moves the loss by"] = abs(nll(model, test) - base)
        row |= _injected(model, calib, test, base)
    return row


def _learn(folder: str, device: str) -> dict[str, Any]:
    """Train the 30M model and save it, with the text that it learnt from and the held-out text."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder("tiny-7m"))
    train, held = library(tokenizer, TEXT)
    model = trained("float", fresh(512, 8, 8, len(tokenizer)).to(device), train, 512, STEPS, 64).float()
    model.save_pretrained(folder)
    torch.save({"train": train, "held": held}, f"{folder}/text.pt")
    return {"steps": STEPS, "tokens of text": train.numel(), "loss": round(nll(model, held), 4)}


def _learnt_row(seed: int, folder: str, device: str) -> dict[str, Any]:
    """`_row` of the trained model, without outliers."""
    import torch
    from transformers import AutoModelForCausalLM

    text = torch.load(f"{folder}/text.pt", weights_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    base = nll(model, text["held"])
    return {"seed": seed, "loss": round(base, 4),
            **_plain(model, drawn(text["train"], seed, 128, 512), text["held"], base, False)}  # fmt: skip


def _plain(model: Any, calib: Any, test: Any, base: float, small: bool) -> dict[str, float]:
    chosen = SMALL if small else TARGETS
    found = {}
    for bits in sorted({bits for targets in chosen.values() for bits in targets}, reverse=True):
        found[f"rtn:{bits}"] = increase(model, f"rtn:{bits}", calib, test, base)
        for preset, targets in chosen.items():
            if bits in targets:
                found[f"{preset}:{bits}"] = increase(model, f"{preset}:{bits}", calib, test, base)
    return found


def _injected(model: Any, calib: Any, test: Any, base: float) -> dict[str, float]:
    specs = {"rtn:4": "rtn:4", "awq:4": "awq:4", "gptq:4": "gptq:4", "smoothquant_plus": "smoothquant_plus:4",
             "llm_int8": "llm_int8", "W8A8": plain_w8a8(), "comet": "comet"}  # fmt: skip
    options = {"smoothquant_plus": {"alpha_step": 0.1, "search_batches": 2}}
    return {
        f"injected {name}": increase(model, spec, calib, test, base, **options.get(name, {}))
        for name, spec in specs.items()
    }


def _judge(
    rows: list[dict[str, Any]], learnt: list[dict[str, Any]], small: bool, details: dict[str, Any]
) -> Measured:
    def share(of: list[dict[str, Any]], name: str, plain: str) -> float:
        cost = statistics.mean(row[plain] for row in of)
        return statistics.mean(row[name] for row in of) / cost if cost > 0 else math.inf

    shares, failed = {}, []

    def compare(name: str, found: float, limit: float) -> None:
        shares[name] = {"share": round(found, 3), "target": limit}
        if found > limit:
            failed.append(name)

    for preset, targets in (SMALL if small else TARGETS).items():
        for bits, limit in targets.items():
            for mark, of in (("", rows), ("30M ", learnt)):
                if of:
                    compare(f"{mark}{preset}:{bits}", share(of, f"{preset}:{bits}", f"rtn:{bits}"), limit)
    if not small:
        for pair, limit in INJECTED.items():
            ours, plain = pair.split(" of ")
            compare(f"injected {pair}", share(rows, f"injected {ours}", f"injected {plain}"), limit)
    plain = [name for name in rows[0] if name.startswith(("rtn", "injected rtn"))]
    return Measured(
        round((len(shares) - len(failed)) / len(shares), 3),
        not failed,
        baseline={name: round(statistics.mean(row[name] for row in rows), 5) for name in plain},
        chance="share 1: no better than rounding to nearest",
        details={**details, "shares": shares, "missed": failed, "loss increases": rows, "30M": learnt},
    )


BAR = Bar(
    "quantization.ppl",
    "Loss increase of presets against rounding to nearest, 3 and 4 bits, with and without outliers, 3 seeds",
    "share of targets met",
    "1: every preset within its share",
    "gpu",
    7,
    measure,
    small=3,
)
