"""Codes of other tools: AWQ, GPTQ and bitsandbytes in, compressed-tensors out.

Reading converts to our own layers, whose decoded matrix is that of the checkpoint, so a model of any of these tools
trains and serves as ours do, without the tool. Writing gives the packed integer format that vLLM and transformers
read, for presets that it can express.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from core.config.files import read_json
from core.errors import CheckpointError, ConfigError, UnsupportedError
from core.models.linear import features
from core.quantization.linear import QuantizedLinear
from core.quantization.solvers.encoded import Encoded
from core.quantization.spec import QuantSpec

# Where AWQ's GEMM layout puts eight neighbours in a word: nibble i holds column ORDER[i].
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def load_foreign(folder: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model of an AWQ (GEMM layout) or GPTQ folder with our layers in place of its own.

    Raises:
        CheckpointError: the folder is of neither. UnsupportedError: a width or layout that is not read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from core.quantization.hf import mark

    folder = Path(folder)
    raw = read_json(folder / "config.json")
    settings = raw.get("quantization_config") or {}
    method = settings.get("quant_method")
    if method not in ("awq", "gptq"):
        raise CheckpointError(
            f"quantization method '{method}' is not read", where=str(folder / "config.json"), hint="awq and gptq are"
        )
    if method == "awq" and settings.get("version", "gemm").lower() != "gemm":
        raise UnsupportedError(f"AWQ layout '{settings['version']}'", where=str(folder), hint="the GEMM layout is read")
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    tensors = _tensors(folder)
    bits, group = (_whole(settings, key, default, folder) for key, default in (("bits", 4), ("group_size", 128)))
    reader = {"awq": from_awq, "gptq": from_gptq}[method]
    for name in sorted(key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight")):
        parts = {key: tensors.pop(f"{name}.{key}") for key in _PARTS if f"{name}.{key}" in tensors}
        if lost := [key for key in ("qzeros", "scales") if key not in parts]:
            raise CheckpointError(
                f"the folder lacks '{name}.{lost[0]}'", where=str(folder), hint="copy all its weights"
            )
        try:
            made = reader(parts, bits, group, settings.get("checkpoint_format") == "gptq_v2")
        except (RuntimeError, ConfigError) as error:
            raise CheckpointError(
                f"'{name}' does not hold codes of {bits} bits in groups of {group}: {str(error).splitlines()[0]}",
                where=str(folder), hint="look at quantization_config in config.json",
            ) from error  # fmt: skip
        if features(made) != (wanted := features(model.get_submodule(name))):
            raise CheckpointError(
                f"'{name}' maps {made.in_features} → {made.out_features}, the model wants {wanted[0]} → {wanted[1]}",
                where=str(folder),
            )
        model.set_submodule(name, made)
    missing, unknown = model.load_state_dict(tensors, strict=False)
    lost = [key for key in missing if not _ours(model, key) and "lm_head" not in key]
    if lost or unknown:
        raise CheckpointError(f"the weights do not fit the model, first {[*lost, *unknown][0]}", where=str(folder))
    model.tie_weights()
    quant = next(part.quant for part in model.modules() if isinstance(part, QuantizedLinear))
    mark(model, quant)
    return model.eval()


def _whole(settings: dict[str, Any], key: str, default: int, folder: Path) -> int:
    value = settings.get(key, default)
    if not isinstance(value, int):
        raise CheckpointError(f"{key} is {value!r}, not a whole number", where=str(folder / "config.json"))
    return value


_PARTS = ("qweight", "qzeros", "scales", "g_idx", "bias")


def _ours(model: Any, key: str) -> bool:
    return isinstance(model.get_submodule(key.rpartition(".")[0]), QuantizedLinear)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError("the folder has no safetensors", where=str(folder), hint="copy the weights too")
    return {key: value for file in files for key, value in load_file(file).items()}


def from_awq(parts: dict[str, torch.Tensor], bits: int, group: int, _: bool = False) -> QuantizedLinear:
    """A layer of AWQ's GEMM layout: qweight int32 (K, N/8), qzeros (K/group, N/8), scales fp16 (K/group, N)."""
    if bits != 4:
        raise UnsupportedError(f"AWQ's GEMM layout has 4 bits, not {bits}")
    codes, zero = _awq_words(parts["qweight"]).t(), _awq_words(parts["qzeros"]).t()
    return _layer("awq", 4, group, codes, zero, parts["scales"].t(), parts.get("bias"))


def _awq_words(words: torch.Tensor) -> torch.Tensor:
    nibbles = (words[..., None] >> (4 * torch.arange(8))) & 15
    columns = torch.empty_like(nibbles)
    columns[..., list(AWQ_ORDER)] = nibbles
    return columns.flatten(1).to(torch.uint8)


def from_gptq(parts: dict[str, torch.Tensor], bits: int, group: int, second: bool = False) -> QuantizedLinear:
    """A layer of GPTQ's layout: qweight int32 (K·b/32, N), qzeros (K/group, N·b/32), scales (K/group, N), g_idx (K,).

    Zeros are stored less one, but for the second format. Inputs in another order than their groups are reordered.
    """
    if bits not in (2, 4, 8):
        raise UnsupportedError(f"GPTQ's layout is read for 2, 4 and 8 bits, not {bits}")
    shifts = bits * torch.arange(32 // bits)
    mask = 2**bits - 1
    words = parts["qweight"].t()[..., None]
    codes = ((words >> shifts) & mask).flatten(1).to(torch.uint8)
    zero = ((parts["qzeros"][..., None] >> shifts) & mask).flatten(1).t()
    zero = (zero + (0 if second else 1)).clamp(0, mask).to(torch.uint8)
    order = None
    index = parts.get("g_idx")
    if index is not None and bool((index.diff() < 0).any()):
        order = torch.argsort(index, stable=True)
        codes = codes[:, order]
    return _layer("gptq", bits, group, codes, zero, parts["scales"].t(), parts.get("bias"), order)


def _layer(
    preset: str,
    bits: int,
    group: int,
    codes: torch.Tensor,
    zero: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    order: torch.Tensor | None = None,
) -> QuantizedLinear:
    width = 0 if group == -1 or group == codes.shape[1] else group
    spec = QuantSpec(preset, bits=bits, group=width, strict_group=width > 0)
    encoded = Encoded(codes.contiguous(), {"scale": scale.to(torch.float16).contiguous(), "zero": zero.contiguous()})
    return QuantizedLinear.from_encoded(encoded, spec, bias, perm=order)


def from_bitsandbytes(model: Any) -> Any:
    """`model` with our layers in place of bitsandbytes', in place, of the same codes and scales.

    Raises:
        UnsupportedError: fp4, or blocks of another size than 64.
    """
    from core.quantization.hf import mark

    spec = None
    for name, part in list(model.named_modules()):
        kind = type(part).__name__
        if kind in ("Linear4bit", "Linear8bitLt"):
            made = _from_nf4(part) if kind == "Linear4bit" else _from_int8(part)
            spec = made.quant
            model.set_submodule(name, made)
    if spec is not None:
        mark(model, spec)
    return model


def _from_nf4(part: Any) -> QuantizedLinear:
    from dataclasses import replace

    from core.quantization.spec import parse

    state = part.weight.quant_state
    if state.quant_type != "nf4" or state.blocksize != 64:
        raise UnsupportedError(f"{state.quant_type} in blocks of {state.blocksize}", hint="nf4 in blocks of 64 is read")
    rows, inputs = state.shape
    packed = part.weight.data.view(torch.uint8).flatten()
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten().view(rows, inputs)
    if state.nested:
        params = {
            "scale": state.absmax.view(rows, -1),
            "scale2": state.state2.absmax.float(),
            "scale_offset": state.offset.float().view(1),
        }
        spec = parse("nf4")
    else:
        params, spec = {"scale": state.absmax.float().view(rows, -1)}, replace(parse("nf4"), scale="fp32")
    return QuantizedLinear.from_encoded(Encoded(codes, params), spec, part.bias)


def _from_int8(part: Any) -> QuantizedLinear:
    from core.quantization.spec import parse

    weight = part.weight
    ready = weight.data.dtype == torch.int8 and getattr(weight, "SCB", None) is not None
    codes, peak = (weight.data, weight.SCB) if ready else (part.state.CB, part.state.SCB)
    encoded = Encoded((codes.int() + 128).to(torch.uint8), {"scale": (peak.float() / 127).view(-1, 1)})
    return QuantizedLinear.from_encoded(encoded, parse("llm_int8"), part.bias)


def export_compressed_tensors(model: Any, folder: str | Path, *, zero_points: bool = False) -> None:
    """Write `model` in the packed integer format of compressed-tensors, which vLLM and transformers read.

    Args:
        zero_points: write asymmetric weights too, their zero points packed as the format says. vLLM reads them;
            compressed-tensors up to 0.20 makes room for unpacked ones when transformers opens a folder, and stops.

    Raises:
        UnsupportedError: a layer that the format cannot express: codebooks, values beside the matrix, an input scale or
            order of its own, rounded activations; or asymmetric weights that were not asked for.
    """
    layers = {name: part for name, part in model.named_modules() if isinstance(part, QuantizedLinear)}
    if not layers:
        raise UnsupportedError("the model holds no quantized layer", hint="quantize it first")
    for name, part in layers.items():
        if reason := _inexpressible(part):
            raise UnsupportedError(f"{reason} cannot be written as compressed-tensors", where=name)
        if part.quant.has_zero and not zero_points:
            raise UnsupportedError(
                "transformers cannot open asymmetric weights of this format", where=name,
                hint="quantize with 'sym', or write zero_points=True for vLLM",
            )  # fmt: skip
    groups: dict[str, dict[str, Any]] = {}
    state = dict(model.state_dict())
    for name, part in layers.items():
        for key in [key for key in state if key.startswith(f"{name}.") and key != f"{name}.bias"]:
            del state[key]
        bits = part.quant.bits
        state[f"{name}.weight_packed"] = _words(part.codes(), bits)
        state[f"{name}.weight_scale"] = part.scale
        state[f"{name}.weight_shape"] = torch.tensor([part.out_features, part.in_features])
        if part.quant.has_zero:
            state[f"{name}.weight_zero_point"] = _words(part.zero.t(), bits).t().contiguous()
        key = json.dumps([bits, part.quant.symmetric, part.quant.group])
        groups.setdefault(key, {"targets": [], "weights": _arguments(part.quant)})["targets"].append(name)
    if len(groups) == 1:
        next(iter(groups.values()))["targets"] = ["Linear"]
    dense = [n for n, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    folder = Path(folder)
    config = model.config.to_dict() | {"quantization_config": _config(groups, dense)}
    _write(model, state, config, folder)


def _config(groups: dict[str, dict[str, Any]], ignored: list[str]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups.values())},
        "ignore": ignored,
    }


def _arguments(spec: QuantSpec) -> dict[str, Any]:
    strategy = {"strategy": "group", "group_size": spec.group} if spec.group > 0 else {"strategy": "channel"}
    return {"num_bits": spec.bits, "type": "int", "symmetric": spec.symmetric, **strategy}


def _inexpressible(part: QuantizedLinear) -> str | None:
    spec = part.quant
    if spec.grid != "int" or spec.scale not in ("fp16", "bf16", "fp32") or spec.group == -1:
        return f"{spec.preset}'s {spec.grid} grid with {spec.scale} scales"
    if spec.act != "none":
        return "rounded activations"
    if part.extra:
        return ", ".join(sorted(part.extra))
    return None


def _words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes (R, C) packed along C without gaps, low bits first: int32 (R, ceil(C · bits / 32))."""
    rows, columns = codes.shape
    bit = (codes[..., None] >> torch.arange(bits, dtype=torch.uint8, device=codes.device)) & 1
    stream = torch.nn.functional.pad(bit.flatten(1), (0, -columns * bits % 32)).unflatten(1, (-1, 32)).to(torch.int64)
    words = (stream << torch.arange(32, device=codes.device)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _write(model: Any, state: dict[str, torch.Tensor], config: dict[str, Any], folder: Path) -> None:
    from safetensors.torch import save_file

    from core.config.files import write_json

    if getattr(model.config, "tie_word_embeddings", False):
        state = {key: value for key, value in state.items() if key != "lm_head.weight"}
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
