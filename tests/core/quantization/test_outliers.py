"""Presets made for outliers take away at least four fifths of what outliers cost their plain counterparts.

Gains of a pretrained model's norms are made fifty times as large and the columns that read them as much smaller: the
same function, and channels like those of large models.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from benchmarks.bar import Unavailable  # noqa: E402
from benchmarks.quantization import increase, inject, load, nll, plain_w8a8, texts  # noqa: E402
from core.quantization import parse  # noqa: E402

RTN = parse("rtn:4")
PLAIN = {
    "awq:4": RTN,
    "smoothquant_plus": RTN,
    "llm_int8": plain_w8a8(),
    "comet": replace(parse("comet"), transforms=(), act="int4"),
    "qoq": replace(RTN, act="int8"),
}
FEWER = {"awq:4": {"search_batches": 1}, "smoothquant_plus": {"search_batches": 1, "alpha_step": 0.1}}


@pytest.fixture(scope="module")
def costs():
    """(spec, options) → the loss that it adds without outliers and with them."""
    try:
        model, tokenizer = load("tiny-7m", "cpu")
        calib, test = texts(tokenizer, 1, 8, 8, 256)
    except Unavailable as error:
        pytest.skip(str(error))
    pair = [(model, nll(model, test))]
    pair.append((inject(copy.deepcopy(model), 50.0, 4, 1), pair[0][1]))
    return lambda spec, **options: [increase(some, spec, calib, test, base, **options) for some, base in pair]


@pytest.mark.parametrize("preset", PLAIN)
def test_outliers_cost_a_fifth_at_most(costs, preset):
    without, outliers = costs(preset, **FEWER.get(preset, {}))
    plain_without, plain_outliers = costs(PLAIN[preset])
    assert plain_outliers > 2 * plain_without, "the plain counterpart suffers"
    assert outliers - without <= 0.2 * (plain_outliers - plain_without)
