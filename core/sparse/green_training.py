"""Training only the tensors that pay, chosen again during training (Huang et al. 2024, GreenTrainer).

Every `interval` steps the next batch is first used to ask: one real optimizer step with everything in reach training,
and the gradient at the new point. A tensor's importance is how much its own change lowered the loss, -Σ g' · Δw. Then
weights and optimizer are put back bit for bit and the best tensors within the budget are set free; autograd does not
go deeper than the deepest of them. A tied table that is chosen as the head alone gets no gradient from its look-ups.
The first step of every choice is counted by torch, so that a run says what it was planned to cost and what it cost.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.distributed as dist

from core.config.sparse import GreenOptions
from core.errors import UnsupportedError
from core.objectives.selection import SelectionCallback, bare
from core.sparse.flops import flop_counter
from core.sparse.green import Costs, in_scope, tensor_flops
from core.sparse.green_counted import counted_costs


class GreenCallback(SelectionCallback):
    """Says when tensors are chosen again and remembers which ones train.

    Attributes:
        due: the next training step begins with a selection. selected: names of the tensors that train.
        share, counted: FLOPs of a step over those of full training, as planned and as torch counted them on the first
            step of the choice.
    """

    name = "green"

    def __init__(self, options: GreenOptions) -> None:
        super().__init__(options.interval)
        self.options, self.due, self.share, self.counted = options, True, 1.0, 1.0
        self.selected: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        super().on_train_begin(args, state, control, **given)
        if self.selected:
            set_free(given["model"], set(self.selected))

    def close(self, model: Any, optimizer: Any, step: int, total: int) -> None:
        self.due = True

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        set_free(given["model"], {name for name, _ in given["model"].named_parameters()})

    def plain(self) -> dict[str, Any]:
        return {"due": self.due, "selected": self.selected, "share": self.share, "counted": self.counted}

    def load_plain(self, found: dict[str, Any]) -> None:
        self.due, self.selected, self.share = found["due"], found["selected"], found["share"]
        self.counted = found.get("counted", self.share)


class GreenTrainerMixin:
    """A Trainer that trains at most `rho` of the FLOPs of full training.

    The class attribute `green` holds the options.

    Raises:
        UnsupportedError: adapters or a quantized base.
        BudgetError: a rho below what a forward pass and the cheapest tensor of the scope cost.
        ConfigError: a scope that matches no tensor.
    """

    green: GreenOptions = GreenOptions()

    def __init__(self: Any, model: Any = None, *args: Any, **kwargs: Any) -> None:
        if hasattr(model, "peft_config") or getattr(model, "is_quantized", False):
            raise UnsupportedError(
                "GreenTrainer chooses among the model's own tensors, which are frozen here", where="model",
                hint="leave out adapters and quantization",
            )  # fmt: skip
        self.scope = in_scope(model, self.green.scope)
        tensor_flops(model, 1, 2).within(self.scope).budget(self.green.rho)
        self._shape: tuple[int, int] | None = None
        super().__init__(model, *args, **kwargs)  # type: ignore[call-arg]
        # tensors that do not train have no gradient to wait for
        self.args.ddp_find_unused_parameters = True
        self.selection = GreenCallback(self.green)
        self.add_callback(self.selection)

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.selection.due:
            return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        self._select(inputs)
        with flop_counter() as counter:
            found = super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        self.selection.counted = counter.get_total_flops() / self._costs.full
        return found

    def _select(self: Any, inputs: Any) -> None:
        """Choose the tensors of the steps to come: those of the first process, whose batch may have another shape."""
        model, optimizer, callback = self.accelerator.unwrap_model(self.model), bare(self.optimizer), self.selection
        costs = self._costs_of(model, inputs)
        found = self.importance_of(model, inputs, agreed(costs.reachable(self.green.rho)))
        chosen = agreed(self._best(costs, found))
        set_free(model, chosen)
        park(model, optimizer)
        callback.selected, callback.due, callback.share = sorted(chosen), False, costs.share(chosen)

    def _best(self: Any, costs: Costs, worth: dict[str, float]) -> set[str]:
        """Never nothing: where no tensor's change lowers the loss, the choice before stays; at first, what fits."""
        rho, units = self.green.rho, self.green.units
        chosen = costs.select(worth, rho, units) or set(self.selection.selected)
        return chosen or costs.select(dict.fromkeys(worth, 1.0), rho, units)

    def _costs_of(self: Any, model: Any, inputs: Any) -> Costs:
        """What a step on such a batch costs, found again when the shape changes."""
        rows, length = inputs["input_ids"].shape
        if self._shape != (rows, length):
            recomputed = self.args.gradient_checkpointing
            self._costs, self._shape = tensor_flops(model, rows, length, recomputed), (rows, length)
            if self.green.flops == "measured":
                with self._unnoticed():
                    self._costs = counted_costs(model, self._costs, lambda: self._loss(model, inputs), recomputed)
            self._costs = self._costs.within(self.scope)
        return self._costs

    def importance_of(self: Any, model: Any, inputs: Any, names: set[str]) -> dict[str, float]:
        """What the named tensors are worth, measured on a batch; random states and counts are left as they were."""
        with self._unnoticed():
            return importance(model, bare(self.optimizer), names, lambda: self._loss(model, inputs))

    @contextlib.contextmanager
    def _unnoticed(self: Any) -> Any:
        """Passes that are no training: random states and the count of tokens are put back."""
        seen = getattr(self, "_useful", None)
        with torch.random.fork_rng([self.args.device] if self.args.device.type == "cuda" else []):
            yield
        if seen is not None:
            self._useful = seen

    def _loss(self: Any, model: Any, inputs: Any) -> torch.Tensor:
        with self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(dict(inputs)))

    def log(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            shares = {"green/flops": self.selection.share, "green/flops_counted": self.selection.counted}
            logs = {**logs, **{name: round(share, 4) for name, share in shares.items()}}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def importance(model: Any, optimizer: Any, names: set[str], loss: Any) -> dict[str, float]:
    """-Σ g' · Δw of each named tensor over one optimizer step at the full rate, divided by the largest in magnitude.

    The model's weights, the optimizer's state and rates are afterwards bit for bit what they were; no gradient is left.
    Processes average what they find.

    Args:
        loss: () → the batch's loss.
    """
    free = {name: p for name, p in model.named_parameters(remove_duplicate=False) if name in names}
    heads = names - {name for name, _ in model.named_parameters()}
    pending = {name: p.grad for name, p in model.named_parameters()}
    set_free(model, names)
    with _restored(free, optimizer) as before:
        _gradients(model, loss)
        for group in optimizer.param_groups:
            group["lr"] = group.get("initial_lr", group["lr"])
        optimizer.step()
        _gradients(model, loss)
        found = {name: _worth(p, before[name]) for name, p in free.items()}
        if len(set(map(id, free.values()))) < len(free):
            # a tied table in reach in both roles: what its head's role is worth takes the gradient of that role
            set_free(model, heads)
            _gradients(model, loss)
            found |= {name: _worth(free[name], before[name]) for name in heads}
    for name, p in model.named_parameters():
        p.grad = pending[name]
    if _several():
        order = sorted(found)
        device = next(iter(free.values())).device
        values = torch.tensor([found[name] for name in order], dtype=torch.float64, device=device)
        dist.all_reduce(values)
        found = dict(zip(order, (values / dist.get_world_size()).tolist()))
    largest = max((abs(value) for value in found.values()), default=0.0) or 1.0
    return {name: value / largest for name, value in found.items()}


def _worth(p: torch.Tensor, before: torch.Tensor) -> float:
    return 0.0 if p.grad is None else -float((p.grad.float() * (p.detach() - before.to(p.device)).float()).sum())


def agreed(names: set[str]) -> set[str]:
    """The names that the first process found."""
    if not _several():
        return names
    held = [names]
    dist.broadcast_object_list(held, 0)
    return held[0]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gradients(model: Any, loss: Any) -> None:
    for p in model.parameters():
        p.grad = None
    loss().backward()


@contextlib.contextmanager
def _restored(parameters: dict[str, torch.Tensor], optimizer: Any) -> Any:
    """Gives the parameters' values, on the host; afterwards they, their optimizer state and the groups' settings are
    as before."""
    weights = {name: _on_host(p) for name, p in parameters.items()}
    states = {
        name: {k: (_on_host(v), v.device) if isinstance(v, torch.Tensor) else (v, None) for k, v in held.items()}
        for name, p in parameters.items()
        if (held := optimizer.state.get(p)) is not None
    }
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    unpark(parameters, optimizer)
    try:
        yield weights
    finally:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(weights[name])
                if name in states:
                    optimizer.state[p] = {
                        k: v if device is None else v.to(device) for k, (v, device) in states[name].items()
                    }
                else:
                    optimizer.state.pop(p, None)
        for group, settings in zip(optimizer.param_groups, groups):
            group.update(settings)


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def set_free(model: Any, names: set[str]) -> None:
    """Let exactly the named tensors train; a tied table that only its head names, without its look-ups."""
    free = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in names}
    for p in model.parameters():
        p.requires_grad_(id(p) in free)
    table = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if (weight := getattr(table, "weight", None)) is not None:
        name = next((name for name, p in model.named_parameters() if p is weight), "")
        _let_learn(table, name in names or not weight.requires_grad)


def _let_learn(table: torch.nn.Module, learns: bool) -> None:
    """Look-ups in `table` pass a gradient on to it, or not."""
    if (cut := vars(table).pop("_green_cut", None)) is not None:
        cut.remove()
    if not learns:
        table._green_cut = table.register_forward_hook(_detached)


def _detached(module: Any, given: Any, made: torch.Tensor) -> torch.Tensor:
    return made.detach()


def park(model: Any, optimizer: Any) -> None:
    """Optimizer state of tensors that do not train goes to host memory, that of the others to their device."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    _move(optimizer, {p: torch.device("cpu") for p in frozen})
    unpark({str(i): p for i, p in enumerate(model.parameters()) if p.requires_grad}, optimizer)


def unpark(parameters: dict[str, torch.Tensor], optimizer: Any) -> None:
    """Optimizer state of these parameters goes to their device."""
    _move(optimizer, {p: p.device for p in parameters.values()})


def _move(optimizer: Any, places: dict[torch.Tensor, torch.device]) -> None:
    for p, device in places.items():
        for name, value in optimizer.state.get(p, {}).items():
            # a step count may live on the host whatever the device
            if isinstance(value, torch.Tensor) and value.dim():
                optimizer.state[p][name] = value.to(device)


def build(model: Any, options: GreenOptions, context: Any) -> Any:
    """The edit of a recipe: the model stays as it is."""
    return model


def hook(trainer_cls: type, model: Any, options: GreenOptions) -> tuple[type, list[Any]]:
    """The Trainer of a stage that trains for a share of the FLOPs."""
    return type(f"Green{trainer_cls.__name__}", (GreenTrainerMixin, trainer_cls), {"green": options}), []
