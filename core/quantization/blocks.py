"""The walk of a preset that needs data: a block is transformed, measured, and its maps solved; then the next one.

What a preset asks for is read off its spec: which transforms, which statistics, and whether a block sees what the full
model would give it or what the blocks quantized so far do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch

from core.errors import DataError
from core.models.linear import dense_weight
from core.quantization import transforms
from core.quantization.graph import Readers, readers_of
from core.quantization.quantize import QuantReport, Stats, swap
from core.quantization.spec import QuantSpec
from core.statistics.calibration import BlockCalibration, BlockRun

SEARCH_BATCHES = 8
_STATISTICS = {
    "module output": ("absmean", "sample", "hessian"),
    "model output": ("hessian",),
    "hessian": ("hessian", "absmax", "sample"),
    "absmax": ("absmax", "hessian"),
    "fisher": ("hessian",),
    "block output": ("absmax", "hessian"),
}


def settings(spec: QuantSpec) -> tuple[str, ...]:
    """Names that the preset's search takes as options of `quantize_model`."""
    found: list[str] = []
    if "global_alpha" in spec.transforms:
        found += ["alpha_step", "search_batches"]
    if "scale_search" in spec.transforms:
        found.append("search_batches")
    if "learned" in spec.transforms:
        from core.quantization.solvers.block import Learning

        found += [field.name for field in fields(Learning) if field.name != "seed"]
    return tuple(found)


def quantize_blocks(
    model: Any,
    spec: QuantSpec,
    batches: list[torch.Tensor],
    specs: dict[str, QuantSpec],
    report: QuantReport,
    *,
    seed: int = 0,
    search_batches: int = SEARCH_BATCHES,
    alpha_step: float = transforms.ALPHA_STEP,
    **learning: Any,
) -> None:
    """Quantize the layers in `specs` (name → spec), in place; rows go into `report`.

    Args:
        search_batches: at most so many batches are used where a search runs the model many times.
        alpha_step: of the whole-model exponent. learning: of block reconstruction (`solvers.block.Learning`).

    Raises:
        DataError: a layer outside all blocks, which calibration does not reach.
    """
    fisher = _fisher(model, batches, specs) if spec.objective == "fisher" else {}
    if "rotate" in spec.transforms:
        transforms.rotate(model)
    if "global_alpha" in spec.transforms:
        report.notes["smoothing"] = _smooth_model(model, spec, batches, specs, search_batches, alpha_step)
    streams = {"hessian": "edited", "block output": "both"}.get(spec.objective, "full")
    walk = BlockCalibration(model, batches, streams)
    left = dict(specs)
    for run in walk.blocks():
        here = {name: part for name, part in run.linears().items() if name in specs}
        if not here:
            # a block that trains stays dense
            continue
        name_of = {id(part): name for name, part in here.items()}
        step = _BlockStep(run, here, specs, readers_of(run.ref, name_of), search_batches, learning, seed)
        step.last = len(walk.topology.blocks) - 1
        prepared = step.prepare(spec)
        for name, part in here.items():
            stats, inputs = prepared(name)
            if fisher:
                stats.fisher = fisher.pop(name)
            row = swap(model, name, part, specs[name], stats, **inputs)
            row.notes |= step.notes.get(name, {})
            report.rows.append(row)
            left.pop(name)
    if left:
        raise DataError(
            f"calibration does not reach '{next(iter(left))}', which lies outside the blocks",
            hint="leave it out with skip",
        )


class _BlockStep:
    """One block: its transforms, and what each solver gets."""

    last = 0

    def __init__(
        self,
        run: BlockRun,
        here: dict[str, Any],
        specs: dict[str, QuantSpec],
        groups: list[Readers],
        search_batches: int,
        learning: dict[str, Any],
        seed: int,
    ) -> None:
        self.run, self.here, self.specs, self.groups = run, here, specs, groups
        self.search_batches, self.learning, self.seed = search_batches, learning, seed
        self.in_scale: dict[str, torch.Tensor] = {}
        self.perm: dict[str, torch.Tensor] = {}
        self.high: dict[str, int] = {}
        self.clip: dict[str, Any] = {}
        self.notes: dict[str, dict[str, Any]] = {}

    def prepare(self, spec: QuantSpec) -> Callable[[str], tuple[Stats, dict[str, Any]]]:
        """Apply the transforms; the result gives a layer's statistics and its layer's inputs."""
        stream = "edited" if spec.objective == "hessian" else "full"
        wanted = _STATISTICS[spec.objective]
        if "learned" in spec.transforms:
            from core.quantization.solvers.block import Learning, reconstruct

            reconstruct(self, Learning(**self.learning, seed=self.seed))
        elif "scale_search" in spec.transforms:
            self._awq(self.run.collect(wanted, self.here), "clip_search" in spec.transforms)
        elif "smooth_attention" in spec.transforms or "smooth_rest" in spec.transforms:
            self._qoq(spec, stream)
        stats = self.run.collect(wanted, self.here, stream)
        if "permute" in spec.transforms:
            for name in self.here:
                self.perm[name], self.high[name] = transforms.outlier_order(stats[name].absmax)

        def given(name: str) -> tuple[Stats, dict[str, Any]]:
            seen = stats[name]
            hessian, scale = seen.hessian, self.in_scale.get(name)
            if hessian is not None and scale is not None:
                hessian = hessian * scale[:, None] * scale[None]
            if hessian is not None and name in self.perm:
                hessian = hessian[self.perm[name]][:, self.perm[name]]
            found = Stats(hessian, seen.absmax, seen.absmean, seen.sample, clip=self.clip.get(name))
            inputs = {"in_scale": scale, "perm": self.perm.get(name), "high_blocks": self.high.get(name, 0)}
            return found, {key: value for key, value in inputs.items() if value is not None}

        return given

    def _awq(self, stats: dict[str, Any], clipping: bool) -> None:
        for group in self.groups:
            name = group.names[0]
            forward = self._inspected(group)
            reference = forward()
            scale, notes = transforms.scale_search(group, stats[name].absmean, self.specs[name], forward, reference)
            left = group.fold(scale)
            for member in group.names:
                self.notes[member] = {"awq": notes}
                if left is not None:
                    self.in_scale[member] = left
                if clipping and group.role != "attention" or clipping and member.endswith(("v_proj", ".v", "value")):
                    part = self.here[member]
                    weight = dense_weight(part) if left is None else dense_weight(part).float() / left
                    sample = stats[member].sample.float() / scale
                    spec = self.specs[member]
                    self.clip[member] = transforms.clip_search(weight, sample, spec.fitted(weight.shape[1]))

    def _inspected(self, group: Readers) -> Callable[[], torch.Tensor]:
        """A function that gives the output of the module a search looks at, on its captured inputs."""
        if group.inspected is None or group.role not in ("attention", "feed_forward"):
            samples = self.run.collect(("sample",), group.names[:1])[group.names[0]].sample
            return lambda: torch.cat([part(samples.to(dense_weight(part).dtype)) for part in group.maps], -1)
        calls: list[tuple[tuple, dict]] = []
        handle = group.inspected.register_forward_pre_hook(
            lambda module, args, named: calls.append((args, dict(named))), with_kwargs=True
        )
        try:
            for batch, hidden in list(enumerate(self.run.inputs))[: self.search_batches]:
                self.run.forward(hidden, batch)
        finally:
            handle.remove()

        def forward() -> torch.Tensor:
            outputs = [group.inspected(*args, **named) for args, named in calls]
            return torch.cat([(o[0] if isinstance(o, tuple) else o).flatten(0, -2) for o in outputs])

        return forward

    def _qoq(self, spec: QuantSpec, stream: str) -> None:
        if "smooth_attention" in spec.transforms and self.run.ref.k is not None:
            self.notes.setdefault(next(iter(self.here)), {})["attention smoothed"] = transforms.smooth_attention(
                self.run.ref, self._key_peaks(stream)
            )
        if "smooth_rest" in spec.transforms:
            absmax = self.run.collect(("absmax",), self.here, stream)
            for group in self.groups:
                if group.role in ("output", "down") and group.producer is not None:
                    scale = transforms.smooth_scale(absmax[group.names[0]].absmax, group.maps, 0.3, 0.7)
                    group.fold(group.shareable(scale))

    def _key_peaks(self, stream: str) -> torch.Tensor:
        """max|k| (kv heads · head size,), after the norm of keys where there is one."""
        norm = getattr(self.run.ref.attn, "k_norm", None)
        peaks: list[torch.Tensor] = []

        def watch(module: Any, args: tuple, output: torch.Tensor) -> None:
            size = output.shape[-1] if norm is None else output.shape[-1] * output.shape[-2]
            peaks.append(output.detach().float().reshape(-1, size).abs().amax(0))

        handle = (self.run.ref.k if norm is None else norm).register_forward_hook(watch)
        try:
            self.run.outputs(stream)
        finally:
            handle.remove()
        return torch.stack(peaks).amax(0)


def _smooth_model(
    model: Any, spec: QuantSpec, batches: list[torch.Tensor], specs: dict[str, Any], most: int, step: float
) -> dict[str, Any]:
    groups: list[Readers] = []
    absmax: dict[str, torch.Tensor] = {}
    for run in BlockCalibration(model, batches).blocks():
        here = {name: part for name, part in run.linears().items() if name in specs}
        groups += readers_of(run.ref, {id(part): name for name, part in here.items()})
        absmax |= {name: stats.absmax for name, stats in run.collect(("absmax",), here).items()}
    return transforms.global_alpha(model, groups, absmax, spec, batches[:most], step)


def _fisher(model: Any, batches: list[torch.Tensor], specs: dict[str, QuantSpec]) -> dict[str, torch.Tensor]:
    """Mean over sequences of the squared gradient of the language-model loss, for each weight: (N, K) by name."""
    parts = {name: model.get_submodule(name) for name in specs}
    weights = {name: dense_weight(part) for name, part in parts.items()}
    leaves = {name: part.weight for name, part in parts.items()}
    wanted = {id(leaf) for leaf in leaves.values()}
    were = [(p, p.requires_grad) for p in model.parameters()]
    total = {
        name: torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) for name, weight in weights.items()
    }
    count = 0
    try:
        for parameter, _ in were:
            parameter.requires_grad_(id(parameter) in wanted)
        with torch.enable_grad():
            for batch in batches:
                for row in batch.to(next(model.parameters()).device).split(1):
                    loss = model(input_ids=row, labels=row, use_cache=False).loss
                    gradients = torch.autograd.grad(loss, list(leaves.values()))
                    for name, gradient in zip(parts, gradients):
                        turned = gradient if gradient.shape == total[name].shape else gradient.t()
                        total[name] += turned.float().square()
                    count += 1
    finally:
        for parameter, was in were:
            parameter.requires_grad_(was)
    return {name: value / count for name, value in total.items()}
