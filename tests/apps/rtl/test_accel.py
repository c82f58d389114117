"""Accelerator units: recodings are numbers, transformations keep the value, Verilog equals numpy."""

from __future__ import annotations

import numpy as np
import pytest

from apps.rtl import RtlHarness
from apps.rtl.accel import array, loops
from apps.rtl.accel.encode import average_products, average_products_exact, booth, sign_magnitude, value
from apps.rtl.accel.mac import KINDS, MacConfig, cycles, example, golden, verilog
from apps.rtl.ppa import cost
from core.errors import ConfigError
from core.execution.tools import has


@pytest.mark.parametrize("bits", [4, 8, 12])
def test_digits_stand_for_their_numbers(bits):
    numbers = np.arange(-(1 << (bits - 1)), 1 << (bits - 1))
    for recoding, allowed in ((booth, {-2, -1, 0, 1, 2}), (sign_magnitude, {-2, -1, 0, 1, 2})):
        digits = recoding(numbers, bits)
        assert (value(digits) == numbers).all() and set(np.unique(digits)) <= allowed
    positive = sign_magnitude(np.arange(1 << (bits - 1)), bits)
    assert set(np.unique(positive)) <= {-1, 0, 1, 2}


def test_average_partial_products():
    for sigma, published in ((10, 1.75), (20, 2.10), (30, 2.32), (40, 2.48), (50, 2.60)):
        assert average_products_exact(sigma) == pytest.approx(published, abs=0.03)
        assert average_products(sigma) == pytest.approx(average_products_exact(sigma), abs=0.01)
        assert average_products_exact(sigma, "booth") > average_products_exact(sigma) + 0.1


def test_every_transformation_keeps_the_value_and_saves_what_it_says():
    draw = np.random.default_rng(0)
    a, b = (draw.integers(-128, 128, 64) for _ in range(2))
    exact = int((a * b).sum())
    plain = loops.Nest()
    saved, grouped = loops.carry_save(plain), loops.reduce_same_weight(plain)
    encoded = loops.encode(grouped)
    shared = loops.share_encoder(loops.carry_save(encoded))
    counted = {n: loops.evaluate(n, a, b, units=8) for n in (plain, saved, grouped, encoded, shared)}
    assert all(found.value == exact for found in counted.values())
    assert counted[saved].additions == 1 < counted[plain].additions == 64 * 8
    assert counted[grouped].shifts == 8 < counted[plain].shifts == 64 * 8
    assert counted[encoded].products < 0.5 * counted[plain].products
    assert (counted[encoded].recodings, counted[shared].recodings) == (64 * 8, 64)
    with pytest.raises(ConfigError, match="encode first"):
        loops.share_encoder(plain)


@pytest.mark.skipif(not has("iverilog"), reason="Icarus Verilog is absent (Debian package: iverilog)")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits, acc", [(4, 12), (8, 24)])
def test_units_equal_numpy_and_wrong_ones_do_not(kind, bits, acc):
    task = example(MacConfig(kind, bits, acc), vectors=20, size=9, seed=bits)
    harness = RtlHarness()
    assert harness.verify(task, task.reference).passed
    for right, wrong in (("<< 1", "<< 2"), ("a * b", "a * b + 1"), ("2'd0", "2'd1")):
        if right in task.reference:
            assert not harness.verify(task, task.reference.replace(right, wrong, 1)).passed


@pytest.mark.skipif(not has("iverilog"), reason="Icarus Verilog is absent (Debian package: iverilog)")
@pytest.mark.parametrize("kind, width, bits, acc", [("opt2", 3, 4, 12), ("opt2", 4, 8, 24), ("opt4", 2, 4, 12),
                                                    ("opt4", 4, 8, 24)])  # fmt: skip
def test_rows_equal_numpy_and_wrong_ones_do_not(kind, width, bits, acc):
    task = array.example(array.RowConfig(kind, width, bits, acc), vectors=12, size=12, seed=bits)
    harness = RtlHarness(engine="iverilog")
    assert harness.verify(task, task.reference).passed
    changes = [("<<< 1", "<<< 2"), ("<< 1;", "<< 2;")]
    changes += [("p0 + ", ""), (", 1'b0}", ", 1'b1}")] if kind == "opt2" else [("> 2;", "> 3;"), ("(a < 0)", "1'b0")]
    for right, wrong in changes:
        assert right in task.reference
        assert not harness.verify(task, task.reference.replace(right, wrong, 1)).passed, right


def test_a_row_takes_the_cycles_that_its_digits_need():
    a = np.array([0, 1, 3, -128])
    assert array.cycles(array.RowConfig("opt2", 2), a) == 5 * 2
    assert array.cycles(array.RowConfig("opt4", 2), a) == 1 + 1 + 2 + 1  # a zero still takes the cycle of its arrival
    for bad in ({"kind": "opt3"}, {"width": 0}, {"bits": 7}, {"acc": 12}):
        with pytest.raises(ConfigError):
            array.RowConfig(**bad)
    with pytest.raises(ConfigError, match="multiple of the width"):
        array.example(array.RowConfig("opt2", 4), size=6)


def test_the_golden_model_wraps_and_cycles_are_counted():
    assert golden(np.array([127, 127]), np.array([127, 127]), 15) == 2 * 127 * 127 - (1 << 15)
    assert cycles(MacConfig("plain"), np.array([0, 1, 3])) == 3
    assert cycles(MacConfig("opt3"), np.array([0, 1, 3])) == 3  # 0 has none, 1 one, 3 = 4 - 1 two


@pytest.mark.skipif(not has("yosys"), reason="yosys is absent (Debian package: yosys)")
def test_keeping_two_words_makes_the_loop_shallower():
    depth = {kind: cost(verilog(MacConfig(kind, final=False))).depth for kind in KINDS}
    assert depth["opt1"] < 0.75 * depth["plain"] and depth["opt3"] < 0.75 * depth["plain"]


def test_impossible_units_are_refused():
    for bad in ({"bits": 7}, {"bits": 8, "acc": 12}, {"kind": "opt9"}):
        with pytest.raises(ConfigError):
            MacConfig(**bad)
    with pytest.raises(ConfigError, match="final"):
        example(MacConfig("opt1", final=False))
