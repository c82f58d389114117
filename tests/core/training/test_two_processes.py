"""A run on two processes: one waits for what the other writes, and a signal to one stops both at the same step."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.config.load import recipe_from
from core.config.run_folder import RunFolder
from core.training import checkpoint
from core.training.run import train

ROOT = Path(__file__).parents[3]
STOPPED_ON_RANK_1 = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
import core.models.load as load
from core.config.run_folder import RunFolder
from core.training.run import train
from core.training.trainer import SupervisedTrainer

build, step = load.load_tokenizer, SupervisedTrainer.training_step

def slow(*args, **kwargs):
    time.sleep(1)
    return build(*args, **kwargs)

def interrupted(self, *args, **kwargs):
    if os.environ["RANK"] == "1" and self.state.global_step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, *args, **kwargs)

SupervisedTrainer.training_step = interrupted
if os.environ["RANK"] == "0":
    load.load_tokenizer = slow
run = RunFolder({run!r})
os.write(1, f"\\nended {{os.environ['RANK']}} {{train(run.recipe(), run)['status']}}\\n".encode())
"""


def new_run(folder):
    """25 pairs in both directions, which neither two processes nor batches of eight divide."""
    source = {"reader": "embedded", "with": {"src": "de", "tgt": "en"}}
    return RunFolder.create(
        recipe_from(
            {
                "app": "translation",
                "output": str(folder),
                "model": {"preset": "tiny-gpt2", "tokenizer": "bpe:400"},
                "data": {"train": [{**source, "split": "train", "limit": 25}], "max_length": 160, "packing": False},
                "method": "translation.parallel",
                "train": {"max_steps": 9, "batch": {"size": 8, "micro": 2}},
                "eval": {"every": 0},
                "backend": {"strategy": "auto", "device": "cpu"},
            }
        )
    )


LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def written(source, run):
    """The script of a run, beside it."""
    script = run.path.with_name(f"{run.path.name}.py")
    script.write_text(source.format(root=str(ROOT), run=str(run.path)))
    return str(script)


def told_by_both(source, run, timeout=150):
    """What two processes of a script print; it ends well."""
    done = subprocess.run(
        [*LAUNCHER, written(source, run)], env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def losses(run):
    return {row["step"]: row["loss"] for row in run.read_metrics() if "loss" in row}


def test_processes_wait_for_the_tokenizer_and_stop_at_the_same_step(tmp_path):
    run = new_run(tmp_path / "run")
    said = told_by_both(STOPPED_ON_RANK_1, run, 60)
    assert "ended 0 stopped" in said and "ended 1 stopped" in said
    assert run.info()["status"] == "stopped"
    saved = checkpoint.newest(run.stage_dir(0, "parallel") / "checkpoints")
    assert saved.name == "checkpoint-3" and {"rng_state_0.pth", "rng_state_1.pth"} <= {p.name for p in saved.iterdir()}
    alone = new_run(tmp_path / "alone")
    train(alone.recipe(), alone)
    train(run.recipe(), run, resume=True)
    assert list(losses(run)) == list(range(1, 10)), "one process goes on where two were stopped"
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)


FAILS_ON_RANK_1 = """
import os, sys
sys.path.insert(0, {root!r})
from core.config.run_folder import RunFolder
from core.training.run import train
from core.training.trainer import SupervisedTrainer

step = SupervisedTrainer.training_step

def broken(self, *args, **kwargs):
    if os.environ["RANK"] == "1" and self.state.global_step == 2:
        raise ZeroDivisionError("the first thing that went wrong")
    return step(self, *args, **kwargs)

SupervisedTrainer.training_step = broken
run = RunFolder({run!r})
train(run.recipe(), run)
"""


def test_a_process_that_fails_ends_all_and_says_why(tmp_path):
    run = new_run(tmp_path / "run")
    # the other process waits for gradients that never come: it ends long before the timeout of its collective
    with subprocess.Popen(
        [*LAUNCHER, written(FAILS_ON_RANK_1, run)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    ) as launched:
        said = ""
        assert launched.stderr is not None
        for line in launched.stderr:
            said += line
            if "the first thing that went wrong" in line:
                break
        failed = time.monotonic()
        said += launched.stderr.read()
        status = launched.wait(60)
    assert status != 0 and time.monotonic() - failed < 30
    assert "ZeroDivisionError: the first thing that went wrong" in said


DRAWS = """
import os, sys
sys.path.insert(0, {root!r})
import torch
from core.config.run_folder import RunFolder
from core.training.run import train
from core.training.trainer import SupervisedTrainer

step, drawn = SupervisedTrainer.training_step, []

def listening(self, *args, **kwargs):
    drawn.append(torch.rand(2).tolist())
    return step(self, *args, **kwargs)

SupervisedTrainer.training_step = listening
run = RunFolder({run!r})
train(run.recipe(), run)
os.write(1, f"\\ndrawn {{os.environ['RANK']}} {{drawn[:3]}}\\n".encode())  # at once: print may cut a line in pieces
"""


def test_processes_draw_random_numbers_of_their_own_and_the_same_ones_again(tmp_path):
    drawn = []
    for name in ("a", "b"):
        run = new_run(tmp_path / name)
        said = told_by_both(DRAWS, run, 100)
        drawn.append(sorted(line for line in said.splitlines() if line.startswith("drawn")))
    assert drawn[0] == drawn[1] and len(drawn[0]) == 2
    first, second = (line.split(" ", 2)[2] for line in drawn[0])
    assert first != second


PREFERS = """
import os, sys
sys.path.insert(0, {root!r})
from core.config.run_folder import RunFolder
from core.training.run import train
run = RunFolder({run!r})
os.write(1, f"\\nended {{train(run.recipe(), run)['status']}}\\n".encode())
"""


@pytest.mark.slow
def test_a_preference_run_measures_held_out_pairs_on_both(tmp_path):
    pairs = {"reader": "embedded_preferences"}
    recipe = {
        "app": "chat",
        "output": str(tmp_path / "run"),
        "model": {"preset": "tiny", "tokenizer": "bpe:400", "adapters": [{"kind": "lora", "r": 4}]},
        "data": {"train": [{**pairs, "split": "train", "limit": 21}], "eval": [{**pairs, "split": "dev", "limit": 6}]},
        "method": "chat.dpo",
        "train": {"max_steps": 4, "batch": {"size": 8, "micro": 2}},
        "eval": {"every": 2, "sampling": {"max_new_tokens": 4}},
        "backend": {"strategy": "ddp", "device": "cpu"},
    }
    run = RunFolder.create(recipe_from(recipe))
    said = told_by_both(PREFERS, run, 150)
    assert said.count("ended done") == 2
    measured = [row["eval"] for row in run.read_metrics() if "eval" in row]
    assert len(measured) == 2 and all(0 <= row["rewards/accuracies"] <= 1 for row in measured)


REWARDED = """
import os, sys
sys.path.insert(0, {root!r})
from core.config.run_folder import RunFolder
from core.training.preference.grpo import GrpoTrainer
from core.training.run import train

learn = GrpoTrainer.train

def watched(self, *args, **kwargs):
    done = learn(self, *args, **kwargs)
    total = sum(float(p.detach().double().abs().sum()) for p in self.accelerator.unwrap_model(self.model).parameters())
    os.write(1, f"\\nweights {{os.environ['RANK']}} {{total!r}} {{self.state.global_step}}\\n".encode())
    return done

GrpoTrainer.train = watched
run = RunFolder({run!r})
os.write(1, f"\\nended {{train(run.recipe(), run)['status']}}\\n".encode())
"""


@pytest.mark.slow
def test_rewards_are_learnt_on_both_by_equal_copies(tmp_path):
    (tmp_path / "rewards.py").write_text("def long(answer, example):\n    return float(len(answer))\n")
    recipe = {
        "app": "chat",
        "output": str(tmp_path / "run"),
        "model": {"path": "embedded"},
        "data": {"train": [{"reader": "embedded", "split": "train", "limit": 16}], "max_length": 128},
        "method": "chat.grpo",
        "with": {"rewards": [f"{tmp_path / 'rewards.py'}:long"], "group": 4, "max_new_tokens": 6},
        "train": {"max_steps": 3, "lr": 1e-3, "batch": {"size": 16}},
        "eval": {"every": 0},
        "backend": {"strategy": "ddp", "device": "cpu"},
    }
    run = RunFolder.create(recipe_from(recipe))
    said = told_by_both(REWARDED, run, 150)
    assert said.count("ended done") == 2
    copies = sorted(line.split()[1:] for line in said.splitlines() if line.startswith("weights"))
    assert [rank for rank, *_ in copies] == ["0", "1"] and copies[0][1:] == copies[1][1:]
    rows = [row for row in run.read_metrics() if "reward" in row]
    assert len(rows) == 3 and all(row["reward_std"] > 0 and row["grad_norm"] > 0 for row in rows)
