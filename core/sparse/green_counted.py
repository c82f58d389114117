"""What training each tensor costs by torch's own count of the model as it runs.

Costs from shapes assume eager attention; kernels that recompute their scores in the backward pass, or whose work the
counter does not know, cost something else. Two passes on a batch tell: with every tensor frozen and the gradient taken
at the embeddings, the backward pass does nothing but pass it on (dy); with every tensor free it also makes their own
gradients (dw). Each node of autograd's graph belongs to the module whose forward pass made it, so that the difference
can be taken module by module.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from core.models.topology import ModelTopology
from core.sparse.flops import flop_counter
from core.sparse.green import Costs, Place

logger = logging.getLogger(__name__)


def counted_costs(model: Any, planned: Costs, loss: Callable[[], torch.Tensor], recomputed: bool = False) -> Costs:
    """`planned` with the FLOPs that torch counts; all of it stays as it is where modules run fused into one.

    Weights are not changed and no gradient is left; gradients are dropped as they come, so that memory stays that of
    activations.

    Args:
        loss: () → the loss of a batch of the planned shape.
        recomputed: as for `tensor_flops`.
    """
    topology = ModelTopology.of(model)
    head = topology.name_of(topology.head) if topology.head is not None else ""
    with _untouched(model):
        forward, passed = _counted(model, topology, head, loss, free=False)
        with_weights, whole = _counted(model, topology, head, loss, free=True)
    # a loss fused with the head makes the head's gradient on its way forward
    whole[head] += with_weights - forward
    maps = {part for place in planned.places for part in place.parts}
    if silent := sorted(maps - set(passed) - {head}):
        logger.warning("FLOPs are planned from shapes: '%s' does not run as a module of its own", silent[0])
        return planned
    tied = {name: head for name, p in model.named_parameters() if topology.head_tied and p is topology.embed.weight}
    own = {
        name: whole[owner] - passed[owner]
        for place in planned.places
        for name, cost in place.dw.items()
        if cost and (owner := tied.get(name, name.rpartition(".")[0]))
    }
    places, eager = [], True
    for place in planned.places:
        dy = float(sum(passed[part] for part in place.parts))
        if place.parts and not place.dw and place.dy:
            # one fused kernel makes every product of attention's backward pass, whichever of q, k and v asks
            eager = abs(dy - place.dy) <= 0.01 * place.dy
        dw = {name: float(own.get(name, 0.0)) for name in place.dw}
        places.append(Place(dy, dw, place.above if eager else {}, place.parts))
    return replace(planned, forward=float(forward * (2 if recomputed else 1)), places=places, full=0.0)


def _counted(
    model: Any, topology: ModelTopology, head: str, loss: Callable[[], torch.Tensor], free: bool
) -> tuple[int, Counter[str]]:
    """FLOPs of the forward pass, and of the backward pass by module; what the loss itself does is the head's."""
    model.requires_grad_(free)
    counter = flop_counter()
    owners = _Owners(counter)
    handles = [
        handle
        for name, module in model.named_modules()
        for handle in (
            module.register_forward_pre_hook(owners.enter(name), with_kwargs=True),
            module.register_forward_hook(owners.leave),
        )
    ]
    handles.append(topology.embeddings.register_forward_hook(lambda module, given, made: made.requires_grad_()))
    handles += [p.register_post_accumulate_grad_hook(_dropped) for p in model.parameters() if free]
    try:
        with counter:
            value = loss()
            forward = counter.get_total_flops()
            owners.claim(value, head)
            value.backward()
    finally:
        for handle in handles:
            handle.remove()
    if head:
        owners.flops[head] += owners.flops.pop("", 0)
    return forward, owners.flops


class _Owners:
    """Whose the nodes of autograd's graph are, and what each owner's nodes cost when they run.

    Attributes:
        flops: module → FLOPs of its nodes, those of modules within it left out; 0 for one that ran and cost nothing.
    """

    def __init__(self, counter: Any) -> None:
        self.counter, self.inside, self.seen = counter, [""], set[Any]()
        self.flops: Counter[str] = Counter()

    def enter(self, name: str) -> Any:
        def hook(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            # what was computed since the last module was left is the work of the one around this
            self.claim([*given, *named.values()], self.inside[-1])
            self.inside.append(name)
            self.flops[name] += 0

        return hook

    def leave(self, module: Any, given: Any, made: Any) -> None:
        self.claim(made, self.inside.pop())

    def claim(self, values: Any, owner: str) -> None:
        """Everything below these tensors that has no owner yet is `owner`'s."""
        waiting = [tensor.grad_fn for tensor in _tensors(values)]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in self.seen:
                self.seen.add(node)
                self._watch(node, owner)
                waiting += [below for below, _ in node.next_functions]

    def _watch(self, node: Any, owner: str) -> None:
        before = 0

        def start(*_: Any) -> None:
            nonlocal before
            before = self.counter.get_total_flops()

        def end(*_: Any) -> None:
            self.flops[owner] += self.counter.get_total_flops() - before

        node.register_prehook(start)
        node.register_hook(end)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _dropped(parameter: torch.Tensor) -> None:
    parameter.grad = None


@contextmanager
def _untouched(model: Any) -> Iterator[None]:
    """Counts without dropout and recomputation; then everything is as before: mode, what trains, and gradients."""
    learning = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    for p, _, _ in learning:
        p.grad = None
    try:
        yield
    finally:
        for p, requires, gradient in learning:
            p.requires_grad_(requires)
            p.grad = gradient
        for part, training in modes:
            part.training = training
