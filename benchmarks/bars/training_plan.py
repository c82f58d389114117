"""`graft plan` against measured peaks: 32 random configurations, full, LoRA and QLoRA, 60M to 8B parameters.

Models have random weights (memory and time do not depend on them) and are trained for a few steps by the trainer that
`graft train` uses; the peak is what the allocator saw. Every configuration is drawn and predicted before anything is
measured. The baseline predicts with one number: bytes a parameter, fitted on the same configurations.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.bar import Bar, Measured, Setting, Unavailable

COUNT, STEPS, SECONDS = 32, 4, 440.0
ROOM = 66 * 2**30
# hidden width: heads, their size, most layers
WIDTHS = {
    512: (8, 64, 16), 768: (12, 64, 20), 1024: (16, 64, 24), 1536: (12, 128, 28), 2048: (32, 64, 24),
    2560: (20, 128, 24), 3072: (24, 128, 28), 4096: (32, 128, 32),
}  # fmt: skip


METHODS = ("full", "lora", "qlora")


def draw(rng: random.Random, number: int) -> dict[str, Any]:
    """One configuration; the method goes by turns, everything else by chance."""
    method = METHODS[number % 3]
    hidden = rng.choice(list(WIDTHS))
    heads, size, most = WIDTHS[hidden]
    return {
        "method": method,
        "config": {
            "model_type": rng.choice(["llama", "llama", "qwen2", "qwen3"]),
            "hidden_size": hidden,
            "intermediate_size": int(hidden * rng.choice([2.75, 3.0, 3.5]) // 64 * 64),
            "num_hidden_layers": rng.randint(max(2, most // 4), most),
            "num_attention_heads": heads,
            "num_key_value_heads": heads // rng.choice([1, 2, 4]),
            "head_dim": size,
            "vocab_size": rng.choice([32000, 64000, 128256, 151936]),
            "tie_word_embeddings": rng.random() < 0.4,
            "max_position_embeddings": 16384,
            "dtype": "bfloat16",
        },
        "micro": rng.choice([1, 2, 4, 8]),
        "accumulation": rng.choice([1, 2]),
        "length": rng.choice([512, 1024, 2048, 4096, 8192]),
        "checkpoint": rng.choice(["none", "none", "full"]),
        "rank": rng.choice([8, 16, 64]),
    }


def recipe_of(form: dict[str, Any], folder: Path) -> Any:
    """The recipe of a configuration, on a folder that holds its config.json and nothing else."""
    from core.config.load import recipe_from

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(form["config"]), encoding="utf-8")
    adapters = [] if form["method"] == "full" else [{"kind": "lora", "r": form["rank"]}]
    return recipe_from(
        {
            "app": "lm",
            "output": str(folder / "run"),
            "model": {
                "path": str(folder),
                "adapters": adapters,
                "quantization": "nf4" if form["method"] == "qlora" else "none",
            },
            "data": {"train": [{"reader": "embedded"}], "max_length": form["length"], "packing": False},
            "method": "lm.pretrain",
            "train": {
                "max_steps": STEPS,
                "batch": {"size": form["micro"] * form["accumulation"], "micro": form["micro"]},
            },
            "eval": {"every": 0, "retention": False},
            "backend": {"activation_checkpoint": form["checkpoint"]},
        }
    )


def workload(form: dict[str, Any], folder: Path, device: str) -> Any:
    from core.costmodel.shape import ModelShape
    from core.costmodel.workload import Workload

    return Workload.from_recipe(
        recipe_of(form, folder), ModelShape.from_config(form["config"]), device=device, micro=form["micro"],
        accumulation=form["accumulation"],
    )  # fmt: skip


def configurations(work: Path) -> list[dict[str, Any]]:
    """The first random configurations that are predicted to fit, from 1 GiB up."""
    from core.costmodel.memory import predict_memory

    rng, found = random.Random(7), []
    while len(found) < COUNT:
        form = draw(rng, len(found))
        total = predict_memory(workload(form, work / f"{len(found):02d}", "cuda")).total
        if 2**30 < total < ROOM and form["micro"] * form["length"] <= 32768:
            found.append({**form, "predicted": total})
    return found


def measure(setting: Setting) -> Measured:
    from core.costmodel.time import predict_time
    from core.training.fitting import this_device

    if importlib.util.find_spec("bitsandbytes") is None:
        raise Unavailable("bitsandbytes, for the quantized bases (graft[quant])")
    rows, start = [], time.perf_counter()
    forms = configurations(setting.work)
    for number, form in enumerate(forms[:6] if setting.quick else forms):
        if time.perf_counter() - start > SECONDS:
            break
        folder = setting.work / f"{number:02d}"
        predicted = predict_time(workload(form, folder, "cuda"), this_device("cuda")).seconds
        row = {**form, **_train(form, folder), "predicted_seconds": predicted}
        rows.append(row)
        print(json.dumps(_short(row)), flush=True)
    return judged(rows, len(forms))


def _train(form: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Peak bytes and seconds a step of the trainer that `graft train` would use."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from core.config.load import resolve_stages
    from core.config.registry import get_app
    from core.config.run_folder import RunFolder
    from core.data.dataset import EncodedDataset
    from core.data.encode import Encoded, EncodeStats
    from core.models.rope import keep_exact
    from core.quantization.load import requantize
    from core.training.build import add_adapters
    from core.training.prepare import Prepared
    from core.training.stage import Stage
    from core.training.stages import StageRunner

    gc.collect()
    torch.cuda.empty_cache()
    recipe = recipe_of(form, folder)
    stage = resolve_stages(recipe)[0]
    config = AutoConfig.for_model(**form["config"])
    rng = random.Random(1)
    count = STEPS * form["micro"] * form["accumulation"]
    rows = [[rng.randrange(form["config"]["vocab_size"]) for _ in range(form["length"])] for _ in range(count)]
    data = EncodedDataset([Encoded(ids, list(ids)) for ids in rows])
    trainer = model = None
    try:
        with torch.device("cuda"):
            model = keep_exact(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))
        if recipe.model.quantization != "none":
            model = requantize(model, recipe.model.quantization, "cuda")
        model = add_adapters(model, recipe.model.adapters)
        runner = StageRunner(get_app("lm"), recipe, RunFolder(folder / "run"), _Padding(), "cuda", [])
        sizes = {"micro": form["micro"], "accumulation": form["accumulation"], "steps": STEPS}
        (folder / "run").mkdir(exist_ok=True)
        prepared = Prepared(Stage(rows=[]), data, None, EncodeStats())
        trainer, _ = runner._trainer(stage, model, prepared, sizes, folder / "checkpoints")
        trainer._save_checkpoint = lambda *given: None
        clock = _Clock()
        trainer.add_callback(clock.callback())
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        trainer.train()
        return {
            "measured": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved(),
            "held": held, "seconds": statistics.median(clock.steps[1:]),
        }  # fmt: skip
    except torch.cuda.OutOfMemoryError as error:
        return {"failed": str(error).splitlines()[0]}
    finally:
        if trainer is not None:
            trainer.accelerator.free_memory()
        del trainer, model
        gc.collect()
        torch.cuda.empty_cache()


class _Padding:
    pad_token_id = 0


class _Clock:
    """Seconds of every optimizer step, the device being done."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.last = 0.0

    def callback(self) -> Any:
        import torch
        from transformers import TrainerCallback

        clock = self

        class Ticks(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                torch.cuda.synchronize()
                clock.last = time.perf_counter()

            def on_step_end(self, args, state, control, **kwargs):
                torch.cuda.synchronize()
                clock.steps.append(time.perf_counter() - clock.last)

        return Ticks()


def _short(row: dict[str, Any]) -> dict[str, Any]:
    gib = {name: round(row[name] / 2**30, 3) for name in ("predicted", "measured", "reserved", "held") if name in row}
    config = row["config"]
    what = {
        "model": f"{config['model_type']} h{config['hidden_size']} L{config['num_hidden_layers']}"
        f" f{config['intermediate_size']} kv{config['num_key_value_heads']} v{config['vocab_size']}"
        f"{' tied' if config['tie_word_embeddings'] else ''}",
        **{name: row[name] for name in ("method", "micro", "accumulation", "length", "checkpoint", "rank")},
    }
    times = {name: round(row[name], 4) for name in ("seconds", "predicted_seconds") if name in row}
    return {**what, **gib, **times, **({"failed": row["failed"]} if "failed" in row else {})}


def judged(rows: list[dict[str, Any]], drawn: int) -> Measured:
    done = [row for row in rows if "measured" in row]
    if not done:
        raise RuntimeError(f"no configuration was measured: {rows[:1]}")
    errors = [row["predicted"] / row["measured"] - 1 for row in done]
    size = sorted(abs(error) for error in errors)
    median, high = statistics.median(size), size[min(len(size) - 1, int(0.95 * len(size)))]
    optimistic = -min(errors)
    slow = [abs(row["predicted_seconds"] / row["seconds"] - 1) for row in done if "seconds" in row]
    crude = _one_number(done)
    passed = len(done) >= min(30, drawn) and median <= 0.08 and high <= 0.12 and optimistic <= 0.05
    return Measured(
        100 * median,
        passed,
        baseline={"bytes a parameter, fitted": f"median {100 * crude:.0f}%"},
        details={
            "configurations": len(done), "p95 %": round(100 * high, 1), "most optimistic %": round(100 * optimistic, 1),
            "most pessimistic %": round(100 * max(errors), 1),
            **({"time: median error %": round(100 * statistics.median(slow), 1)} if slow else {}),
            "rows": [_short(row) for row in rows],
        },
    )  # fmt: skip


def _one_number(rows: list[dict[str, Any]]) -> float:
    """Median error of the best constant number of bytes a parameter."""
    from core.costmodel.shape import ModelShape

    ratios = [row["measured"] / ModelShape.from_config(row["config"]).parameters for row in rows]
    middle = statistics.median(ratios)
    return statistics.median(abs(middle / ratio - 1) for ratio in ratios)


BAR = Bar(
    "training.plan",
    "predicted against measured peak memory of training",
    "% median error",
    "median ≤ 8%, p95 ≤ 12%, never > 5% optimistic",
    "gpu",
    8,
    measure,
)
