"""Blocks on a line: the formula, its gradient, descendants, the closed-form fit."""

from __future__ import annotations

import pytest
import torch
import transformers as tr

from core.config.schema import ModelConfig
from core.control.learngene import Learngene
from core.errors import CheckpointError, ConfigError
from core.models.load import load_model
from core.models.topology import ModelTopology

IDS = torch.arange(3, 12).view(1, -1)
CONFIG = tr.LlamaConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=32, tie_word_embeddings=True,
)  # fmt: skip
VIT = tr.ViTConfig(
    hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8,
    num_labels=5,
)  # fmt: skip


def vision(seed):
    torch.manual_seed(seed)
    return {"pixel_values": torch.randn(2, 3, 16, 16)}


def fresh(family="llama", seed=0):
    if family == "vit":
        gene = Learngene.from_config(VIT, tr.ViTForImageClassification, seed)
    else:
        gene = Learngene.from_config(CONFIG, tr.LlamaForCausalLM, seed)
    generator = torch.Generator().manual_seed(9)
    for part in (gene.a, gene.b):
        for name in part:
            part[name] = part[name] + 0.1 * torch.randn(part[name].shape, generator=generator)
    return gene


@torch.no_grad()
def logits(model, **given):
    return model.eval()(**(given or {"input_ids": IDS, "use_cache": False})).logits


@pytest.mark.parametrize("family", ["llama", "vit"])
@pytest.mark.parametrize("depth", [1, 4, 12])
def test_a_descendant_is_the_auxiliary_model(family, depth):
    gene, given = fresh(family), vision(3) if family == "vit" else {"input_ids": IDS}
    auxiliary, plain = gene.auxiliary(depth), gene.descend(depth)
    torch.testing.assert_close(logits(auxiliary, **given), logits(plain, **given), atol=1e-6, rtol=1e-5)
    assert len(ModelTopology.of(plain).stack) == depth and "graft" not in plain.config.to_dict()
    for number, block in enumerate(ModelTopology.of(plain).stack):
        for name, parameter in block.named_parameters():
            assert torch.equal(parameter, gene.b[name] + number / depth * gene.a[name])


def test_what_is_stored_and_trained_does_not_depend_on_depth():
    gene = fresh()
    counts = {sum(p.numel() for p in gene.auxiliary(depth).parameters()) for depth in (1, 5, 12)}
    assert counts == {gene.stored}
    block = sum(p.numel() for p in gene.descend(1).model.layers[0].parameters())
    assert gene.stored == 2 * block + 30 * 16 + 16


def test_gradients_add_up_along_the_line():
    gene, depth = fresh(), 4
    auxiliary = gene.auxiliary(depth).double().train()
    plain = gene.descend(depth).double().train()
    for model in (auxiliary, plain):
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    pair = ModelTopology.of(auxiliary).stack[0].pair
    # the norms compute in fp32 also in a model of doubles, hence the tolerances
    for name in pair.names:
        each = [dict(block.named_parameters())[name].grad for block in plain.model.layers]
        key = name.replace(".", "__")
        torch.testing.assert_close(pair.b[key].grad, sum(each), atol=1e-7, rtol=1e-4)
        torch.testing.assert_close(
            pair.a[key].grad, sum(n / depth * g for n, g in enumerate(each)), atol=1e-7, rtol=1e-4
        )


def test_cached_decoding_and_a_saved_auxiliary(tmp_path):
    auxiliary = fresh().auxiliary(3).eval()
    expected, cache, found = logits(auxiliary), tr.DynamicCache(config=auxiliary.config), []
    with torch.no_grad():
        for position in range(IDS.shape[1]):
            out = auxiliary(input_ids=IDS[:, position : position + 1], past_key_values=cache, use_cache=True)
            found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-5, rtol=1e-5)
    auxiliary.save_pretrained(tmp_path)
    again = load_model(ModelConfig(path=str(tmp_path)), None).eval()
    assert torch.equal(logits(again), expected)
    gene = Learngene.from_auxiliary(again)
    torch.testing.assert_close(logits(gene.descend(3)), expected, atol=1e-6, rtol=1e-5)


def test_the_fit_of_a_line_is_exact_and_of_noise_is_least_squares(tmp_path):
    gene = fresh()
    fitted = Learngene.fit_from(gene.descend(6))
    for name in gene.a:
        torch.testing.assert_close(fitted.a[name], gene.a[name], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(fitted.b[name], gene.b[name], atol=1e-5, rtol=1e-4)
    torch.manual_seed(0)
    model = tr.LlamaForCausalLM(CONFIG)
    fitted = Learngene.fit_from(model)
    name = "mlp.up_proj.weight"
    blocks = [dict(block.named_parameters())[name].detach() for block in model.model.layers]
    rest = [w - fitted.b[name] - n / 3 * fitted.a[name] for n, w in enumerate(blocks)]
    assert sum(rest).abs().max() < 1e-6 and sum(n * r for n, r in enumerate(rest)).abs().max() < 1e-6
    fitted.save(tmp_path)
    again = Learngene.load(tmp_path)
    assert torch.equal(logits(again.descend(5)), logits(fitted.descend(5)))


def test_an_auxiliary_model_learns():
    torch.manual_seed(0)
    auxiliary = Learngene.from_config(CONFIG, tr.LlamaForCausalLM).auxiliary(6).train()
    optimizer, first = torch.optim.Adam(auxiliary.parameters(), 1e-2), None
    for _ in range(30):
        loss = auxiliary(input_ids=IDS, labels=IDS, use_cache=False).loss
        first = first or float(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.5 * first


def test_mistakes_are_told(tmp_path):
    gene = fresh()
    for make in (gene.auxiliary, gene.descend):
        with pytest.raises(ConfigError, match="a model of 0 blocks"):
            make(0)
    with pytest.raises(ConfigError, match="one block"):
        Learngene.fit_from(gene.descend(1))
    with pytest.raises(CheckpointError, match="no learngene"):
        Learngene.load(tmp_path)
    with pytest.raises(ConfigError, match="no shared pair"):
        Learngene.from_auxiliary(gene.descend(2))
    from core.models.blocks.slices import take

    uneven = gene.descend(2)
    take(uneven, 0, channels=range(5))
    with pytest.raises(ConfigError, match="differs from block to block"):
        Learngene.fit_from(uneven)
    gene.outside = {"model.other": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="another model"):
        gene.descend(2)
