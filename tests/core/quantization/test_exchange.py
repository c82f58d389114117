"""Codes of other tools decode to their own matrices, and what is written is read by the format's own library."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from core.errors import CheckpointError, UnsupportedError
from core.quantization import QuantizedLinear, exchange, quantize_model

N, K, GROUP = 64, 128, 32


def tiny():
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=96, tie_word_embeddings=True, **size)).eval()


def pieces(bits=4):
    torch.manual_seed(0)
    top = 2**bits
    codes, zero = torch.randint(0, top, (N, K)), torch.randint(1, top, (N, K // GROUP))
    scale = torch.rand(N, K // GROUP).half() * 0.01
    dense = (codes - zero.repeat_interleave(GROUP, 1)) * scale.float().repeat_interleave(GROUP, 1)
    return codes, zero, scale, dense


def awq_words(values):
    """(R, C) → int32 (R, C/8), as AWQ's own packer writes: nibble i of a word is column ORDER[i]."""
    words = torch.zeros(values.shape[0], values.shape[1] // 8, dtype=torch.int64)
    for i, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        words |= values[:, column::8].long() << (4 * i)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def gptq_words(values, bits):
    """(R, C) → int32 (R·bits/32, C), low bits first."""
    per = 32 // bits
    words = sum(values[i::per].long() << (bits * i) for i in range(per))
    return torch.where(words >= 2**31, words - 2**32, words).int()


def test_awq_layout():
    codes, zero, scale, dense = pieces()
    parts = {"qweight": awq_words(codes.t()), "qzeros": awq_words(zero.t()), "scales": scale.t()}
    layer = exchange.from_awq(parts, 4, GROUP)
    assert torch.equal(layer.dense_weight(), dense)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("reordered", [False, True])
def test_gptq_layout(bits, reordered):
    codes, zero, scale, dense = pieces(bits)
    index = torch.arange(K) // GROUP
    if reordered:
        # inputs keep their places and name their groups
        order = torch.randperm(K)
        index = index[order]
        codes, dense = codes[:, order], dense[:, order]
    parts = {
        "qweight": gptq_words(codes.t(), bits),
        "qzeros": gptq_words((zero - 1), bits).t().contiguous(),
        "scales": scale.t(),
        "g_idx": index,
    }
    layer = exchange.from_gptq(parts, bits, GROUP)
    assert torch.equal(layer.dense_weight(), dense)
    x = torch.randn(3, K)
    assert torch.allclose(layer(x), x @ dense.t(), atol=1e-5)


def test_a_whole_awq_folder_opens_and_travels_on_as_ours(tmp_path):
    model = tiny()
    reference = tiny()
    quantize_model(reference, "rtn:4:g32")
    state, config = dict(model.state_dict()), model.config.to_dict()
    del state["lm_head.weight"]
    for name, part in reference.named_modules():
        if isinstance(part, QuantizedLinear):
            del state[f"{name}.weight"]
            state[f"{name}.qweight"] = awq_words(part.codes().t())
            state[f"{name}.qzeros"] = awq_words(part.zero.t())
            state[f"{name}.scales"] = part.scale.t().contiguous()
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    opened, ids = exchange.load_foreign(tmp_path), torch.arange(2, 20).unsqueeze(0)
    with torch.no_grad():
        assert torch.allclose(opened(ids).logits, reference(ids).logits, atol=1e-5)
        opened.save_pretrained(tmp_path / "ours")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
        assert torch.equal(again(ids).logits, opened(ids).logits)
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "hqq"}}))
    with pytest.raises(CheckpointError, match="'hqq' is not read"):
        exchange.load_foreign(tmp_path)


def test_a_gptq_folder_is_a_base_like_any_other(tmp_path):
    """Opened by its path, trained with LoRA, saved with its base, opened again, merged into its codes."""
    from core.config.schema import AdapterConfig, ModelConfig
    from core.errors import UnsupportedError as Refused
    from core.quantization.load import load_base
    from core.training.build import add_adapters

    reference, config = tiny(), tiny().config.to_dict()
    quantize_model(reference, "rtn:4:g32")
    state = dict(tiny().state_dict())
    del state["lm_head.weight"]
    for name, part in reference.named_modules():
        if isinstance(part, QuantizedLinear):
            del state[f"{name}.weight"]
            state[f"{name}.qweight"] = gptq_words(part.codes().t().int(), 4)
            # stored less one, packed along the outputs; a range that holds zero has none below one here
            assert int(part.zero.min()) >= 1
            state[f"{name}.qzeros"] = gptq_words(part.zero.int() - 1, 4).t()
            state[f"{name}.scales"] = part.scale.t()
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ids = torch.arange(2, 20).unsqueeze(0)
    base = load_base(ModelConfig(path=str(tmp_path)), None)
    assert sum(isinstance(part, QuantizedLinear) for part in base.modules()) == 7
    with torch.no_grad():
        assert torch.allclose(base(ids).logits, reference(ids).logits, atol=1e-4)
    model = add_adapters(base, [AdapterConfig(r=2)])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with pytest.raises(Refused, match="holds codes already"):
        load_base(ModelConfig(path=str(tmp_path), quantization="rtn"), None)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("spec", ["nf4", "int8"])
def test_bitsandbytes_layers_become_ours(spec):
    from core.config.schema import ModelConfig
    from core.quantization import bitsandbytes
    from core.quantization.load import load_base

    model = load_base(ModelConfig(path="embedded", quantization=spec), None)
    name = "model.layers.0.mlp.up_proj"
    wanted = bitsandbytes.dense_weight(model.get_submodule(name))
    exchange.from_bitsandbytes(model)
    ours = model.get_submodule(name)
    assert isinstance(ours, QuantizedLinear) and torch.allclose(ours.dense_weight(), wanted.float(), atol=1e-7)


def test_what_cannot_be_expressed_is_refused(tmp_path):
    for spec, reason in (
        ("nf4", "nf4"), ("llm_int8", "activations"), ("bitmod:3", "bitmod"), ("rtn:4:g32", "asymmetric"),
    ):  # fmt: skip
        model = tiny()
        quantize_model(model, spec)
        with pytest.raises(UnsupportedError, match=reason):
            exchange.export_compressed_tensors(model, tmp_path)
    with pytest.raises(UnsupportedError, match="no quantized layer"):
        exchange.export_compressed_tensors(tiny(), tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("compressed_tensors") is None, reason="compressed-tensors is not here")
@pytest.mark.parametrize("spec", ["rtn:4:g32:sym", "rtn:8:row:sym"])
def test_written_codes_are_read_by_compressed_tensors(tmp_path, spec):
    model, ids = tiny(), torch.arange(2, 20).unsqueeze(0)
    quantize_model(model, spec)
    exchange.export_compressed_tensors(model, tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert (opened(ids).logits - model(ids).logits).abs().max() < 1e-3


@pytest.mark.skipif(importlib.util.find_spec("compressed_tensors") is None, reason="compressed-tensors is not here")
@pytest.mark.parametrize("spec", ["rtn:4:g32", "rtn:3:g32", "rtn:8:row"])
def test_asymmetric_weights_are_the_formats_own(tmp_path, spec):
    """What is written for vLLM decodes to our matrices by the format's own decompressor."""
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from safetensors.torch import load_file

    model = tiny()
    quantize_model(model, spec)
    exchange.export_compressed_tensors(model, tmp_path, zero_points=True)
    stored = load_file(tmp_path / "model.safetensors")
    for name, part in model.named_modules():
        if isinstance(part, QuantizedLinear):
            own = {key.removeprefix(f"{name}."): value for key, value in stored.items() if key.startswith(f"{name}.")}
            weights = QuantizationArgs(**exchange._arguments(part.quant))
            scheme = QuantizationScheme(targets=["Linear"], weights=weights)
            dense = PackedQuantizationCompressor.decompress(own, scheme)["weight"]
            assert torch.allclose(dense.float(), part.dense_weight(), atol=2e-4)


@pytest.mark.skipif(importlib.util.find_spec("compressed_tensors") is None, reason="compressed-tensors is not here")
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_words_and_zero_points_are_the_formats_own(bits):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes = torch.randint(0, 2**bits, (N, K), dtype=torch.uint8)
    signed = (codes.int() - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(exchange._words(codes, bits), pack_to_int32(signed, bits))
    # zero points are packed along the rows
    assert torch.equal(exchange._words(codes.t(), bits).t(), pack_to_int32(signed, bits, packed_dim=0))


def test_a_broken_awq_folder_names_the_tensor(tmp_path):
    base = tiny()
    name, inputs, outputs = "model.layers.0.mlp.up_proj", 64, 128
    layer = base.get_submodule(name)
    assert (layer.in_features, layer.out_features) == (inputs, outputs)
    rest = {key: value.clone() for key, value in base.state_dict().items() if not key.startswith((name, "lm_head"))}

    def opened(parts, **settings):
        config = base.config.to_dict() | {"quantization_config": {"quant_method": "awq", "bits": 4, **settings}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file({**rest, **{f"{name}.{key}": value for key, value in parts.items()}}, tmp_path / "model.safetensors")
        return exchange.load_foreign(tmp_path)

    def codes(inputs):
        words = {"qweight": (inputs, outputs // 8), "qzeros": (inputs // 32, outputs // 8)}
        made = {key: torch.randint(0, 2**31 - 1, shape, dtype=torch.int32) for key, shape in words.items()}
        return {**made, "scales": torch.rand(inputs // 32, outputs).half()}

    assert opened(codes(inputs), group_size=32).get_submodule(name).quant.bits == 4
    with pytest.raises(CheckpointError, match=f"lacks '{name}.qzeros'"):
        opened({key: value for key, value in codes(inputs).items() if key != "qzeros"}, group_size=32)
    with pytest.raises(CheckpointError, match="does not hold codes of 4 bits in groups of 64"):
        opened(codes(inputs), group_size=64)
    with pytest.raises(CheckpointError, match="maps 32 → 128, the model wants 64 → 128"):
        opened(codes(32), group_size=32)
    with pytest.raises(CheckpointError, match="group_size is 'all', not a whole number"):
        opened(codes(inputs), group_size="all")
