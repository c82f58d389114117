"""Which process this is, and how several are started."""

from __future__ import annotations

import sys

import pytest

from core.distributed import launch
from core.errors import BackendUnavailable


def test_alone_there_is_one_process_and_it_is_the_main_one(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (launch.rank(), launch.world_size(), launch.is_main()) == (0, 1, True)
    launch.barrier()


def test_the_launcher_says_which_process_this_is(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (launch.rank(), launch.world_size(), launch.is_main()) == (2, 4, False)


def test_more_devices_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(BackendUnavailable, match="2 GPUs were asked for, this machine has 1"):
        launch.relaunch(["train", "x.yaml"], 2)


def test_the_same_command_runs_once_a_device_and_its_status_comes_back(monkeypatch):
    started = []

    class Started:
        def __init__(self, command, start_new_session):
            assert start_new_session, "a closed terminal would end it"
            started.append(command)

        def wait(self):
            return 7

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(launch.subprocess, "Popen", Started)
    monkeypatch.setattr(launch.signal, "signal", lambda number, handler: None)
    assert launch.relaunch(["train", "x.yaml", "--gpus", "2"], 2) == 7
    (command,) = started
    assert command[0] == sys.executable and "--nproc-per-node=2" in command
    assert command[-6:] == ["-m", "recipes", "train", "x.yaml", "--gpus", "2"]
