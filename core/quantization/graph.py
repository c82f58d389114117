"""Which linear maps read one tensor, and who made it: where a scale of inputs can be hidden.

Dividing a tensor by s and multiplying the columns of all its readers by s leaves the function unchanged. A norm's gain,
the rows of v, or the rows of up in a gated feed-forward part can absorb the division; where nobody can (a norm that
also feeds the residual, an activation that is not homogeneous) the reader keeps an explicit input scale. Grouped-query
attention shares one scale among the heads that read the same v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from core.models.linear import dense_weight, features
from core.models.topology import BlockRef

Role = Literal["attention", "output", "feed_forward", "down"]


@dataclass
class Readers:
    """Linear maps that read one tensor.

    Args:
        names: of the maps, full, in the order of `maps`. inspected: the module whose output a search looks at, None for
            the maps themselves. producer: the norm or linear map that can absorb a division, None when nobody can.
        slice_: rows of the producer that make this tensor, for fused projections. repeats: readers' inputs for one
            producer row (grouped-query attention), with `head` inputs in a row of them.
    """

    role: Role
    names: list[str]
    maps: list[Any]
    inspected: Any = None
    producer: Any = None
    slice_: slice | None = None
    repeats: int = 1
    head: int = 1

    @property
    def inputs(self) -> int:
        return features(self.maps[0])[0]

    def shareable(self, scale: torch.Tensor) -> torch.Tensor:
        """The nearest scale (K,) that the producer can absorb: heads that share a v take the largest of theirs."""
        if self.repeats == 1 or self.producer is None:
            return scale
        grouped = scale.view(-1, self.repeats, self.head)
        return grouped.amax(1, keepdim=True).expand_as(grouped).reshape(-1)

    def fold(self, scale: torch.Tensor) -> torch.Tensor | None:
        """Divide the tensor by scale (K,) and multiply its readers' columns, in place.

        Returns:
            what the readers must multiply their inputs with, None where the producer absorbed it.
        """
        scale = scale.float()
        if self.producer is None:
            return 1.0 / scale
        if is_norm(self.producer):
            scale = _divide_norm(self.producer, scale)
        else:
            own = scale if self.repeats == 1 else scale.view(-1, self.repeats, self.head)[:, 0].reshape(-1)
            _divide(self.producer, own, self.slice_)
        for part in self.maps:
            weight = dense_weight(part)
            weight.copy_(weight.float() * scale.to(weight.device))
        return None


def _divide(producer: Any, scale: torch.Tensor, rows: slice | None) -> None:
    weight = dense_weight(producer)
    part = weight if rows is None else weight[rows]
    part.copy_(part.float() / scale[:, None])
    bias = getattr(producer, "bias", None)
    if bias is not None:
        part = bias if rows is None else bias[rows]
        part.copy_(part.float() / scale)


def _divide_norm(norm: Any, scale: torch.Tensor) -> torch.Tensor:
    """Divide a norm's output. Returns the scale by which it is divided, which is near the one asked for.

    Gains that came in 16 bits leave in bf16, so that the model can still be stored in 16 bits: the scale moves by up to
    0.4 %, and further for Gemma's small gains, which are stored less 1.
    """
    offset = gain_offset(norm)
    weight = norm.weight.float()
    divided = (weight + offset) / scale - offset
    if any(torch.equal(weight.to(kind).float(), weight) for kind in (torch.bfloat16, torch.float16)):
        short = divided.bfloat16().float()
        kept = short + offset != 0
        divided = torch.where(kept, short, divided)
        scale = torch.where(kept, (weight + offset) / (divided + offset), scale)
    norm.weight.copy_(divided)
    if getattr(norm, "bias", None) is not None:
        norm.bias.copy_(norm.bias.float() / scale)
    return scale


def gain_offset(norm: Any) -> float:
    """What a norm adds to its weight before it multiplies: 1 in Gemma's."""
    return 1.0 if type(norm).__name__.startswith("Gemma") else 0.0


def is_norm(module: Any) -> bool:
    """Whether the module normalises and has a gain for each channel."""
    weight = getattr(module, "weight", None)
    return weight is not None and weight.dim() == 1


def readers_of(ref: BlockRef, name_of: dict[int, str]) -> list[Readers]:
    """The groups of one block, in the order in which they run. `name_of`: id of a linear map → its full name."""
    groups: list[Readers] = []
    before: tuple[Any, ...] = (None, None)  # the norms whose output attention and the feed-forward part read
    if ref.residual == "sandwich":
        before = ref.norms[0], ref.norms[2]
    elif ref.residual in ("pre_ln", "parallel") and len(ref.norms) >= 2:
        before = ref.norms[:2]
    first, second = (norm if norm is not None and is_norm(norm) else None for norm in before)

    def add(role: Role, maps: list[Any], inspected: Any, producer: Any, **how: Any) -> None:
        maps = [part for part in maps if part is not None and id(part) in name_of]
        if maps:
            groups.append(Readers(role, [name_of[id(m)] for m in maps], maps, inspected, producer, **how))

    attention = [ref.qkv] if ref.qkv is not None else [ref.q, ref.k, ref.v]
    add("attention", attention, ref.attn, first)
    add("output", [ref.o], None, *_value_producer(ref)[:1], **_value_producer(ref)[1])
    feed_forward = [part for part in (ref.gate, ref.up) if part is not None]
    add("feed_forward", feed_forward, ref.mlp, second)
    homogeneous = ref.gate is not None or type(ref.act).__name__ in ("ReLU", "ReLUActivation")
    add("down", [ref.down], None, ref.up if homogeneous else None)
    return groups


def _value_producer(ref: BlockRef) -> tuple[Any, dict[str, Any]]:
    """What makes the input of o, and how its rows lie."""
    size, inputs = ref.head_dim_vo, features(ref.o)[0]
    if ref.v is not None:
        rows = features(ref.v)[1]
        if rows and inputs % rows == 0:
            return ref.v, {"repeats": inputs // rows, "head": size}
        return None, {}
    if ref.qkv is not None and ref.qkv_layout == "concat" and features(ref.qkv)[1] == 3 * inputs:
        return ref.qkv, {"slice_": slice(2 * inputs, 3 * inputs)}
    return None, {}
