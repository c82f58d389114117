"""A key of the format that nothing acts on yet is refused, in the recipe and in a stage, never ignored."""

from __future__ import annotations

import pytest

from core.config.load import INERT, recipe_from
from core.errors import UnsupportedError

VALUES = {
    "data.process": [{"length": {}}],
    "verify": {"name": "judge"},
    "inference.engine": "tiny",
    "inference.sampling": {"beams": 2},
}


def recipe(**blocks):
    return {
        "app": "translation",
        "model": {"path": "embedded"},
        "data": {"train": [{"reader": "embedded"}], **blocks.pop("data", {})},
        "method": "translation.parallel",
        **blocks,
    }


@pytest.mark.parametrize("dotted", INERT)
def test_refused(dotted):
    recipe_from(recipe())
    block, _, name = dotted.partition(".")
    with pytest.raises(UnsupportedError, match=dotted):
        recipe_from(recipe(**{block: {name: VALUES[dotted]} if name else VALUES[dotted]}))


def test_refused_in_a_stage():
    raw = recipe()
    del raw["method"]
    raw["stages"] = [{"name": "a", "method": "translation.parallel", "data": {"process": [{"length": {}}]}}]
    with pytest.raises(UnsupportedError, match=r"data\.process"):
        recipe_from(raw)
