"""An adapter as other runtimes read it: plain LoRA whose scale is alpha / r, with nothing that only we know.

Runtimes differ in what they read from an adapter's config: some ignore rank-stabilised scaling or ranks of single
layers, and multiply by alpha / r. So the scale is folded into B and the config says alpha = r, for which every reading
gives the same product. The exported adapter is loaded again through peft and its logits are compared.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from core.config.files import read_json, write_json
from core.errors import MergeError, UnsupportedError

PLAIN = {"use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}


def export_adapter(source: str | Path, out: str | Path) -> dict[str, float]:
    """Write the LoRA adapter at `source` (run or adapter folder) to `out` with its scale folded into B.

    Returns:
        largest and mean absolute difference of the logits between the adapter and its export, through peft.

    Raises:
        MergeError: there is no adapter. UnsupportedError: one that other runtimes cannot read; merge it instead.
    """
    from safetensors.torch import load_file, save_file

    from core.inference.load import load_for_serving
    from core.models.load import resolve_path
    from core.training.merge import logits_of, probe_ids

    folder = Path(resolve_path(str(source)))
    if not (folder / "adapter_config.json").is_file():
        raise MergeError("there is no adapter here; a full model is read by other runtimes as it is", where=str(folder))
    config = read_json(folder / "adapter_config.json")
    _refuse(config, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    folded, config = fold(weights, config)
    out = Path(out)
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(folder, temporary)
    save_file(folded, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(temporary / "adapter_config.json", config)
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
    first, tokenizer, _ = load_for_serving(str(folder), device="cpu", dtype="fp32")
    second, _, _ = load_for_serving(str(out), device="cpu", dtype="fp32")
    probe = probe_ids(len(tokenizer))
    difference = (logits_of(first, probe) - logits_of(second, probe)).abs()
    drift = {"max": float(difference.max()), "mean": float(difference.mean())}
    write_json(out / "export.json", {"scale": "folded into B; alpha = r", "drift": drift})
    return drift


def fold(weights: dict[str, Any], config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """LoRA factors and config with B multiplied by the scale, all factors padded to one rank, and alpha = r.

    Args:
        weights: `….lora_A.weight` (r, in) and `….lora_B.weight` (out, r). config: as adapter_config.json.
    """
    import torch

    ranks = [value.shape[0] for name, value in weights.items() if name.endswith("lora_A.weight")]
    rank = max(ranks, default=config["r"])
    folded = {}
    for name, value in weights.items():
        if name.endswith("lora_B.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
            scaled = (value.double() * scale_of(config, module, value.shape[1])).to(value.dtype)
            folded[name] = torch.nn.functional.pad(scaled, (0, rank - value.shape[1])).contiguous()
        elif name.endswith("lora_A.weight"):
            folded[name] = torch.nn.functional.pad(value, (0, 0, 0, rank - value.shape[0])).contiguous()
        else:
            folded[name] = value
    return folded, {**config, **PLAIN, "r": rank, "lora_alpha": rank}


def scale_of(config: dict[str, Any], module: str, rank: int) -> float:
    """The factor on BA of one module: alpha / r, or alpha / √r for rank-stabilised LoRA (Kalajdzievski 2023)."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next((a for name, a in patterns.items() if module == name or module.endswith(f".{name}")), None)
    alpha = config["lora_alpha"] if alpha is None else alpha
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _refuse(config: dict[str, Any], folder: Path) -> None:
    reasons = []
    if config.get("peft_type") != "LORA":
        reasons.append(f"the adapter is {config.get('peft_type')}")
    if config.get("use_dora"):
        reasons.append("it is DoRA, whose magnitudes few runtimes read")
    if config.get("modules_to_save"):
        reasons.append(f"whole modules were trained: {', '.join(config['modules_to_save'])}")
    if config.get("trainable_token_indices"):
        reasons.append("single token embeddings were trained")
    if (folder / "stack.json").is_file():
        reasons.append("it is one of a stack of adapters")
    if reasons:
        raise UnsupportedError(
            f"other runtimes cannot read this adapter: {'; '.join(reasons)}",
            where=str(folder),
            hint="merge it into a plain model: graft merge",
        )
