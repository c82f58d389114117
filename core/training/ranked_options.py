"""The recipe's keys of verifier-ranked training, for every app whose answers a program can judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from core.config.schema import key
from core.errors import ConfigError

if TYPE_CHECKING:
    from core.training.stage import StageContext
    from core.training.verifier_loop import LoopSettings


@dataclass(frozen=True)
class RankedOptions:
    """Options that a method of iterative, verifier-ranked training inherits; `verify:` says how answers are checked."""

    acts_on: ClassVar[tuple[str, ...]] = ("verify",)

    mode: Literal["offsets", "pieces"] = key("offsets", "tokenise a row as a whole, or segment by segment")
    iterations: int = key(3, "how often the model answers anew; the epochs are shared among them", least=1)
    samples_per_prompt: int = key(4, "answers of a row, the reference among them", least=2)
    loss: Literal["rank_margin", "rank_log", "dpo", "best_of", "none"] = key("rank_margin", "the ranking term")
    gap: float = key(0.2, "least difference of scores that counts", least=0)
    margin: float = key(0.3, "by how much the better answer's probability must be ahead", least=0)
    weight: float = key(1.0, "of the ranking term", least=0)
    beta: float = key(5.0, "of the loss dpo, on mean log-probabilities a token", above=0)
    restart: bool = key(False, "train the first model again in every iteration, on a schedule of its own")
    own_schedule: bool = key(False, "run through the learning rate's schedule in every iteration, not once over all")
    split_backward: bool = key(False, "one answer at a time through the model, so that memory does not grow with them")
    temperature: float = key(0.5, "of sampling", above=0)
    top_p: float = key(0.95, "of sampling", above=0, most=1)
    max_new_tokens: int = key(512, "longest answer, at most data.max_length; a longer one counts as failed", least=1)
    sample_batch: int = key(64, "answers sampled at a time", least=1)
    kl_limit: float | None = key(None, "stop when the model is this far from the first one, in nats a token")
    unique_least: float = key(0.0, "stop when fewer than this share of the answers differ", least=0, most=1)

    def settings(self, ctx: StageContext) -> LoopSettings:
        """What the trainer is told. Raises `ConfigError` for data that cannot be ranked."""
        from core.inference.request import SamplingParams
        from core.training.verifier_loop import LoopSettings

        data: Any = ctx.recipe.data
        if data.packing:
            raise ConfigError("rows with candidates cannot be packed", where="data.packing", hint="set packing: false")
        if not isinstance(ctx.train, Sequence):
            raise ConfigError("iterations need the rows in memory", where="data.streaming", hint="set streaming: false")
        train = ctx.recipe.train
        if (self.own_schedule or self.restart) and (train.max_steps is not None or train.epochs % self.iterations):
            raise ConfigError(
                f"{self.iterations} iterations with a schedule of their own want as many equal numbers of epochs",
                where="with.own_schedule" if self.own_schedule else "with.restart",
                hint=f"leave out train.max_steps, and train.epochs: {2 * self.iterations}",
            )  # fmt: skip
        longest = min(self.max_new_tokens, data.max_length)
        return LoopSettings(
            self.iterations, self.samples_per_prompt - 1, self.loss, self.gap, self.margin, self.weight, self.beta,
            restart=self.restart, own_schedule=self.own_schedule, split=self.split_backward, batch=self.sample_batch,
            sampling=SamplingParams(longest, temperature=self.temperature, top_p=self.top_p),
            kl_limit=self.kl_limit, unique_least=self.unique_least,
        )  # fmt: skip
