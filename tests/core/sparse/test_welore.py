"""WeLore: exact ranks of known spectra, the asked share of ranks, the error that was promised, what trains, saving."""

from __future__ import annotations

import pytest
import torch
import transformers as tr

from core.config.sparse import WeLoreOptions
from core.errors import CheckpointError, ConfigError, UnsupportedError
from core.models.linear_form import LowRankLinear
from core.models.surgery import apply, ops_of, register
from core.sparse.welore import is_lowrank, reduced_ranks, spectra, to_dense, welore

IDS = torch.arange(3, 15).view(1, -1)


def llama():
    """Random, with spectra that fall at different rates."""
    torch.manual_seed(0)
    config = tr.LlamaConfig(
        vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=36,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = tr.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            for weight in (layer.mlp.up_proj.weight, layer.self_attn.q_proj.weight):
                u, s, v = torch.linalg.svd(weight, full_matrices=False)
                weight.copy_(u @ torch.diag(torch.logspace(0, -3 + number, len(s))) @ v)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_ranks_of_known_spectra():
    found = {"flat": torch.tensor([10.0, 9.0, 8.0, 0.0]), "steep": torch.tensor([10.0, 2.0, 1.0, 0.0])}
    threshold, ranks = reduced_ranks(found, 0.5)
    # scaled: 1 .9 .8 0 and 1 .2 .1 0; half of the eight go: 0 0 .1 .2
    assert ranks == {"flat": 3, "steep": 1} and 0.2 < threshold < 0.81
    with pytest.warns(UserWarning, match="equal"):
        assert reduced_ranks({"constant": torch.ones(4), **found}, 0.3)[1]["constant"] == 4
    with pytest.raises(ConfigError):
        reduced_ranks(found, 1.0)


def test_equal_spectra_get_equal_ranks():
    values = torch.linspace(3, 1, 12)
    _, ranks = reduced_ranks({"a": values, "b": values * 7, "c": values + 5}, 0.5)
    assert set(ranks.values()) == {6}


@pytest.mark.parametrize("err", [0.2, 0.5, 0.7])
def test_the_asked_share_goes_and_the_error_is_what_was_dropped(err):
    model, dense = llama(), dict(llama().named_parameters())
    found = spectra(model)
    report = welore(model, WeLoreOptions(err=err))
    total = sum(len(values) for values in found.values())
    kept = sum(report.ranks.values())
    assert abs((total - kept) / total - err) <= 1 / total + len(found) / total * (err > 0.6)
    weights = 0
    for path, values in found.items():
        part, whole = model.get_submodule(path), dense[f"{path}.weight"]
        if path in report.lowrank:
            assert isinstance(part, LowRankLinear) and part.rank == report.ranks[path] < len(values) / 2
            error = (part.dense_weight() - whole).square().sum()
            torch.testing.assert_close(error, values[part.rank :].square().sum(), rtol=1e-3, atol=1e-6)
            assert all(p.requires_grad for p in part.parameters())
        else:
            assert torch.equal(part.weight, whole) and part.weight.requires_grad == (not report.lowrank)
        weights += sum(p.numel() for p in part.parameters())
    assert weights == report.after and report.before == sum(dense[f"{p}.weight"].numel() for p in found)
    assert not model.model.embed_tokens.weight.requires_grad or not report.lowrank


def test_factors_are_taken_where_they_are_smaller():
    assert is_lowrank(2900, 4096, 11008, "breakeven") and not is_lowrank(3000, 4096, 11008, "breakeven")
    assert is_lowrank(2047, 4096, 11008, "half") and not is_lowrank(2048, 4096, 11008, "half")


def test_a_compressed_model_is_saved(tmp_path):
    model = llama()
    report = welore(model, WeLoreOptions(err=0.5, lrc_rule="breakeven", train="all"))
    assert report.lowrank and report.after < report.before
    assert all(p.requires_grad for p in model.parameters())
    model.save_pretrained(tmp_path)
    register()
    again = tr.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model))


def test_factors_are_multiplied_out_again():
    model = llama()
    welore(model, WeLoreOptions(err=0.5, lrc_rule="breakeven"))
    before = logits(model)
    plain = to_dense(model)
    torch.testing.assert_close(logits(plain), before, rtol=1e-4, atol=1e-5)
    assert type(plain) is tr.LlamaForCausalLM and not hasattr(plain.config, "graft")
    assert not any(isinstance(part, LowRankLinear) for part in plain.modules())
    edited = apply(llama(), "drop_layers", layers=[0])
    welore(edited, WeLoreOptions(err=0.5, lrc_rule="breakeven"))
    assert [op["kind"] for op in ops_of(to_dense(edited))] == ["drop_layers"]
    welore(edited, WeLoreOptions(err=0.5, lrc_rule="breakeven"))
    with pytest.raises(UnsupportedError, match="edited afterwards"):
        to_dense(apply(edited, "insert_block", after=0))


def test_singular_values_are_kept_and_only_of_the_same_weights(tmp_path, monkeypatch):
    cache, computed = tmp_path / "kept" / "values.safetensors", []
    real = torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda w: (computed.append(w), real(w))[1])
    first = spectra(llama(), cache)
    assert len(computed) == len(first) == 14
    again = spectra(llama(), cache)
    assert len(computed) == 14 and all(torch.equal(first[name], again[name]) for name in first)
    changed = llama()
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight.mul_(1.1)
    spectra(changed, cache)
    assert len(computed) == 15
    cache.write_text("nothing")
    with pytest.raises(CheckpointError, match="singular values"):
        spectra(llama(), cache)


def test_weights_that_are_not_finite_are_named_and_nothing_changes():
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError) as error:
        welore(model, WeLoreOptions(err=0.5))
    assert error.value.where == "model.layers.1.mlp.up_proj"
    assert type(model) is tr.LlamaForCausalLM and all(p.requires_grad for p in model.parameters())
