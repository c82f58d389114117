"""Devices by name: those that are not there, and names of none."""

from __future__ import annotations

import pytest
import torch

from core.errors import BackendUnavailable, ConfigError
from core.inference.load import pick_device


def test_a_device_is_there_or_an_error_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="no device is called 'gpu7'"):
        pick_device("gpu7")
    with pytest.raises(BackendUnavailable, match="no CUDA device"):
        pick_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("auto") == "cuda" and pick_device("cuda:0") == "cuda:0"
    with pytest.raises(BackendUnavailable, match="no device cuda:1: this machine has 1"):
        pick_device("cuda:1")
