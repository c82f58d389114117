"""Turn a dense model into a sparse one by training with masks that follow the weights (Huang et al. 2025, AST).

Every few steps the masks are taken anew from the dense masters, while weights outside the mask decay more and more, so
that the choice settles. The decay enters the update and the second moment but not the first moment of Adam, and the
dense model teaches by its logits. Afterwards `export_semi24` packs the result for sparse tensor cores.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from core.config.registry import BuildContext
from core.config.sparse import AstOptions
from core.errors import UnsupportedError
from core.models.linear import dense_weight
from core.models.linear_form import Semi24Linear
from core.models.surgery import replace_linear
from core.models.topology import ModelTopology
from core.objectives.distill import DistillLoss, distilling
from core.objectives.selection import SelectionCallback
from core.sparse.ast_linear import AdaptiveLinear, Semi24Slorb
from core.sparse.masks import TEACHERS, prunable
from core.statistics.importance import Pattern


def sparsify(model: Any, options: AstOptions) -> Any:
    """Give every linear map of the blocks a mask and dense masters, in place. Returns the model.

    Raises:
        ConfigError: inputs that do not divide into the pattern's or the branch's groups.
        UnsupportedError: quantized weights.
    """
    spec: dict[str, Any] = {"pattern": options.pattern, "metric": options.metric}
    spec |= {"slorb_k": options.slorb_k, "train_projection": options.train_projection} if options.slorb_k else {}
    named = prunable(model, ModelTopology.of(model), Pattern.parse(options.pattern))
    made = {
        path: AdaptiveLinear.from_dense(
            dense_weight(part).detach(), getattr(part, "bias", None), slorb_init=options.slorb_init, **spec
        )
        for path, part in named.items()
    }
    for path, form in made.items():
        replace_linear(model, path, form)
    return model


def adaptive(model: Any) -> dict[str, Any]:
    """Every map whose mask moves, by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, AdaptiveLinear)}


class AstAdamW(torch.optim.Optimizer):
    """AdamW whose masked weights are also pulled to zero by λ(t) = decay · min(t / ramp, 1).

    m ← β₁m + (1-β₁)g; u = m + λ ¬M ⊙ w; v ← β₂v + (1-β₂)u²; w ← w(1 - lr wd) - lr û / (√v̂ + eps), with û = u/(1-β₁ᵗ)
    and v̂ = v/(1-β₂ᵗ). Parameters without a mask take plain AdamW.

    Args:
        masks: parameter → its boolean mask, True where the weight is used.
    """

    def __init__(
        self, params: Any, masks: dict[torch.Tensor, torch.Tensor], lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1, decay: float = 6e-5,
        ramp: int = 10_000,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        if any(mask.dtype != torch.bool for mask in masks.values()):
            raise UnsupportedError("the complement of an integer mask is no mask", where="AstAdamW", hint="use bool")
        self._masks = {id(parameter): mask for parameter, mask in masks.items()}
        self.decay, self.ramp = decay, ramp

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None if closure is None else closure()
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, gradient, mask = self.state[p], p.grad.float(), self._masks.get(id(p))
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(p, dtype=torch.float32)
                    state["exp_avg_sq"] = torch.zeros_like(p, dtype=torch.float32)
                state["step"] += 1
                t = int(state["step"])
                first = state["exp_avg"].lerp_(gradient, 1 - b1)
                if mask is None:
                    update, seen = first, gradient
                else:
                    update = seen = first + self.decay * min(t / self.ramp, 1.0) * (p.float() * ~mask)
                second = state["exp_avg_sq"].mul_(b2).addcmul_(seen, seen, value=1 - b2)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                scale = (second / (1 - b2**t)).sqrt_().add_(group["eps"])
                p.sub_((update / (1 - b1**t)).div_(scale).mul_(group["lr"]).to(p.dtype))
        return loss


class AstCallback(SelectionCallback):
    """Takes the masks anew every `update_every` steps.

    Attributes:
        flips: share of the weights that changed sides at the last update. history: the share at every update.
    """

    name = "ast"

    def __init__(self, update_every: int) -> None:
        super().__init__(update_every)
        self.flips, self.history = 0.0, list[float]()

    def close(self, model: Any, optimizer: Any, step: int, total: int) -> None:
        maps = adaptive(model).values()
        self.flips = sum(part.update() for part in maps) / max(1, sum(part.mask.numel() for part in maps))
        self.history.append(round(self.flips, 6))

    def plain(self) -> dict[str, Any]:
        return {"flips": self.flips, "history": self.history}

    def load_plain(self, found: dict[str, Any]) -> None:
        self.flips, self.history = found["flips"], found["history"]


class AstTrainerMixin:
    """A Trainer with `AstAdamW` and moving masks. The class attribute `ast` holds the options."""

    ast: AstOptions = AstOptions()

    def __init__(self: Any, model: Any = None, *args: Any, **kwargs: Any) -> None:
        if not adaptive(model):
            raise UnsupportedError("the model has no moving masks", hint="sparsify it first")
        precision = getattr(kwargs.get("backend"), "precision", None)
        if getattr(precision, "params", None) == "bf16":
            raise UnsupportedError("masks are taken from fp32 masters", where="backend.precision.params", hint="fp32")
        super().__init__(model, *args, **kwargs)  # type: ignore[call-arg]
        self.selection = AstCallback(self.ast.update_every)
        self.add_callback(self.selection)

    def create_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.optimizer is None:
            masks = {part.weight: part.mask for part in adaptive(self.model).values()}
            given = self.args
            self.optimizer = AstAdamW(
                [p for p in self.model.parameters() if p.requires_grad], masks, given.learning_rate,
                (given.adam_beta1, given.adam_beta2), given.adam_epsilon, given.weight_decay, self.ast.decay,
                self.ast.ramp_steps,
            )  # fmt: skip
        return self.optimizer

    def log(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self.selection.history:
            logs = {**logs, "ast/flips": self.selection.history[-1]}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def export_semi24(model: Any, pack: bool = False) -> Any:
    """Put the served form in the place of every moving mask, in place. Returns the model.

    Args:
        pack: bring the weights into the layout of the sparse tensor cores (CUDA, half precision).

    Raises:
        UnsupportedError: a pattern that is not 2:4; a device or format that has no packed layout.
    """
    found = adaptive(model)
    wrong = [name for name, part in found.items() if (part.pattern.kept, part.pattern.group) != (2, 4)]
    if wrong or not found:
        raise UnsupportedError("only masks of 2:4 have a packed form", where=wrong[0] if wrong else None)
    for path, part in found.items():
        weight = (part.weight * part.mask).detach()
        bias = None if part.bias is None else part.bias.detach()
        served: Any = Semi24Linear.from_dense(weight, bias)
        if part.branch is not None:
            served = Semi24Slorb.from_dense(weight, bias, part.branch)
        if pack:
            # where the first cannot be packed nothing has been replaced yet
            getattr(served, "inner", served).pack()
        replace_linear(model, path, served)
    return model


def build(model: Any, options: AstOptions, context: BuildContext) -> Any:
    """`sparsify` as an edit of a recipe; the dense model is kept as teacher where the loss asks for one."""
    if options.kl:
        teacher = copy.deepcopy(model)
    model = sparsify(model, options)
    if options.kl:
        TEACHERS[model] = teacher
    return model


def hook(trainer_cls: type, model: Any, options: AstOptions) -> tuple[type, list[Any]]:
    """The Trainer of a stage that trains into a sparse model."""
    if model in TEACHERS:
        loss = DistillLoss(options.ce, options.kl, 0.0, options.temperature)
        trainer_cls = distilling(trainer_cls, loss, TEACHERS[model])
    return type(f"Ast{trainer_cls.__name__}", (AstTrainerMixin, trainer_cls), {"ast": options}), []
