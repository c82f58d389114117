"""What it costs to train each tensor of a transformer, and which ones to train for a share of the FLOPs.

GreenTrainer (Huang et al. 2024) orders the tensors from the output to the input. Training one means passing the
gradient through everything above it (dy) and computing its own gradient (dw), so the best choice within a budget is a
knapsack over prefixes of that order. Costs count the multiplications and additions of matrix products, as torch's
FlopCounterMode does on eager attention; norms, biases and table look-ups are free. They follow from the shapes here;
`core.sparse.green_counted` takes them from a count of the model as it runs.

A head that is tied to the table of embeddings is one tensor at both ends. In its head's role alone, under the head's
name, it is the cheapest matrix to train; under the table's name it trains in both roles, which takes the gradient
through the whole model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from core.errors import BudgetError, ConfigError, UnsupportedError, nearest
from core.models.linear import features
from core.models.topology import BlockRef, ModelTopology
from core.statistics.allocate import Chosen, Stage, prefix_knapsack


@dataclass
class Place:
    """Tensors that one dy feeds.

    Args:
        dy: FLOPs to pass the gradient on. dw: FLOPs of each tensor's own gradient.
        above: at projections of attention, tensor → the products of the attention's backward pass that it needs; for
            the other tensors and for what lies deeper, all of them are made.
        parts: names of the modules whose backward pass passes the gradient on.
    """

    dy: float
    dw: dict[str, float] = field(default_factory=dict)
    above: dict[str, dict[str, float]] = field(default_factory=dict)
    parts: tuple[str, ...] = ()


@dataclass
class Costs:
    """A model's step on a batch of a given shape.

    Args:
        forward: FLOPs of the forward pass; with recomputed activations of two.
        places: from the output to the input.
        full: FLOPs of a step that trains everything; by default everything in `places`.
        tied: names of a tied tensor in its head's role and in both of its roles; one of the two is chosen at most.
    """

    forward: float
    places: list[Place]
    full: float = 0.0
    tied: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        self.full = self.full or self.forward + self.backward(self.names())

    def names(self) -> set[str]:
        """Every tensor that may be chosen."""
        return {name for place in self.places for name in place.dw}

    def within(self, names: set[str]) -> Costs:
        """The same step when only these tensors may be chosen; shares stay those of full training."""
        kept = [replace(p, dw={name: cost for name, cost in p.dw.items() if name in names}) for p in self.places]
        return replace(self, places=kept)

    def backward(self, chosen: set[str]) -> float:
        """FLOPs of the backward pass when these tensors train."""
        if self.tied and self.tied[1] in chosen:
            chosen = chosen - {self.tied[0]}
        deepest = max((depth for depth, place in enumerate(self.places) if chosen & set(place.dw)), default=-1)
        passed = sum(place.dy for place in self.places[: max(deepest, 0)])
        last = chosen & set(self.places[deepest].dw)
        if deepest > 0 and last and last <= set(self.places[deepest].above):
            needed = {key: cost for name in last for key, cost in self.places[deepest].above[name].items()}
            passed += sum(needed.values()) - self.places[deepest - 1].dy
        return passed + sum(cost for place in self.places for name, cost in place.dw.items() if name in chosen)

    def share(self, chosen: set[str]) -> float:
        """FLOPs of a step over those of a step that trains everything."""
        return (self.forward + self.backward(chosen)) / self.full

    def budget(self, rho: float) -> float:
        """FLOPs of a backward pass for a step that costs `rho` of a full one.

        Raises:
            BudgetError: the forward pass alone costs more, with the smallest rho that can be had.
        """
        passed, cheapest = 0.0, float("inf")
        for place in self.places:
            cheapest = min([cheapest, *(passed + cost for cost in place.dw.values())])
            passed += place.dy
        least = (self.forward + cheapest) / self.full
        if rho < least:
            raise BudgetError(
                f"a step at rho {rho} of full training", where="green.rho", best_achievable=round(least, 4),
                hint=f"the forward pass and the cheapest tensor cost {least:.3f}",
            )  # fmt: skip
        return rho * self.full - self.forward

    def reachable(self, rho: float) -> set[str]:
        """Tensors that fit the budget alone."""
        budget, passed, names = self.budget(rho), 0.0, set()
        for place in self.places:
            names |= {name for name, cost in place.dw.items() if passed + cost <= budget}
            passed += place.dy
        return names

    def select(self, importance: dict[str, float], rho: float, units: int = 1000) -> set[str]:
        """The tensors of greatest summed importance within the budget; absent ones count as worthless."""
        if self.tied and (reachable := self.reachable(rho)) >= set(self.tied):
            ways = [self.within(reachable - {name}).select(importance, rho, units) for name in self.tied]
            return max(ways, key=lambda names: sum(importance.get(name, 0.0) for name in names))
        stages = [Stage(p.dy, list(p.dw.values()), [importance.get(n, 0.0) for n in p.dw]) for p in self.places]
        found: Chosen = prefix_knapsack(stages, self.budget(rho), units)
        names = [list(place.dw) for place in self.places]
        return {names[s][i] for s, i in found.items}


def in_scope(model: Any, scope: str | list[str]) -> set[str]:
    """Names of the tensors that may be chosen: "all", "blocks", or what the patterns match.

    A pattern is one or more whole parts of a name, such as "mlp", "q_proj" or "layers.1?.self_attn"; `*`, `?` and
    `[…]` are wildcards.

    Raises:
        ConfigError: a pattern that matches nothing, with the closest module.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if scope == "all":
        return set(names)
    if scope == "blocks":
        inside = {id(p) for ref in ModelTopology.of(model).blocks for p in ref.module.parameters()}
        return {name for name, p in model.named_parameters() if id(p) in inside}
    found: set[str] = set()
    for pattern in [scope] if isinstance(scope, str) else scope:
        matched = {name for name in names if fnmatchcase(f".{name}.", f"*.{pattern}.*")}
        if not matched:
            modules = [name for name, _ in model.named_modules() if name]
            known = dict.fromkeys(name.rpartition(".")[2] for name in modules if not name.rpartition(".")[2].isdigit())
            close = nearest(pattern, modules if "." in pattern else [*known, "blocks", "all"])
            raise ConfigError(
                f"no tensor matches '{pattern}'", where="green.scope",
                hint=" ".join(filter(None, [close, f"all, blocks, or parts of names: {', '.join(known)}"])),
            )  # fmt: skip
        found |= matched
    return found


def tensor_flops(model: Any, rows: int, length: int, recomputed: bool = False) -> Costs:
    """Costs of a step on a batch (rows, length).

    Args:
        recomputed: activations are computed again in the backward pass.

    Raises:
        UnsupportedModelError: an unknown family.
        UnsupportedError: blocks whose two halves read the same input, or that are edited.
    """
    topology = ModelTopology.of(model)
    strange = [ref for ref in topology.blocks if ref.residual in ("parallel", "sandwich") or ref.branch]
    if strange:
        raise UnsupportedError(
            "the tensors of parallel, sandwiched or compound blocks have no single order",
            where=topology.name_of(strange[0].module),
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    placed: set[str] = set()

    def owned(*modules: Any) -> list[str]:
        found = [names[id(p)] for m in modules if m is not None for p in m.parameters() if id(p) in names]
        fresh = [name for name in dict.fromkeys(found) if name not in placed]
        placed.update(fresh)
        return fresh

    tokens = rows * length
    if topology.head_tied:
        placed.add(names[id(topology.embed.weight)])
    places, forward, tied = [], 0.0, None
    if topology.head is not None:
        inside, outside = features(topology.head)
        forward += 2 * tokens * inside * outside
        places.append(_linear_place([topology.head], owned, topology.name_of, tokens))
    if topology.head_tied:
        tied = f"{topology.name_of(topology.head)}.weight", names[id(topology.embed.weight)]
        places[0].dw[tied[0]] = places[0].dy
    places.append(Place(0.0, dict.fromkeys(owned(topology.final_norm), 0.0)))
    for ref in reversed(topology.blocks):
        added, cost = _block_places(ref, owned, topology.name_of, rows, length)
        places += added
        forward += cost
    last = Place(0.0)
    if tied:
        last.dw[tied[1]] = places[0].dy
    last.dw |= dict.fromkeys((name for name in names.values() if name not in placed and name not in last.dw), 0.0)
    return Costs(forward * (2 if recomputed else 1), [*places, last], tied=tied)


def _block_places(ref: BlockRef, owned: Any, name_of: Any, rows: int, length: int) -> tuple[list[Place], float]:
    """A block's places from its output to its input, and the FLOPs of its forward pass."""
    tokens = rows * length
    ups = [part for part in (ref.gate, ref.up) if part is not None]
    product = 2 * rows * ref.n_heads * length * length
    core = product * (ref.head_dim_qk + ref.head_dim_vo)
    after_attention, after_mlp = ref.norms[0], ref.norms[-1]
    before = ref.residual == "pre_ln"
    places = [] if before else [Place(0.0, dict.fromkeys(owned(after_mlp), 0.0))]
    places += [_linear_place([ref.down], owned, name_of, tokens), _linear_place(ups, owned, name_of, tokens)]
    places.append(Place(0.0, dict.fromkeys(owned(after_mlp if before else after_attention), 0.0)))
    places += [
        _linear_place([ref.o], owned, name_of, tokens),
        Place(2.0 * core, parts=(name_of(ref.attn),)),
        Place(0.0),
    ]
    scores, values = product * ref.head_dim_qk, product * ref.head_dim_vo
    needs: dict[str, dict[str, float]] = {
        "q": {"weights": values, "q": scores},
        "k": {"weights": values, "k": scores},
        "v": {"v": values},
    }
    for role in ("q", "k", "v", "qkv"):
        if (part := getattr(ref, role)) is not None:
            found = _linear_place([part], owned, name_of, tokens)
            places[-1].dy += found.dy
            places[-1].parts += found.parts
            places[-1].dw |= found.dw
            places[-1].above |= dict.fromkeys(found.dw, needs[role]) if role in needs else {}
    places[-1].dw |= dict.fromkeys(owned(ref.attn), 0.0)
    places.append(Place(0.0, dict.fromkeys(owned(ref.module), 0.0)))
    linears = sum(2 * tokens * inside * outside for inside, outside in map(features, ref.linears().values()))
    return places, linears + core


def _linear_place(maps: list[Any], owned: Any, name_of: Any, tokens: int) -> Place:
    place = Place(0.0, parts=tuple(map(name_of, maps)))
    for part in maps:
        inside, outside = features(part)
        place.dy += 2 * tokens * inside * outside
        for name in owned(part):
            place.dw[name] = 2 * tokens * inside * outside if name.endswith("weight") else 0.0
    return place
