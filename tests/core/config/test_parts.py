"""Adapters and edits are named in a recipe; an unknown name or key is told before torch is loaded."""

from __future__ import annotations

import pytest

from core.config.load import recipe_from
from core.errors import ConfigError


def recipe(**model):
    return {
        "app": "translation",
        "model": {"path": "embedded", **model},
        "data": {"train": [{"reader": "embedded"}]},
        "method": "translation.parallel",
    }


@pytest.mark.parametrize(
    ("model", "what"),
    [
        ({"adapters": [{"kind": "lara"}]}, "unknown adapter kind 'lara'"),
        ({"adapters": [{"kind": "lora", "with": {"r": 4}}]}, "unknown key 'r'"),
        ({"edits": [{"kind": "controll"}]}, "unknown edit kind 'controll'"),
        ({"edits": [{}]}, "unknown edit kind ''"),
    ],
)
def test_mistakes_are_told(model, what):
    with pytest.raises(ConfigError, match=what):
        recipe_from(recipe(**model))


def test_lora_keeps_its_flat_keys():
    (spec,) = recipe_from(recipe(adapters=[{"kind": "lora", "r": 4, "targets": ["q_proj"]}])).model.adapters
    assert (spec.r, spec.effective_alpha, spec.targets) == (4, 8.0, ["q_proj"])
