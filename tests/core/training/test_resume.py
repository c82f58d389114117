"""A broken run goes on as if nothing had happened, wherever it broke: inside an epoch, after it, at the very end."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
import torch

from core.config.load import recipe_from
from core.config.run_folder import RunFolder
from core.errors import CheckpointError, ConfigError
from core.models.presets import PRESETS
from core.training import checkpoint
from core.training.callbacks import StopAndSave, forget_later
from core.training.run import train
from core.training.trainer import EpochSampler, SupervisedTrainer

SOURCE = {"reader": "embedded", "with": {"src": "de", "tgt": "en"}}


@pytest.fixture(autouse=True, scope="module")
def dropout():
    """Dropout draws random numbers at every step, so a resume that restores no random state differs at once."""
    with pytest.MonkeyPatch.context() as patch:
        kind, shape = PRESETS["tiny-gpt2"]
        patch.setitem(PRESETS, "tiny-gpt2", (kind, {**shape, "resid_pdrop": 0.1, "attn_pdrop": 0.1}))
        yield


def new_run(folder, **over):
    """24 pairs in both directions: 48 rows, six steps of two micro-batches an epoch."""
    raw = {
        "app": "translation",
        "output": str(folder),
        "model": {"preset": "tiny-gpt2", "tokenizer": "bpe:400"},
        "data": {
            "train": [{**SOURCE, "split": "train", "limit": 24}],
            "eval": [{**SOURCE, "split": "dev", "limit": 4}],
            "max_length": 160,
            "packing": False,
        },
        "method": "translation.parallel",
        "train": {"max_steps": 10, "lr": 1e-3, "schedule": "constant", "batch": {"size": 8, "micro": 4}},
        "eval": {"every": 0, "metrics": ["bleu"], "sampling": {"max_new_tokens": 4}},
        "checkpoint": {"every": 2},
    }
    for name, value in over.items():
        raw[name] = {**raw.get(name, {}), **value}
    return RunFolder.create(recipe_from(raw))


def weights(run):
    from safetensors.torch import load_file

    return load_file(next(run.path.glob("stages/00-parallel/weights/*.safetensors")))


def losses(run):
    """One entry a logged step, in the file's order: a step logged twice shows."""
    return [(row["step"], row["loss"]) for row in run.read_metrics() if "loss" in row]


def same_weights(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Killed(Exception):
    pass


def killed_at(monkeypatch, run, step, micro=0):
    """Train until `micro` micro-batches of the step behind `step` are done."""
    original, done = SupervisedTrainer.training_step, []

    def dying(self, *args, **kwargs):
        if self.state.global_step == step:
            done.append(1)
            if len(done) > micro:
                raise Killed
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "training_step", dying)
        with pytest.raises(Killed):
            train(run.recipe(), run)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, dropout):
    run = new_run(tmp_path_factory.mktemp("whole") / "run")
    train(run.recipe(), run)
    return run


@pytest.mark.parametrize("step", [1, 5, 7, 9], ids=["before any checkpoint", "inside", "epoch's end", "second epoch"])
def test_resumed_losses_and_weights_are_bit_equal(tmp_path, monkeypatch, whole, step):
    broken = new_run(tmp_path / "run")
    killed_at(monkeypatch, broken, step)
    train(broken.recipe(), broken, resume=True)
    assert same_weights(weights(whole), weights(broken))
    assert losses(whole) == losses(broken) and [s for s, _ in losses(broken)] == list(range(1, 11))


def test_gradients_of_half_a_window_are_not_resumed(tmp_path, monkeypatch, whole):
    broken = new_run(tmp_path / "run")
    killed_at(monkeypatch, broken, 5, micro=1)
    train(broken.recipe(), broken, resume=True)
    assert same_weights(weights(whole), weights(broken)) and losses(whole) == losses(broken)


READING = {
    "packed, epoch > 1": {"data": {"packing": True}},
    "one worker": {"backend": {"workers": 1}},
    "four workers, packed": {"data": {"packing": True}, "backend": {"workers": 4}},
    "stream": {"data": {"streaming": True}},
    "packed stream": {"data": {"streaming": True, "packing": True}},
    "stream, one worker": {"data": {"streaming": True}, "backend": {"workers": 1}},
    "packed stream, four workers": {"data": {"streaming": True, "packing": True}, "backend": {"workers": 4}},
    "checkpoints in step": {"checkpoint": {"mode": "sync"}},
}


QUICK = ("packed, epoch > 1", "four workers, packed", "packed stream, four workers")


@pytest.mark.parametrize(
    "over",
    [pytest.param(o, id=n, marks=() if n in QUICK else pytest.mark.slow) for n, o in READING.items()],
)
def test_however_the_rows_are_read_a_resume_is_bit_equal(tmp_path, monkeypatch, over):
    """A window of eight rows, so that a stream of 48 has several and is read more than once in 14 steps."""
    monkeypatch.setattr("core.data.dataset.WINDOW", 8)
    over = {"train": {"max_steps": 14}, "eval": {"retention": False}, **over}
    first, broken = new_run(tmp_path / "whole", **over), new_run(tmp_path / "broken", **over)
    train(first.recipe(), first)
    killed_at(monkeypatch, broken, 11)
    train(broken.recipe(), broken, resume=True)
    assert same_weights(weights(first), weights(broken))
    assert losses(first) == losses(broken) and [s for s, _ in losses(broken)] == list(range(1, 15))
    results = [json.loads((run.stage_dir(0, "parallel") / "stage.json").read_text()) for run in (first, broken)]
    assert results[0]["tokens_seen"] == results[1]["tokens_seen"] > 0


def test_a_stream_is_not_resumed_with_other_workers(tmp_path, monkeypatch):
    run = new_run(tmp_path / "run", data={"streaming": True})
    killed_at(monkeypatch, run, 5)
    recipe = run.recipe()
    recipe.backend.workers = 2
    with pytest.raises(CheckpointError, match="0 loader worker"):
        train(recipe, run, resume=True)


def test_a_run_killed_between_last_step_and_result_trains_no_further(tmp_path):
    run = new_run(tmp_path / "run")
    train(run.recipe(), run)
    before, logged, stage = weights(run), losses(run), run.stage_dir(0, "parallel")
    (stage / "stage.json").unlink()
    shutil.rmtree(stage / "weights")
    train(run.recipe(), run, resume=True)
    assert same_weights(before, weights(run)) and losses(run) == logged and run.info()["status"] == "done"


def test_a_resume_passes_over_a_torn_checkpoint(tmp_path, monkeypatch, whole):
    broken = new_run(tmp_path / "run")
    killed_at(monkeypatch, broken, 7)
    folder = broken.stage_dir(0, "parallel") / "checkpoints"
    newest = checkpoint.newest(folder)
    assert newest.name == "checkpoint-6"
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:100])
    train(broken.recipe(), broken, resume=True)
    assert same_weights(weights(whole), weights(broken))


def test_adapters_resume_too_and_start_from_the_seed(tmp_path, monkeypatch):
    lora = {"preset": None, "path": "embedded", "tokenizer": None, "adapters": [{"kind": "lora", "r": 4}]}
    short = {"max_steps": 5}
    first = new_run(tmp_path / "first", model=lora, train=short, eval={"retention": False})
    train(first.recipe(), first)
    torch.rand(7)
    broken = new_run(tmp_path / "broken", model=lora, train=short, eval={"retention": False})
    killed_at(monkeypatch, broken, 3)
    train(broken.recipe(), broken, resume=True)
    assert same_weights(weights(first), weights(broken)) and losses(first) == losses(broken)


def test_measuring_during_training_changes_nothing_that_is_learnt(tmp_path, whole):
    """Generation draws random numbers and sets the mode; both must be as before when training goes on."""
    sampling = {"max_new_tokens": 4, "temperature": 1.0}
    measured = new_run(tmp_path / "run", eval={"every": 3, "select": "bleu", "sampling": sampling})
    train(measured.recipe(), measured)
    assert sum("eval" in row for row in measured.read_metrics()) == 4
    stage = measured.stage_dir(0, "parallel") / "checkpoints"
    from safetensors.torch import load_file

    last = load_file(stage / "checkpoint-10" / "model.safetensors")
    assert same_weights(weights(whole), last)


@pytest.mark.parametrize(
    ("select", "picked"), [("ter", "checkpoint-4"), ("chrf", "checkpoint-6")], ids=["lower is better", "higher"]
)
def test_the_metric_says_which_way_is_better(tmp_path, monkeypatch, select, picked):
    from core.evaluation.report import Metric, Report
    from core.training import stages

    values = iter([50.0, 40.0, 60.0])

    def scored(*args):
        return Report("t", {select: Metric(next(values), 4, higher_is_better=select != "ter")}, {}, [], [], select)

    monkeypatch.setattr(stages, "score_within", scored)
    run = new_run(
        tmp_path / "run", train={"max_steps": 6}, eval={"every": 2, "select": select, "metrics": ["ter", "chrf"]}
    )
    train(run.recipe(), run)
    assert checkpoint.best(run.stage_dir(0, "parallel") / "checkpoints").name == picked


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"eval": {"every": 2, "select": "blue"}}, r"did you mean 'bleu'"),
        ({"eval": {"every": 2, "select": "bleu"}, "data": {"eval": []}}, "nothing to be measured on"),
    ],
)
def test_a_selection_that_is_never_measured_is_refused(tmp_path, over, message):
    run = new_run(tmp_path / "run", **over)
    with pytest.raises(ConfigError, match=message):
        train(run.recipe(), run)


def test_signals_go_back_to_their_owner_when_training_fails(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    killed_at(monkeypatch, new_run(tmp_path / "run"), 1)
    assert signal.getsignal(signal.SIGINT) is before


def test_one_signal_passed_on_twice_is_one(tmp_path, monkeypatch):
    stopper = StopAndSave(None)
    now = [100.0]
    monkeypatch.setattr("core.training.callbacks.time.monotonic", lambda: now[0])
    stopper._ask(signal.SIGINT, None)
    now[0] += 0.5
    stopper._ask(signal.SIGINT, None)
    assert stopper.asked
    now[0] += 2.0
    with pytest.raises(KeyboardInterrupt):
        stopper._ask(signal.SIGINT, None)


def test_ctrl_c_outside_a_step_marks_the_run_stopped(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("core.training.run._tokenizer", interrupted)
    run = new_run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(run.recipe(), run)
    assert run.info()["status"] == "stopped"


def test_only_later_rows_of_the_same_stage_are_forgotten(tmp_path):
    run = new_run(tmp_path / "run")
    for stage, step in (("a", 9), ("b", 1), ("b", 2), ("b", 3)):
        run.log_metric({"stage": stage, "step": step, "loss": 1.0})
    forget_later(run, "b", 2)
    assert [(row["stage"], row["step"]) for row in run.read_metrics()] == [("a", 9), ("b", 1), ("b", 2)]


def test_epochs_have_orders_of_their_own_and_the_same_ones_again():
    def order(epoch, seed=0):
        sampler = EpochSampler(50, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1) == order(1) and sorted(order(1)) == list(range(50))
    assert order(0) != order(1) and order(0) != order(0, seed=1)
