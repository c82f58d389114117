"""How arms are judged: rates are chosen by their rule, seeds are counted, a bar can be missed."""

from __future__ import annotations

import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks import domains
from benchmarks.arms import Workers, forgetting, gain, least_loss, seeds_run
from benchmarks.bar import ROOT, Setting, Unavailable
from benchmarks.bars import (
    methods_adapters_quality,
    methods_ast_gap,
    methods_control_retention,
    methods_green_flops,
    methods_spiel_quality,
    methods_squarehead,
    methods_welore,
)
from benchmarks.kept import Kept

BARS = (
    methods_adapters_quality, methods_ast_gap, methods_control_retention, methods_green_flops, methods_spiel_quality,
    methods_squarehead, methods_welore,
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    for module in BARS:
        for name in ("known", "new"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda: domains.Domain(["a"], ["b"]))


def arm(a, b, trainable=100, seeds=3, **measured):
    run = {"A": a, "B": b, **measured}
    return {"rate": 1e-3, "trainable": trainable, "search": {1e-3: run}, "runs": [run] * seeds}


def found(**arms):
    return {"base": {"A": 4.0, "B": 6.0}, "start": {"A": 4.0, "B": 6.0}, "arms": arms}


def sparse(**arms):
    """A comparison on known text from a pruned start."""
    return {"base": {"A": 4.0, "B": 4.0}, "start": {"A": 7.0, "B": 7.0}, "arms": arms}


def test_gain_and_forgetting_are_means_over_seeds():
    both = found(full=arm(5.0, 2.0))
    both["arms"]["full"]["runs"] = [{"A": 5.0, "B": 2.0}, {"A": 7.0, "B": 3.0}]
    assert gain(both, "full") == 3.5 and forgetting(both, "full") == 2.0 and seeds_run(both) == 2


def test_control_takes_the_rate_that_forgets_least_and_gains_enough():
    full = found(full=arm(8.0, 2.0))
    tried = {1e-4: {"A": 4.1, "B": 3.5}, 1e-3: {"A": 4.6, "B": 2.7}, 3e-3: {"A": 5.5, "B": 2.4}}
    assert methods_control_retention.choose("control", tried, full) == 1e-3
    assert methods_control_retention.choose("full", tried, full) == 3e-3 == least_loss("full", tried, full)
    weak = {1e-4: {"A": 4.1, "B": 5.0}, 1e-3: {"A": 4.2, "B": 4.0}}
    assert methods_control_retention.choose("control", weak, full) == 1e-3


def test_retention_is_met_missed_or_undecided():
    good = found(full=arm(8.0, 2.0), lora=arm(5.0, 3.0), control=arm(4.8, 2.7))
    assert methods_control_retention.judged(good).passed is True
    assert methods_control_retention.judged(good).value == pytest.approx(0.2)
    for change in ({"control": arm(5.5, 2.7)}, {"control": arm(4.8, 3.0)}):
        assert methods_control_retention.judged(found(**{**good["arms"], **change})).passed is False
    once = copy.deepcopy(good)
    once["arms"]["lora"]["runs"] = once["arms"]["lora"]["runs"][:1]
    assert methods_control_retention.judged(once).passed is None


def test_adapters_must_be_of_equal_size_and_forget_no_more():
    good = {name: arm(5.0, 2.8) for name in ("lora", "parallel", "series", "prefix")}
    judged = methods_adapters_quality.judged
    assert judged(found(full=arm(8.0, 2.0), **good)).passed is True
    for change in (
        {"series": arm(5.0, 3.2)},
        {"prefix": arm(5.0, 5.5)},
        {"lora": arm(9.0, 2.8)},
        {"lora": arm(5, 2.8, 103)},
    ):
        assert judged(found(full=arm(8.0, 2.0), **{**good, **change})).passed is False


def test_an_arm_that_learns_nothing_fails_at_once():
    others = {name: arm(5.0, 2.8, seeds=1) for name in ("lora", "parallel", "series")}
    judged = methods_adapters_quality.judged
    assert judged(found(full=arm(8.0, 2.0, seeds=1), prefix=arm(5.0, 5.0, seeds=1), **others)).passed is None
    assert judged(found(full=arm(8.0, 2.0, seeds=1), prefix=arm(5.0, 6.0, seeds=1), **others)).passed is False


def test_the_price_of_a_mask_is_counted_from_the_better_dense_model():
    def judged(**arms):
        return methods_ast_gap.judged(sparse(**{"dense": arm(4.1, 4.1), "static": arm(4.6, 4.6), **arms}))

    calm = {"flips": 0.0004}
    assert judged(ast=arm(4.2, 4.2, **calm)).passed is True
    assert judged(ast=arm(4.4, 4.4, **calm)).passed is False
    better = judged(ast=arm(4.2, 4.2, **calm), dense=arm(3.9, 3.9))
    assert better.value > judged(ast=arm(4.2, 4.2, **calm)).value
    assert judged(ast=arm(4.2, 4.2, seeds=1, **calm)).passed is None
    assert judged(ast=arm(7.1, 7.1, seeds=1, **calm)).passed is False


def test_masks_that_do_not_settle_fail_the_bar():
    def judged(**more):
        arms = {"dense": arm(4.1, 4.1), "static": arm(4.6, 4.6), "ast": arm(4.2, 4.2, **more)}
        return methods_ast_gap.judged(sparse(**arms)).passed

    assert judged(flips=0.0009) is True
    assert judged(flips=0.001) is False and judged(flips=None) is False and judged() is False


def test_flips_are_those_of_the_last_tenth():
    class Trainer:
        selection = SimpleNamespace(every=10, history=[0.4] * 45 + [0.001, 0.002, 0.0005, 0.0, 0.0003])
        state = SimpleNamespace(max_steps=500)

    assert methods_ast_gap.counted(Trainer)().measured() == {"updates": 50, "flips": 0.002}


def test_squarehead_has_to_beat_both_other_losses():
    def judged(logits):
        arms = {"squarehead": arm(4.2, 4.2), "cross-entropy": arm(4.8, 4.8), "dense": arm(4.0, 4.0)}
        return methods_squarehead.judged(sparse(**arms, logits=arm(logits, logits)))

    assert judged(4.3).passed is True and judged(4.1).passed is False


def test_green_has_to_keep_its_budget_and_beat_chance():
    def judged(flops=0.5, chance=2.6, green=2.1):
        spent = {"flops": flops, "flops with choosing": flops + 0.02, "planned flops": flops}
        arms = {"full": arm(8.0, 2.0), "green": arm(5.0, green, **spent), "chance": arm(5.0, chance, **spent)}
        return methods_green_flops.judged(found(**arms))

    assert judged().passed is True
    for change in ({"flops": 0.52}, {"chance": 2.05}, {"green": 2.5}):
        assert judged(**change).passed is False


def test_welore_is_judged_on_both_of_its_parts():
    names = ("untouched", "welore", "welore, all cut", "uniform", "uniform, as many weights")
    shot = dict(zip(names, ({"perplexity": value, "weights": 1} for value in (80, 200, 400, 800, 900))))
    both = sparse(factors=arm(4.5, 4.5), full=arm(4.4, 4.4))
    assert methods_welore.judged(shot, both).passed is True
    assert methods_welore.judged(shot, sparse(factors=arm(4.9, 4.9), full=arm(4.4, 4.4))).passed is False
    assert methods_welore.judged({**shot, "uniform": {"perplexity": 210, "weights": 1}}, both).passed is False


def test_sparse_tuning_is_compared_at_equal_size_with_what_does_not_move():
    def judged(ag=2.5, random=2.9, size=100):
        arms = {name: arm(5.0, 2.6) for name in ("lora", "spiel_ma", "grad_once")}
        arms |= {"full": arm(8.0, 2.0), "spiel_ag": arm(5.0, ag, size), "random": arm(5.0, random)}
        return methods_spiel_quality.judged(found(**arms))

    assert judged().passed is True
    for change in ({"ag": 2.8}, {"random": 2.55}, {"size": 101}):
        assert judged(**change).passed is False


def test_bars_and_their_runs_need_no_library_that_a_bare_gpu_machine_lacks():
    """The processes of a comparison import torch, transformers and peft; trl, datasets and gradio may be missing."""
    code = (
        "import sys\n"
        "for name in ('trl', 'datasets', 'gradio'): sys.modules[name] = None\n"
        "from benchmarks.bar import load_bars\n"
        "import benchmarks.arms, core.training.build, core.training.trainer, core.sparse.green_training\n"
        "import core.sparse.ast, core.sparse.masks, core.sparse.welore, core.control.trainer\n"
        "print(sum(name.startswith('methods.') for name in load_bars()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == 9


def test_workers_share_the_runs_and_say_which_one_failed(tmp_path):
    with Workers(tmp_path, 2) as pool, pytest.raises(RuntimeError, match="arm 'broken' failed"):
        pool.run([{"arm": "broken", "model": str(tmp_path / "absent"), "part": "all", "steps": 0, "scale": [8, 1, 1]}])


def test_a_run_that_is_kept_is_not_run_again(tmp_path):
    jobs = [{"arm": "broken", "model": str(tmp_path / "absent"), "seed": seed} for seed in (0, 1)]
    for job in jobs:
        Kept(tmp_path).keep(job, "a run", {"A": job["seed"]})
    with Workers(tmp_path, 1) as pool:
        assert pool.run(jobs) == [{"A": 0}, {"A": 1}]


@pytest.mark.slow
@pytest.mark.parametrize("bar", BARS, ids=lambda bar: bar.BAR.id)
def test_the_short_form_runs_on_a_processor_and_every_arm_learns(bar, tmp_path, monkeypatch):
    monkeypatch.undo()
    try:
        assert bar.BAR.measure(Setting(True, tmp_path)).passed is None
    except Unavailable as reason:
        pytest.skip(str(reason))
