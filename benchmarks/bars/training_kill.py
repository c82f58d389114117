"""A run is killed at a random instant, also in the middle of a checkpoint, and goes on as if nothing had happened.

Half of the kills come at a random time, half right before a random operation on a file of the run (open, rename,
remove), which hits the writing of checkpoints far more often than time does. Afterwards the newest checkpoint must be
the last that was committed, and the resumed run must end with the same losses and the same weights, bit for bit.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.bar import Bar, Measured, Setting

STEPS, EVERY = 8, 2
SOURCE = {"reader": "embedded", "with": {"src": "de", "tgt": "en"}, "split": "train", "limit": 24}
FORMS: dict[str, dict[str, Any]] = {
    "full, packed": {},
    "LoRA, within an accumulation window": {
        "model": {"path": "embedded", "adapters": [{"kind": "lora", "r": 4, "dropout": 0.1}]},
        "train": {"batch": {"size": 8, "micro": 2}},
        "data": {"packing": False},
    },
    "stream, one loader worker": {"data": {"streaming": True}, "backend": {"workers": 1}},
    "written in step": {"checkpoint": {"mode": "sync"}},
    "second epoch, two loader workers": {"data": {"packing": False}, "backend": {"workers": 2}},
}


def recipe(folder: Path, form: str) -> Any:
    from core.config.load import recipe_from

    raw: dict[str, Any] = {
        "app": "translation",
        "output": str(folder),
        "model": {"preset": "tiny-gpt2", "tokenizer": "bpe:400"},
        "data": {"train": [SOURCE], "max_length": 160},
        "method": "translation.parallel",
        "train": {"max_steps": STEPS, "lr": 1e-3, "batch": {"size": 8, "micro": 4}},
        "eval": {"every": 0, "retention": False},
        "checkpoint": {"every": EVERY, "keep": 2},
    }
    for block, over in FORMS[form].items():
        raw[block] = over if block == "model" else {**raw.get(block, {}), **over}
    return recipe_from(raw)


def measure(setting: Setting) -> Measured:
    trials = 5 if setting.quick else 100
    names = list(FORMS)
    rng = random.Random(0)
    whole: dict[str, dict[str, Any]] = {}
    failures, killed, in_write = [], 0, 0
    for trial in range(trials):
        form = names[trial % len(names)]
        if form not in whole:
            whole[form] = _uninterrupted(setting.work / f"whole-{names.index(form)}", form)
        reference = whole[form]
        run = _new(setting.work / f"trial-{trial}", form)
        by_operation = trial // len(names) % 2 == 0
        at = rng.randint(1, reference["operations"]) if by_operation else rng.uniform(0, reference["seconds"])
        status = _child(run, False, at_operation=at) if by_operation else _child(run, False, after_s=at)
        killed += status == -signal.SIGKILL
        folder = run.stage_dir(0, "parallel") / "checkpoints"
        in_write += any(folder.glob("*.tmp"))
        problem = _lost(run, reference["mode"]) or _resumed(run, reference)
        if problem:
            failures.append({"trial": trial, "form": form, "at": at, "problem": problem})
    return Measured(
        len(failures),
        not failures and killed >= 0.5 * trials,
        details={"kills": killed, "in the middle of a checkpoint": in_write, "of": trials, "failures": failures[:10]},
    )


def _new(folder: Path, form: str) -> Any:
    from core.config.run_folder import RunFolder

    return RunFolder.create(recipe(folder, form))


def _uninterrupted(folder: Path, form: str) -> dict[str, Any]:
    run = _new(folder, form)
    start = time.perf_counter()
    status = _child(run, False)
    if status != 0:
        raise RuntimeError(f"the uninterrupted run '{form}' ended with status {status}")
    operations = int((run.path / "operations").read_text())
    mode = run.recipe().checkpoint.mode
    return {
        "seconds": time.perf_counter() - start, "operations": operations, "mode": mode,
        "losses": _losses(run), "weights": _weights(run),
    }  # fmt: skip


def _child(run: Any, resume: bool, *, at_operation: float | None = None, after_s: float | None = None) -> int:
    """Train in a fork of this process, which is killed before its n-th operation on a file, or after a time.

    Returns:
        the exit status; minus the signal's number when it was killed.
    """
    import torch  # noqa: F401
    import transformers.trainer  # noqa: F401

    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _train_and_exit(run, resume, at_operation)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _train_and_exit(run: Any, resume: bool, at_operation: float | None) -> None:
    status, count, root = 1, 0, str(run.path)
    main = os.getpid()

    def count_operations(event: str, arguments: tuple) -> None:
        nonlocal count
        watched = event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and arguments
        if watched and str(arguments[0]).startswith(root) and os.getpid() == main:
            count += 1
            if count == at_operation:
                os.kill(main, signal.SIGKILL)

    try:
        quiet = os.open(run.path / "child.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.addaudithook(count_operations)
        from core.training.run import train

        train(run.recipe(), run, resume=resume)
        (run.path / "operations").write_text(str(count))
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _losses(run: Any) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in run.read_metrics() if "loss" in row]


def _weights(run: Any) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(next((run.stage_dir(0, "parallel") / "weights").glob("*.safetensors")))


def _lost(run: Any, mode: str) -> str | None:
    """A step was logged after a checkpoint was committed, and that checkpoint is not there any more."""
    from core.training import checkpoint

    logged = max((step for step, _ in _losses(run)), default=0)
    written_behind = EVERY if mode == "async" else 0
    due = (logged - 1) // EVERY * EVERY - written_behind
    newest = checkpoint.newest(run.stage_dir(0, "parallel") / "checkpoints")
    found = int(newest.name.split("-")[1]) if newest else 0
    return f"step {logged} was logged, the newest checkpoint is {found}" if found < due else None


def _resumed(run: Any, reference: dict[str, Any]) -> str | None:
    """What differs from the uninterrupted run after a resume."""
    import torch

    status = _child(run, True)
    if status != 0:
        return f"the resume ended with status {status}: {(run.path / 'child.log').read_text()[-300:]}"
    if _losses(run) != reference["losses"]:
        return f"losses differ: {_losses(run)} and {reference['losses']}"
    found = _weights(run)
    if found.keys() != reference["weights"].keys():
        return "other weights"
    different = [name for name, value in found.items() if not torch.equal(value, reference["weights"][name])]
    return f"{len(different)} tensors differ, first {different[0]}" if different else None


BAR = Bar(
    "training.kill",
    "runs killed at a random instant that lost something or did not resume bit for bit",
    "runs",
    "0 of 100 (quick 5)",
    "cpu",
    12,
    measure,
)
