"""Models of any depth from two blocks (Xia et al. 2024, TLEG: transformer as linear expansion of a learngene).

Every tensor of block l of L is θ_B + (l/L) θ_A. An auxiliary model trains only the two sets of block tensors and the
parts outside the blocks, towards a teacher's logits; descendants of any depth are then written out as plain models and
trained as usual. Stored are two blocks, whatever the depth. Decoder language models and vision transformers alike.
"""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.config.registry import BuildContext
from core.config.schema import ModelConfig
from core.control.options import DescendOptions, LearngeneOptions
from core.errors import CheckpointError, ConfigError, UnsupportedError
from core.models.load import load_model, load_tokenizer
from core.models.rope import keep_exact
from core.models.surgery import apply, plain_class
from core.models.topology import ModelTopology
from core.objectives.distill import DistillLoss, distilling

FILE = "learngene.safetensors"

# who an auxiliary model learns from; beside the model, so that it is not saved with it
TEACHERS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


class Learngene:
    """Two sets of block tensors and what stands outside the blocks.

    Args:
        config: of the model family; its depth does not matter. model_cls: the transformers class.
        a, b: name inside a block → θ_A, θ_B. outside: name → tensor of the rest of the model.
    """

    def __init__(
        self, config: Any, model_cls: type, a: dict[str, Any], b: dict[str, Any], outside: dict[str, Any]
    ) -> None:
        self.config, self.model_cls, self.a, self.b, self.outside = config, model_cls, a, b, outside

    @classmethod
    def from_config(cls, config: Any, model_cls: type, seed: int = 0) -> Learngene:
        """Fresh: weights of both sets from N(0, 0.02) cut at two deviations; a norm starts at weight 1 in θ_B alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = model_cls(_of_depth(config, 1))
            topology = ModelTopology.of(model)
            block = topology.stack[0]
            norms = {id(p) for m in block.modules() if "norm" in type(m).__name__.lower() for p in m.parameters()}
            a, b = {}, {}
            for name, tensor in block.named_parameters():
                if id(tensor) in norms or tensor.dim() < 2:
                    a[name] = torch.zeros_like(tensor)
                    b[name] = tensor.detach().clone()
                else:
                    a[name], b[name] = (
                        nn.init.trunc_normal_(torch.empty_like(tensor), std=0.02, a=-0.04, b=0.04) for _ in "ab"
                    )
            return cls(model.config, model_cls, a, b, _outside(model, topology))

    @classmethod
    def fit_from(cls, model: Any) -> Learngene:
        """The least-squares pair of a model's blocks: for every tensor the line in l/L that is nearest to its blocks.

        Raises:
            ConfigError: fewer than two blocks, or blocks whose tensors differ in shape.
            UnsupportedError: quantized weights.
        """
        topology = ModelTopology.of(model)
        if any(not parameter.is_floating_point() for parameter in topology.stack.parameters()):
            raise UnsupportedError(
                "no line goes through quantized weights", where="learngene", hint="load the base without quantization"
            )
        blocks = [dict(block.named_parameters()) for block in topology.stack]
        if len(blocks) < 2:
            raise ConfigError("one block gives no line", where="learngene")
        for name in blocks[0]:
            shapes = {tuple(block[name].shape) if name in block else None for block in blocks}
            if len(shapes) > 1:
                raise ConfigError(
                    f"'{name}' differs from block to block: {sorted(map(str, shapes))}", where="learngene"
                )
        at = torch.arange(len(blocks), dtype=torch.float64) / len(blocks)
        design = torch.stack([torch.ones_like(at), at], 1)
        solve = torch.linalg.pinv(design)
        a, b = {}, {}
        for name, tensor in blocks[0].items():
            values = torch.stack([block[name].detach().double().flatten() for block in blocks])
            base, slope = (solve @ values).to(tensor.dtype)
            a[name], b[name] = slope.view_as(tensor).contiguous(), base.view_as(tensor).contiguous()
        return cls(copy.deepcopy(model.config), plain_class(model), a, b, _outside(model, topology))

    @classmethod
    def from_auxiliary(cls, model: Any) -> Learngene:
        """What a trained auxiliary model has learnt."""
        topology = ModelTopology.of(model)
        pair = next((block.pair for block in topology.stack if hasattr(block, "pair")), None)
        if pair is None:
            raise ConfigError("the model has no shared pair", where="learngene", hint="give an auxiliary model")
        config = copy.deepcopy(model.config)
        del config.graft
        a, b = pair.tensors()
        return cls(config, plain_class(model), a, b, _outside(model, topology))

    def auxiliary(self, depth: int) -> Any:
        """A model of `depth` blocks that all come from the pair; only the pair and the outside train."""
        model = self._shell(1)
        apply(model, "learngene", depth=_checked(depth))
        ModelTopology.of(model).stack[0].pair.load(self.a, self.b)
        self._fill_outside(model)
        return model

    def descend(self, depth: int) -> Any:
        """A plain model of `depth` blocks, block l at θ_B + (l / depth) θ_A."""
        model = self._shell(_checked(depth))
        with torch.no_grad():
            for number, block in enumerate(ModelTopology.of(model).stack):
                for name, parameter in block.named_parameters():
                    parameter.copy_(self.b[name] + number / depth * self.a[name])
        self._fill_outside(model)
        return model

    def save(self, folder: str | Path) -> None:
        """The pair and the outside as one file, and the config beside it."""
        from safetensors.torch import save_file

        tensors = {f"{kind}.{n}": t for kind, part in self._parts().items() for n, t in part.items()}
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, Path(folder) / FILE)
        config = copy.deepcopy(self.config)
        config.architectures = [self.model_cls.__name__]
        config.save_pretrained(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Learngene:
        """Raises `CheckpointError` for a folder without one."""
        import transformers
        from safetensors.torch import load_file

        place = Path(folder) / FILE
        if not place.is_file():
            raise CheckpointError("no learngene here", where=str(place))
        config = transformers.AutoConfig.from_pretrained(folder)
        parts: dict[str, dict[str, Any]] = {"a": {}, "b": {}, "outside": {}}
        for name, tensor in load_file(place).items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = tensor
        return cls(config, getattr(transformers, config.architectures[0]), **parts)

    @property
    def stored(self) -> int:
        """Numbers that have to be kept, for descendants of every depth."""
        return sum(tensor.numel() for part in self._parts().values() for tensor in part.values())

    def _parts(self) -> dict[str, dict[str, Any]]:
        return {"a": self.a, "b": self.b, "outside": self.outside}

    def _shell(self, depth: int) -> Any:
        return self.model_cls(_of_depth(self.config, depth))

    def _fill_outside(self, model: Any) -> None:
        missing, unexpected = model.load_state_dict(self.outside, strict=False)
        model.tie_weights()
        stack = ModelTopology.of(model).stack_name + "."
        lost = [name for name in missing if not name.startswith(stack) and name in dict(model.named_parameters())]
        if unexpected or lost:
            raise CheckpointError(f"the learngene is of another model: {[*unexpected, *lost][:3]}")


def build_auxiliary(model: Any, options: LearngeneOptions, context: BuildContext) -> Any:
    """As an edit of a recipe: the auxiliary model of the base's family; nothing of a fresh one but the shape stays.

    Raises:
        ConfigError: a teacher of other tokens. CheckpointError: no teacher there.
    """
    teacher = _teacher(model, options, context)
    if options.start == "fit":
        gene = Learngene.fit_from(model)
    else:
        gene = Learngene.from_config(model.config, plain_class(model), context.seed)
    made = keep_exact(gene.auxiliary(options.depth)).to(model.device, model.dtype)
    if teacher is not None:
        TEACHERS[made] = teacher
    return made


def hook(trainer_cls: type, model: Any, options: LearngeneOptions) -> tuple[type, list[Any]]:
    """The Trainer of a stage on an auxiliary model: soft distillation (1 - α) CE + α T² KL where it has a teacher."""
    teacher = TEACHERS.get(model.get_base_model() if hasattr(model, "peft_config") else model)
    if teacher is None:
        return trainer_cls, []
    loss = DistillLoss(options.ce, options.kl, 0.0, options.temperature or 1.0)
    return distilling(trainer_cls, loss, teacher), []


def _teacher(model: Any, options: LearngeneOptions, context: BuildContext) -> Any:
    """The model whose logits are imitated, on the base's device; None for none."""
    if options.teacher is None or options.teacher == "base":
        return None if options.teacher is None else model
    wanted, where = ModelConfig(path=options.teacher), f"learngene.teacher: {options.teacher}"
    own = None if context.tokenizer is None else context.tokenizer.get_vocab()
    if own is not None and load_tokenizer(wanted).get_vocab() != own:
        raise ConfigError(
            "the teacher's tokens are not those of the model",
            where=where,
            hint=f"set model.tokenizer: {options.teacher}, or teacher: base",
        )
    teacher = load_model(wanted, None, device=str(model.device))
    sizes = [m.get_output_embeddings().weight.shape[0] for m in (teacher, model)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the teacher tells {sizes[0]} tokens apart and the model {sizes[1]}",
            where=where,
            hint="take a teacher with the same rows in its head, or teacher: base",
        )
    return teacher


def build_descendant(model: Any, options: DescendOptions, context: BuildContext) -> Any:
    """As an edit of a recipe: the plain model of a depth that the given one describes."""
    has_pair = any(hasattr(block, "pair") for block in ModelTopology.of(model).stack)
    gene = Learngene.from_auxiliary(model) if has_pair else Learngene.fit_from(model)
    return keep_exact(gene.descend(options.depth)).to(model.device, model.dtype)


def _checked(depth: int) -> int:
    if not isinstance(depth, int) or depth < 1:
        raise ConfigError(f"a model of {depth} blocks", where="learngene", hint="at least 1")
    return depth


def _of_depth(config: Any, depth: int) -> Any:
    made = copy.deepcopy(config)
    made.num_hidden_layers = depth
    if getattr(made, "layer_types", None):
        made.layer_types = [made.layer_types[0]] * depth
    return made


def _outside(model: Any, topology: ModelTopology) -> dict[str, torch.Tensor]:
    """Tensors of the model that are in no block; a tied head is left to the embedding."""
    stack, found, seen = topology.stack_name + ".", {}, set()
    for name, tensor in model.state_dict().items():
        if not name.startswith(stack) and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name] = tensor.detach().clone()
    return found
