"""The sparse chain equals numpy in every mode; instructions, buffers and cycles of a model follow from its shape."""

from __future__ import annotations

import math

import numpy as np
import pytest

from apps.rtl import RtlHarness
from apps.rtl.accel.flight import (
    TILE,
    Board,
    Shape,
    compile_step,
    cycles,
    plan_buffers,
    share,
    tokens_per_s,
    weights_of,
)
from apps.rtl.accel.sparse import MODES, ChainConfig, example, kept, pack, prune, span, storage_bits, verilog
from core.errors import ConfigError, DataError
from core.execution.tools import has

TINY = Shape(2, 64, 4, 2, 128, 512, 16)
BOARD = Board(macs=16, mhz=100, gbs=0.8, on_chip_kb=8, sparsity="dense")


def test_pruning_keeps_the_largest_and_packing_loses_nothing():
    draw = np.random.default_rng(0)
    weights = draw.integers(-128, 128, 64)
    for mode, n in MODES.items():
        pruned = prune(weights, mode)
        groups, before = pruned.reshape(-1, 4), weights.reshape(-1, 4)
        assert ((groups != 0).sum(1) <= n).all()
        for row, old in zip(groups, before):
            assert sorted(abs(row[row != 0])) == sorted(sorted(abs(old))[4 - n :])[-int((row != 0).sum()) :]
        values, places = pack(pruned, mode)
        again = np.zeros_like(groups)
        np.put_along_axis(again, places.reshape(-1, n), values.reshape(-1, n), 1)
        assert (again == groups).all() and len(values) == 16 * n
        assert storage_bits(64, mode) == 16 * n * (8 if mode == "dense" else 10)
    with pytest.raises(DataError, match="group 1 has 3 .*at most 2"):
        pack(np.array([0, 1, 0, 0, 1, 2, 0, 3]), "2:4")
    with pytest.raises(DataError, match="no groups"):
        prune(weights[:7], "2:4")
    with pytest.raises(ConfigError, match="3:4"):
        kept("3:4")


@pytest.mark.skipif(not has("iverilog"), reason="iverilog is not installed (Debian package: iverilog)")
@pytest.mark.parametrize("config", [ChainConfig(), ChainConfig(8, 4, 16)])
def test_the_chain_equals_numpy_in_every_mode(config):
    harness, task = RtlHarness(), example(config, vectors=12)
    assert harness.verify(task, task.reference).passed
    for before, after in (("mode == 1", "mode == 3"), ("? 2'd1 :", "? 2'd2 :"), ("chain1 + ", ""), ("x2 * w2", "x2")):
        assert before in task.reference
        assert harness.verify(task, task.reference.replace(before, after)).letter in "RC"
    assert [span(config, mode) for mode in MODES] == [config.lanes, 2 * config.lanes, 4 * config.lanes]
    assert verilog(config).count("*place") == config.lanes
    for bad in ({"lanes": 6}, {"lanes": 0}, {"bits": 40}, {"acc": 12}):
        with pytest.raises(ConfigError):
            ChainConfig(**bad)


def test_a_step_multiplies_what_the_model_multiplies():
    found = compile_step(TINY, BOARD, context=300)
    weights = 2 * sum(k * n for _, k, n in weights_of(TINY)) + 64 * 512
    attention = 2 * 2 * 300 * 16 * 4
    assert sum(i.macs for i in found) == weights + attention
    cache = 2 * 2 * (300 * 2 * 16) + 2 * 2 * 2 * 16
    assert sum(i.moved for i in found) == weights + cache
    sparse = compile_step(TINY, Board(sparsity="1:4"), context=300)
    assert sum(i.macs for i in sparse if i.op == "mv") == weights // 4
    assert sum(i.moved for i in sparse if i.op == "mv") == math.ceil(weights / 4 * 10 / 8)
    prefill = compile_step(TINY, BOARD, context=300, tokens=300)
    assert sum(i.macs for i in prefill if i.op == "mm") == 300 * (weights - 64 * 512)
    with pytest.raises(ConfigError, match="1 ≤ tokens"):
        compile_step(TINY, BOARD, context=4, tokens=5)


def test_an_instruction_takes_the_longer_of_computing_and_moving():
    # 0.8 GB/s at 100 MHz are 8 bytes a cycle; 16 multipliers
    step = [i for i in compile_step(TINY, BOARD, 1) if (i.op, i.k, i.n) == ("mv", 64, 128) and i.layer == 0]
    assert cycles(step, BOARD) == 64 * 128 // 8 + 8
    fast = Board(macs=16, mhz=100, gbs=80, on_chip_kb=8, sparsity="dense")
    assert cycles(step, fast) == 64 * 128 // 16 + 8
    norm = [i for i in compile_step(TINY, BOARD, 1) if i.op == "norm"][:1]
    assert cycles(norm, BOARD) == 64 // 16 + 8


def test_decoding_is_bound_by_the_memory_and_sparsity_pays():
    shape = Shape(32, 4096, 32, 32, 11008, 32000, 128)
    speeds = {mode: tokens_per_s(shape, Board(sparsity=mode), 512) for mode in MODES}
    weights = 32 * sum(k * n for _, k, n in weights_of(shape)) + 4096 * 32000
    for mode, speed in speeds.items():
        bound = 460e9 / (storage_bits(weights, mode) / 8)
        assert 0.8 * bound < speed <= bound
    assert speeds["dense"] < speeds["2:4"] < speeds["1:4"]
    assert tokens_per_s(shape, Board(), 4096) < tokens_per_s(shape, Board(), 64)


def test_lengths_share_the_instructions_of_their_bucket():
    alone = share(TINY, BOARD, 64, 1)
    assert alone.bytes_shared == alone.bytes_each and alone.slower == 0 and alone.buckets == 64
    pairs = share(TINY, BOARD, 4 * TILE, TILE)
    counts = [len(compile_step(TINY, BOARD, n)) for n in range(1, 4 * TILE + 1)]
    assert pairs.bytes_each == 16 * sum(counts) and pairs.buckets == 4
    assert pairs.bytes_shared == 16 * sum(counts[TILE - 1 :: TILE])
    spent = [cycles(compile_step(TINY, BOARD, n), BOARD) for n in (1, TILE)]
    first = share(TINY, BOARD, 1, 1), share(TINY, BOARD, TILE, TILE)
    assert first[0].slower == 0 and 0 < first[1].slower < spent[1] / spent[0] - 1
    prefill = share(TINY, BOARD, 40, 10, prefill=True)
    assert prefill.bytes_shared < prefill.bytes_each and prefill.slower > 0 and "times less" in str(prefill)


@pytest.mark.parametrize("context", [1, 64, 700])
def test_buffers_that_live_together_do_not_overlap(context):
    plan = plan_buffers(TINY, Board(on_chip_kb=64), context)
    for one in plan.buffers:
        for other in plan.buffers:
            together = one is not other and one.first <= other.last and other.first <= one.last
            apart = one.address + one.size <= other.address or other.address + other.size <= one.address
            assert apart or not together
    alive = [sum(b.size for b in plan.buffers if b.first <= t <= b.last) for t in range(13)]
    assert max(alive) <= plan.peak <= sum(b.size for b in plan.buffers)
    assert plan.traffic_saved == 2 * 2 * sum(b.size for b in plan.buffers)
    with pytest.raises(ConfigError, match="needs .* KB on the chip"):
        plan_buffers(TINY, BOARD, 100_000)


def test_shapes_are_read_from_a_configuration(tmp_path):
    config = tmp_path / "config.json"
    config.write_text('{"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}')
    with pytest.raises(ConfigError, match="intermediate_size"):
        Shape.of(tmp_path)
    config.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        Shape.of(config)
    given = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
             "intermediate_size": 128, "vocab_size": 512}  # fmt: skip
    assert Shape.of(given) == TINY
