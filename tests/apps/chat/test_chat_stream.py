"""`chat.sft` on a stream: conversations are read as they are needed, and a killed run goes on bit for bit."""

from __future__ import annotations

import json
import tracemalloc

import pytest
import torch

from apps.chat import data as readers
from core.config.load import load_recipe, recipe_from
from core.config.run_folder import RunFolder
from core.errors import DataError, UnsupportedError
from core.training.run import train
from core.training.trainer import SupervisedTrainer


def row(question, answer=None):
    turns = [{"role": "user", "content": question}]
    return {"messages": turns if answer is None else [*turns, {"role": "assistant", "content": answer}]}


ROWS = [row(f"What is {n} plus one?", f"It is {n + 1}.") for n in range(40)]


def new_run(folder, rows=ROWS, options=None, name="rows.jsonl", **data):
    file = folder.parent / name
    file.write_text(json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(r) + "\n" for r in rows))
    over = {"backend": data.pop("backend", {})}
    return RunFolder.create(
        recipe_from(
            {
                "app": "chat",
                "output": str(folder),
                "model": {"path": "embedded"},
                "data": {
                    "train": [{"reader": "auto", "path": str(file)}],
                    "max_length": 64,
                    "streaming": True,
                    **data,
                },
                "method": "chat.sft",
                "with": options or {},
                "train": {"max_steps": 6, "lr": 1e-3, "batch": {"size": 4, "micro": 2}},
                "eval": {"every": 0, "retention": False},
                "checkpoint": {"every": 2},
                **over,
            }
        )
    )


def test_rows_are_read_as_they_are_needed(tmp_path, monkeypatch):
    """Of 4000 conversations a run of three steps reads the window that measures them, and the first of training."""
    monkeypatch.setattr("core.data.dataset.WINDOW", 16)
    read = []
    original = readers.conversation
    monkeypatch.setattr(readers, "conversation", lambda *args: read.append(1) or original(*args))
    run = new_run(tmp_path / "run", ROWS * 100, packing=False)
    recipe = run.recipe()
    recipe.train.max_steps = 3
    train(recipe, run)
    assert len(read) <= 3 * 16 + 10, "one window to measure, what three steps read, and the sniffed rows"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    """Both layouts of a file of 8 MB stay under one."""
    rows = [row(f"{n} " + "word " * 300, "Yes.") for n in range(5000)]
    file = tmp_path / name
    file.write_text(json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(r) + "\n" for r in rows))
    assert file.stat().st_size > 7e6
    tracemalloc.start()
    try:
        count = sum(1 for _ in readers.READERS.get("auto")(str(file), on_bad=readers.BadRows()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 5000 and peak < 1e6, peak


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, monkeypatch, packing, workers):
    """Windows of eight, rows without an answer among them, read more than once."""
    monkeypatch.setattr("core.data.dataset.WINDOW", 8)
    rows = [r for n, good in enumerate(ROWS[:20]) for r in ((good, row("And?")) if n % 3 else (good,))]
    runs = []
    for name in ("whole", "broken"):
        made = new_run(
            tmp_path / name, rows, packing=packing, on_bad="skip", backend={"workers": workers, "device": "cpu"}
        )
        runs.append(made)
    whole, broken = runs
    train(whole.recipe(), whole)
    original = SupervisedTrainer.training_step

    def dying(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "training_step", dying)
        with pytest.raises(KeyboardInterrupt):
            train(broken.recipe(), broken)
    train(broken.recipe(), broken, resume=True)
    losses = [[r["loss"] for r in run.read_metrics() if "loss" in r] for run in runs]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    weights = [_weights(run) for run in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    written = [(run.path / "rejects.jsonl").read_text().splitlines() for run in runs]
    assert written[0] == written[1] and "conversation 3 has no answer to learn" in written[0][0]
    assert len(written[0]) == sum(n % 3 > 0 for n in range(20))


def _weights(run):
    from safetensors.torch import load_file

    return load_file(next(run.path.glob("stages/*/weights/*.safetensors")))


def test_a_conversation_without_an_answer_is_named(tmp_path):
    run = new_run(tmp_path / "run", [*ROWS[:5], row("And?")])
    with pytest.raises(DataError, match="conversation 6 has no answer to learn") as caught:
        train(run.recipe(), run)
    assert "on_bad: skip" in caught.value.hint


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_far_into_the_stream_is_told_alike_by_every_reader(tmp_path, monkeypatch, workers):
    """A loader worker's error arrives without its traceback."""
    monkeypatch.setattr("core.data.dataset.WINDOW", 8)
    backend = {"workers": workers, "device": "cpu"}
    run = new_run(tmp_path / "run", [*ROWS[:12], {"messages": 'a "text"'}], packing=False, backend=backend)
    with pytest.raises(DataError) as caught:
        train(run.recipe(), run)
    assert caught.value.what == "wrong value (got 'a \"text\"', expected a list of turns)"
    assert caught.value.where == f"{tmp_path / 'rows.jsonl'}:13, field 'messages'"
    assert "Traceback" not in str(caught.value) and "graft error" not in str(caught.value)


def test_a_choice_among_all_rows_is_refused_where_it_is_written(tmp_path):
    with pytest.raises(UnsupportedError, match="with.keep chooses among all rows"):
        new_run(tmp_path / "run", options={"keep": 0.5})
    new_run(tmp_path / "run", options={"keep": 0.5}, streaming=False)
    file = tmp_path / "mine.yaml"
    file.write_text(
        "app: chat\nmodel: {path: embedded}\ntrain: {max_steps: 2}\n"
        "data:\n  train: [{reader: embedded}]\n  streaming: true\nmethod: chat.sft\nwith: {keep: 0.2}\n"
    )
    with pytest.raises(UnsupportedError) as caught:
        load_recipe(file)
    assert "mine.yaml:6" in caught.value.where and "with.keep" in caught.value.hint
