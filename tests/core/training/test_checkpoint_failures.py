"""A checkpoint that cannot be written ends the run with a clear error, and the one before it is intact."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
import time

import pytest
import torch

from core.config.load import recipe_from
from core.config.run_folder import RunFolder
from core.errors import CheckpointError
from core.training import checkpoint
from core.training.run import train
from core.training.saving import BackgroundWriter, to_host

SOURCE = {"reader": "embedded", "split": "train", "limit": 24, "with": {"src": "de", "tgt": "en"}}


def new_run(folder, mode):
    return RunFolder.create(
        recipe_from(
            {
                "app": "translation",
                "output": str(folder),
                "model": {"preset": "tiny-gpt2", "tokenizer": "bpe:400"},
                "data": {"train": [SOURCE], "max_length": 160},
                "method": "translation.parallel",
                "train": {"max_steps": 6, "lr": 1e-3, "batch": {"size": 8}},
                "eval": {"every": 0},
                "checkpoint": {"every": 2, "mode": mode},
            }
        )
    )


def weights(run):
    from safetensors.torch import load_file

    return load_file(next((run.stage_dir(0, "parallel") / "weights").glob("*.safetensors")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = new_run(tmp_path_factory.mktemp("whole") / "run", "sync")
    train(run.recipe(), run)
    return weights(run)


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def read_only(*args, **kwargs):
    raise OSError(errno.EROFS, "Read-only file system")


FAILURES = {
    "full while the optimizer is written": ("torch.save", full),
    "full when it is flushed": ("os.fsync", full),
    "read-only when it is renamed": ("os.replace", read_only),
}


@pytest.mark.parametrize(
    ("mode", "name", "failing"),
    [
        pytest.param(mode, *failure, id=f"{mode}, {what}", marks=() if quick else pytest.mark.slow)
        for mode in ("sync", "async")
        for what, failure in FAILURES.items()
        for quick in [("optimizer" in what) == (mode == "sync") and "flushed" not in what]
    ],
)
def test_the_run_ends_clearly_and_goes_on_from_the_one_before(tmp_path, monkeypatch, whole, mode, name, failing):
    run = new_run(tmp_path / "run", mode)
    commit = checkpoint.commit

    def broken(folder, step, write, extra=None):
        with monkeypatch.context() as patch:
            if step == 4:
                patch.setattr(name, failing)
            return commit(folder, step, write, extra)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "commit", broken)
        with pytest.raises(CheckpointError, match=r"cannot be written: .*(space|Read-only)") as caught:
            train(run.recipe(), run)
    assert "earlier checkpoints are intact" in caught.value.hint and "checkpoint-4" in caught.value.where
    folder = run.stage_dir(0, "parallel") / "checkpoints"
    assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert checkpoint.newest(folder).name == "checkpoint-2"
    train(run.recipe(), run, resume=True)
    found = weights(run)
    assert all(torch.equal(found[key], value) for key, value in whole.items())


def test_a_file_that_breaks_off_in_the_middle_leaves_no_checkpoint(tmp_path):
    """The kernel refuses to let a file grow, in a process of its own: a real short write, not a pretended one."""

    def write(place):
        (place / "small").write_bytes(b"x" * 10)
        torch.save({"moments": torch.zeros(200_000)}, place / "optimizer.pt")

    checkpoint.commit(tmp_path, 1, write)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            checkpoint.commit(tmp_path, 2, write)
        except CheckpointError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert checkpoint.newest(tmp_path).name == "checkpoint-1" and not list(tmp_path.glob("*.tmp"))


def test_the_best_is_known_without_its_pointer(tmp_path):
    """A kill between commit and pointer, and a pointer that was never written, change nothing."""
    for step, is_best in ((1, True), (2, False), (3, True), (4, False), (5, False)):
        checkpoint.commit(tmp_path, step, lambda place: (place / "w").write_bytes(b"1"), {"best": is_best})
    (tmp_path / "best").unlink()
    assert checkpoint.best(tmp_path).name == "checkpoint-3"
    checkpoint.rotate(tmp_path, 1)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-5"]


def test_a_whole_checkpoint_is_not_written_again(tmp_path):
    checkpoint.commit(tmp_path, 1, lambda place: (place / "w").write_bytes(b"first"))
    checkpoint.commit(tmp_path, 1, lambda place: (place / "w").write_bytes(b"second"))
    assert (tmp_path / "checkpoint-1" / "w").read_bytes() == b"first"


def test_one_write_is_in_flight_and_its_error_comes_up():
    writer, running, most = BackgroundWriter(), [], []
    lock = threading.Lock()

    def job():
        with lock:
            running.append(1)
            most.append(len(running))
        time.sleep(0.02)
        with lock:
            running.pop()

    for _ in range(4):
        writer.start(job)
    writer.wait()
    assert most == [1, 1, 1, 1]
    writer.start(full)
    with pytest.raises(OSError, match="No space"):
        writer.wait()
    writer.wait()


def test_what_is_copied_no_later_step_changes_and_tied_tensors_stay_one():
    table = torch.nn.Parameter(torch.zeros(4))
    state = {"embed": table, "head": table, "moments": [{"m": torch.zeros(4)}], "step": 3}
    kept = to_host(state)
    with torch.no_grad():
        table += 1
        state["moments"][0]["m"] += 1
    assert kept["embed"].sum() == 0 and kept["moments"][0]["m"].sum() == 0 and kept["step"] == 3
    assert kept["embed"] is kept["head"]


def test_weights_that_lie_elsewhere_are_not_saved_as_nothing():
    from core.training.saving import whole

    state = {"a": torch.zeros(2, 3), "b": torch.zeros(0, 3)}
    with pytest.raises(CheckpointError, match="1 of 2 weights are empty here, b first"):
        whole(state)
    assert whole({"a": state["a"]}) == {"a": state["a"]}
