"""Every switch of `backend:` keeps the curve of the loss: the same recipe with the switch on and off, step by step."""

from __future__ import annotations

import pytest
import torch

from core.config.schema import AdapterConfig, BackendConfig, ModelConfig, OffloadConfig, PrecisionConfig, Recipe
from core.data.collate import Collator
from core.data.dataset import EncodedDataset
from core.data.encode import IGNORE, Encoded
from core.models.load import load_model
from core.training.arguments import training_arguments
from core.training.build import add_adapters
from core.training.trainer import CountingCollator, SupervisedTrainer

STEPS = 6


def rows(count=24):
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        length = int(torch.randint(4, 30, (1,), generator=generator))
        ids = torch.randint(5, 60, (length,), generator=generator).tolist()
        made.append(Encoded(ids, [IGNORE] * (length // 3) + ids[length // 3 :]))
    return made


def trainer_of(tmp_path, backend, *, adapters=(), packed=True, lr=3e-3):
    recipe = Recipe(backend=backend)
    recipe.train.lr, recipe.train.schedule, recipe.train.warmup = lr, "constant", 0
    model = add_adapters(load_model(ModelConfig(preset="tiny"), range(300), seed=3), list(adapters))
    sizes = {"micro": 2 if packed else 4, "accumulation": 2, "steps": STEPS}
    return SupervisedTrainer(
        model=model,
        args=training_arguments(recipe, sizes, tmp_path, "cpu"),
        train_dataset=EncodedDataset(rows(), 64 if packed else None),
        data_collator=CountingCollator(Collator(1)),
        train_config=recipe.train,
        backend=backend,
    )


def curve(tmp_path, backend, **more):
    trainer = trainer_of(tmp_path, backend, **more)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


OFF = BackendConfig(
    cross_entropy="whole", kernels="plain", lora="plain", packed_attention="mask", activation_checkpoint="none",
    optimizer_step="plain", async_input=False, offload=OffloadConfig("none"),
)  # fmt: skip
ON = {
    "cross_entropy": {"cross_entropy": "fused"},
    "kernels": {"kernels": "fused"},
    "lora": {"kernels": "fused", "lora": "fused"},
    "packed_attention": {"packed_attention": "varlen"},
    "selective": {"activation_checkpoint": "selective"},
    "full": {"activation_checkpoint": "full"},
    "offload": {"activation_checkpoint": "full", "offload": OffloadConfig("host")},
    "optimizer_step": {"optimizer_step": "fused"},
    "async_input": {"async_input": True},
    "the defaults": None,
}


def with_keys(keys):
    return BackendConfig() if keys is None else BackendConfig(**{**vars(OFF), **keys})


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    adapters = [AdapterConfig(r=4)]
    return curve(tmp_path_factory.mktemp("plain"), OFF, adapters=adapters)


@pytest.mark.parametrize("name", list(ON))
def test_the_curve_is_kept(name, plain, tmp_path):
    found = curve(tmp_path, with_keys(ON[name]), adapters=[AdapterConfig(r=4)])
    assert len(found) == STEPS and found == pytest.approx(plain, abs=2e-4)
    assert max(plain) - min(plain) > 0.01, "nothing was learnt: any curve would do"


@pytest.mark.slow
def test_compiled_blocks_keep_the_curve(plain, tmp_path):
    trainer = trainer_of(tmp_path, with_keys({"compile": "blocks"}), adapters=[AdapterConfig(r=4)])
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert found == pytest.approx(plain, abs=2e-4)
    assert all(module._compiled_call_impl is None for module in trainer.model.modules())


def test_bf16_parameters_follow_the_fp32_curve(tmp_path):
    exact = curve(tmp_path, with_keys({}), packed=False)
    rounded = curve(tmp_path, with_keys({"precision": PrecisionConfig(params="bf16")}), packed=False)
    assert rounded == pytest.approx(exact, abs=0.03) and rounded[-1] < rounded[0] - 0.1


def test_who_asks_for_fused_lora_has_the_layers_that_it_needs():
    from core.models.tokenizer import train_bpe
    from core.training.speed import fuse

    model = load_model(ModelConfig(preset="tiny"), train_bpe(["some text of a few words"] * 9, 300))
    device = torch.device("cpu")
    assert fuse(model, BackendConfig(), device) == 0 and fuse(model, BackendConfig(lora="fused"), device) > 0


def test_the_model_is_plain_again(tmp_path):
    trainer = trainer_of(tmp_path, BackendConfig(kernels="fused", activation_checkpoint="selective"))
    classes = [type(module) for module in trainer.model.modules()]
    trainer.train()
    assert [type(module) for module in trainer.model.modules()] == classes
    assert trainer.model.config._attn_implementation == "sdpa"
    assert not any(getattr(module, "gradient_checkpointing", False) for module in trainer.model.modules())


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_everything_that_should_train_is_in_the_optimizer_and_moves(checkpointing, tmp_path):
    backend = BackendConfig(kernels="fused", activation_checkpoint=checkpointing, offload=OffloadConfig("host"))
    trainer = trainer_of(tmp_path, backend, adapters=[AdapterConfig(r=4)])
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    before = {name: p.detach().clone() for name, p in trained.items()}
    trainer.train()
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trained.values()}
    assert all(not torch.equal(p, before[name]) for name, p in trained.items())
