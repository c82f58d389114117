"""Each method moves the model where its name says, from chance."""

from __future__ import annotations

import sys

import pytest
import torch

from core.config.schema import AdapterConfig
from core.data.segments import Segment
from core.errors import ConfigError, DataError
from core.training.build import add_adapters
from core.training.preference.grpo import as_trl, encode_prompts, find_reward
from tests.core.training.preference.conftest import WORDS


@pytest.mark.parametrize("method", ["dpo", "cpo"])
@pytest.mark.parametrize("adapted", [False, True])
def test_the_better_answer_becomes_more_probable_on_unseen_pairs(tiny, build, method, adapted):
    from core.training.preference.cpo import CpoTrainer
    from core.training.preference.dpo import DpoTrainer
    from core.training.preference.pairs import Pair, encode_pairs

    # answers of the first three words are preferred behind every prompt; half of the combinations are held out
    rows = [
        Pair(
            *([Segment(f"Name the color {c}:"), Segment(f" {answer}", "assistant", True)] for answer in (better, worse))
        )
        for c in WORDS
        for better in WORDS[:3]
        for worse in WORDS[3:]
    ]
    train, held = (encode_pairs(part, tiny.tokenizer)[0] for part in (rows[::2], rows[1::2]))
    model = add_adapters(tiny.model, [AdapterConfig(r=8)]) if adapted else tiny.model
    cls = DpoTrainer if method == "dpo" else CpoTrainer
    options = {"max_length": 64}
    trainer = build(
        cls, model, train, tiny.tokenizer, options, steps=60, lr=1e-2 if adapted else 2e-3, eval_dataset=held
    )
    before = trainer.held_out(held)
    trainer.train()
    after = trainer.held_out(held)
    assert after["rewards/accuracies"] > 0.8, "chance is 0.5"
    assert after["rewards/margins"] > before["rewards/margins"] + 0.1 and after["loss"] < before["loss"]
    assert trainer.useful_tokens > 0 and "ref" not in getattr(model, "peft_config", {})


def test_rewarded_answers_become_frequent(tiny, build, tmp_path):
    from core.training.preference.grpo import GrpoTrainer

    (tmp_path / "rewards.py").write_text(
        "def vowel(answer, example):\n    return float(any(c in answer for c in example))\n"
    )
    rows = [row.chosen[:1] for row in tiny.rows[::5]]
    prompts, stats = encode_prompts(rows, tiny.tokenizer, examples=["aeiou"] * len(rows), group=8)
    assert stats.rows == len(rows) and len(prompts) == 8 * len(rows)
    options = {"num_generations": 8, "max_completion_length": 4, "temperature": 1.0}
    trainer = build(
        GrpoTrainer, tiny.model, prompts, tiny.tokenizer, options, steps=40, lr=3e-3, batch=16,
        rewards=[f"{tmp_path / 'rewards.py'}:vowel"],
    )  # fmt: skip
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert sum(rewards[-8:]) / 8 > sum(rewards[:8]) / 8 + 0.2, rewards
    ids = trainer._tokenize_prompts([prompts.texts[0]])[0][0]
    assert ids == prompts.ids[0]


def test_switches_change_nothing_of_what_is_drawn_and_learnt(tiny, build, tmp_path):
    import copy

    from core.config.schema import BackendConfig, OffloadConfig
    from core.training.preference.grpo import GrpoTrainer

    (tmp_path / "rewards.py").write_text("def length(answer, example):\n    return len(answer) / 10\n")
    rows = [row.chosen[:1] for row in tiny.rows[::5]]
    prompts, _ = encode_prompts(rows, tiny.tokenizer, examples=[None] * len(rows), group=4)
    options = {"num_generations": 4, "max_completion_length": 4, "temperature": 1.0}
    plain = BackendConfig(kernels="plain", lora="plain", activation_checkpoint="none")
    on = BackendConfig(kernels="fused", activation_checkpoint="selective", offload=OffloadConfig("host"))
    found = []
    for backend in (plain, on):
        model = add_adapters(copy.deepcopy(tiny.model), [AdapterConfig(r=4)], seed=1)
        trainer = build(
            GrpoTrainer, model, prompts, tiny.tokenizer, options, steps=3, lr=1e-2, batch=8, backend=backend,
            rewards=[f"{tmp_path / 'rewards.py'}:length"],
        )  # fmt: skip
        trainer.train()
        found.append(torch.cat([p.detach().flatten() for _, p in sorted(model.named_parameters()) if p.requires_grad]))
        assert "gradient_checkpointing_enable" not in vars(model)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-3)


def test_rewards_are_found_or_told(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_rewards.py").write_text("def one(answer, example):\n    return 1\n")
    for name in ("mine_rewards:one", f"{tmp_path / 'mine_rewards.py'}:one"):
        assert find_reward(name)("x", None) == 1
    for name, part in (
        ("one", "names no function"),
        ("mine_rewards:two", "no function 'two'"),
        ("absent_module:f", "cannot be loaded"),
        (f"{tmp_path / 'absent.py'}:f", "cannot be loaded"),
    ):
        with pytest.raises(ConfigError, match=part):
            find_reward(name)
    sys.modules.pop("mine_rewards", None)
    with pytest.raises(DataError, match="a reward is a number"):
        as_trl(lambda answer, example: None, "x:f", [0])(prompts=["p"], completions=["c"], number=[0])


def test_prompts_without_room_for_an_answer_are_dropped(tiny):
    rows = [row.chosen[:1] for row in tiny.rows[:2]]
    with pytest.raises(DataError, match="max_length"):
        encode_prompts(rows, tiny.tokenizer, examples=["a", "b"], group=2, max_length=2)
    assert torch.is_grad_enabled()
