"""The tiny models that the statements are about."""

from __future__ import annotations

from typing import Any

LENGTH = 12


def llama(layers: int = 4, **more: Any) -> Any:
    """A random Llama whose blocks matter."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = {
        "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64, **more,
    }  # fmt: skip
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    return model


def ids() -> Any:
    import torch

    return torch.stack([torch.arange(3, 3 + LENGTH), torch.arange(3 + LENGTH, 3, -1)])


def logits(model: Any) -> Any:
    """(2, LENGTH, V) of a whole forward pass without cache."""
    import torch

    with torch.no_grad():
        return model(input_ids=ids(), use_cache=False).logits


def decoded(model: Any) -> Any:
    """The same logits, token by token through the key-value cache."""
    import torch
    from transformers import DynamicCache

    cache, found = DynamicCache(config=model.config), []
    with torch.no_grad():
        for position in range(LENGTH):
            one = ids()[:, position : position + 1]
            found.append(model(input_ids=one, past_key_values=cache, use_cache=True).logits)
    return torch.cat(found, 1)


def shake(model: Any, scale: float = 0.05) -> Any:
    """Other values everywhere, so that no difference can hide behind an identity."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            values = scale * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values if not torch.isfinite(parameter).all() else parameter + values)
    return model.eval()


def far(first: Any, second: Any) -> float:
    """The largest absolute difference."""
    return float((first - second).abs().max())
