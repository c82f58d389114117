"""What a model call costs, so that drawing often from a small model and once from a large one can be compared."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.errors import BudgetExceeded


@dataclass(frozen=True)
class CallCost:
    """Prices of one model.

    Args:
        parameters: of the model; a call then costs 2 · parameters · (prompt + generated) FLOPs and the attention's.
        layers, hidden: for the attention's 4 · layers · hidden · prompt · generated and the like; 0 leaves it out.
        prompt_price, token_price: instead of FLOPs, a price for each token of the prompt and each generated one.
    """

    parameters: float = 0.0
    layers: int = 0
    hidden: int = 0
    prompt_price: float | None = None
    token_price: float | None = None

    def of(self, prompt: int, generated: int, calls: int = 1) -> float:
        """The cost of `calls` answers of `generated` tokens each to one prompt, whose cache they share."""
        if self.token_price is not None:
            return (self.prompt_price or 0.0) * prompt + self.token_price * generated * calls
        attended = prompt * (prompt + 1) / 2 + calls * generated * (prompt + (generated + 1) / 2)
        return 2 * self.parameters * (prompt + calls * generated) + 4 * self.layers * self.hidden * attended


@dataclass
class Spending:
    """A budget that cannot be overdrawn."""

    limit: float
    spent: float = 0.0
    by_name: dict[str, float] = field(default_factory=dict)

    @property
    def left(self) -> float:
        return self.limit - self.spent

    def affords(self, cost: float) -> bool:
        return self.spent + cost <= self.limit * (1 + 1e-12)

    def pay(self, cost: float, name: str = "") -> None:
        """Spend `cost`. Raises `BudgetExceeded` when it is more than what is left."""
        if not self.affords(cost):
            raise BudgetExceeded(f"{cost:.4g} asked for and {self.left:.4g} left of {self.limit:.4g}")
        self.spent += cost
        self.by_name[name] = self.by_name.get(name, 0.0) + cost
