"""One training step as numbers: the model's shape, what of it trains, and how the step is computed.

`from_recipe` reads a checked recipe the way `core.training` will; nothing is loaded.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from core.config.files import read_json
from core.config.registry import QUANTIZERS
from core.config.schema import BackendConfig, Recipe
from core.costmodel.shape import ModelShape
from core.errors import ConfigError, UnsupportedModelError

BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}

# Families whose attention takes the borders of packed documents.
BY_DOCUMENT = ("llama", "mistral", "qwen2", "qwen3", "gemma")
FUSED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

# Bytes a weight. NF4: half a byte, and per 64 weights a scale of one byte, whose own scales take 4 bytes per 256 × 64.
FORMATS = {"nf4": 0.5 + 1 / 64 + 4 / (256 * 64), "int8": 1.0}


def format_bytes(quantization: str, stored: int) -> float:
    """Bytes of one weight in a number format; one that is trained keeps its weights as they are `stored`."""
    name = quantization.partition(":")[0]
    if name in FORMATS:
        return FORMATS[name]
    spec = QUANTIZERS.get(name).parsed(quantization)
    return stored if spec.trained else spec.nominal_bits / 8


@dataclass(frozen=True)
class Workload:
    """A step of training.

    Args:
        micro: sequences in one forward pass of one device. length: tokens of a sequence. accumulation: passes a step.
        rank: of the adapters; 0 trains all weights. targets: linear maps with an adapter, by name in the shape.
        adapter_dropout: whether the adapter's input has dropout.
        quantization: number format of the base's linear maps, or "none".
        stored: bytes of a weight that is not quantized, in the model. masters: the optimizer works on fp32 copies of
            16-bit parameters. compute: bytes of what matrix products read and write.
        checkpointing: none, selective (every second block is recomputed in the backward pass) or full.
        offloaded: inputs of recomputed blocks wait in host memory.
        masked: attention runs under a mask over the whole sequence, where no kernel knows packed documents.
        fused: what is computed in one: the head with its loss, layers (norms, phases, gated products), lora in them.
    """

    shape: ModelShape
    micro: int
    length: int
    accumulation: int = 1
    rank: int = 0
    targets: tuple[str, ...] = ()
    adapter_dropout: bool = False
    quantization: str = "none"
    stored: int = 2
    compute: int = 2
    masters: bool = False
    checkpointing: str = "none"
    offloaded: bool = False
    masked: bool = False
    fused: frozenset[str] = frozenset()

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass."""
        return self.micro * self.length

    @cached_property
    def adapter_parameters(self) -> int:
        linears = self.shape.linears
        return self.shape.layers * sum(
            self.rank * (linears[name].inside + linears[name].outside) for name in self.targets
        )

    @property
    def trainable(self) -> int:
        return self.adapter_parameters if self.rank else self.shape.parameters

    def with_(self, **changes: Any) -> Workload:
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_recipe(
        cls, recipe: Recipe, shape: ModelShape, *, device: str, micro: int, accumulation: int = 1, length: int = 0
    ) -> Workload:
        """The step that a stage's recipe describes, on "cpu" or "cuda".

        Raises:
            UnsupportedModelError: something that is not predicted: another kind of adapter, an edit.
        """
        model, backend = recipe.model, recipe.backend
        if model.edits:
            raise UnsupportedModelError("memory of an edited model is not predicted", where="model.edits")
        trained = [spec for spec in model.adapters if spec.path is None]
        spec = trained[0] if trained else None
        if spec is not None and (spec.kind != "lora" or spec.dora or spec.modules_to_save):
            raise UnsupportedModelError(
                "memory is predicted for plain LoRA and for full fine-tuning", where="model.adapters"
            )
        on_gpu = device != "cpu"
        named = BYTES.get(model.dtype) or (BYTES.get(shape.dtype or "fp32", 4) if on_gpu and model.path else 4)
        compute = {"bf16": 2, "fp32": 4}.get(backend.precision.compute, 2 if on_gpu else 4)
        half = backend.precision.params == "bf16"
        if spec is None:
            named = 2 if half else 4
        return cls(
            shape=shape,
            micro=micro,
            length=length or recipe.data.max_length,
            accumulation=accumulation,
            rank=spec.r if spec else 0,
            targets=targets_of(shape, spec.targets) if spec else (),
            adapter_dropout=bool(spec and spec.dropout),
            quantization=model.quantization,
            stored=named,
            masters=half,
            compute=compute,
            checkpointing="none" if backend.activation_checkpoint == "auto" else backend.activation_checkpoint,
            offloaded=backend.offload.activations == "host" or (backend.offload.activations == "auto" and on_gpu),
            masked=recipe.data.packing and (backend.packed_attention == "mask" or shape.family not in BY_DOCUMENT),
            fused=fused_parts(shape, backend, on_gpu),
        )


def fused_parts(shape: ModelShape, backend: BackendConfig, on_gpu: bool) -> frozenset[str]:
    """What `core.training.speed` and the loss will compute in one."""
    parts = set()
    if backend.cross_entropy != "whole":
        parts.add("head")
    auto = backend.lora == "fused" or (on_gpu and backend.compile == "none")
    wanted = backend.kernels == "fused" or (backend.kernels == "auto" and auto)
    if wanted and shape.family in FUSED_FAMILIES:
        parts.add("layers")
        if backend.lora != "plain":
            parts.add("lora")
    return frozenset(parts)


def targets_of(shape: ModelShape, targets: str | list[str]) -> tuple[str, ...]:
    """The linear maps of a block that an adapter is laid on."""
    if targets == "all-linear":
        return tuple(shape.linears)
    endings = [targets] if isinstance(targets, str) else targets
    return tuple(name for name in shape.linears if any(name.endswith(ending) for ending in endings))


def shape_of(recipe: Recipe) -> ModelShape:
    """The shape of a recipe's base from its folder, the hub's cache or its preset. No weights and no torch.

    Raises:
        CheckpointError, ConfigError: as for loading. UnsupportedModelError: a family that is not known here.
    """
    from core.models.load import resolve_path
    from core.models.presets import PRESETS

    model = recipe.model
    if model.preset:
        size = (model.tokenizer or "").removeprefix("bpe:")
        if model.preset not in PRESETS:
            raise ConfigError(f"unknown preset '{model.preset}'", hint=f"known: {', '.join(PRESETS)}")
        kind, sizes = PRESETS[model.preset]
        return ModelShape.from_config({"model_type": kind, **sizes}, int(size) if size.isdigit() else 32000)
    place = resolve_path(str(model.path))
    if not Path(place).is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(place, "config.json", revision=model.revision)
        if not isinstance(cached, str):
            raise UnsupportedModelError(
                "the model is not on this machine yet, so its sizes are not known",
                where=place,
                hint="run the plan again once it is there, or give model.path a folder that holds its config.json",
            )
        place = str(Path(cached).parent)
    folder = Path(place)
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        carried = folder / "base"
        named = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        folder = carried if carried.is_dir() else Path(resolve_path(str(named)))
    return ModelShape.from_folder(folder)
