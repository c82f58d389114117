"""A decoder learns to read in both directions before it learns to embed (BehnamGhader et al. 2024, LLM2Vec).

Its attention has just been opened, which its weights never saw. `embeddings.warm` hides a share of the tokens of the
training texts and has them told: by a decoder from the state before each, as it always predicted, by an encoder from
its own state (Devlin et al. 2019). The vocabulary's embeddings read the states, so no head is added and none stays.
On a model without weights this is its pretraining.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from core.config.limits import MASKED
from core.config.registry import method
from core.config.schema import key
from core.errors import DataError

if TYPE_CHECKING:
    import torch

    from core.training.stage import Stage, StageContext


@dataclass(frozen=True)
class WarmConfig:
    """Options of `embeddings.warm`."""

    share: float = key(0.2, "of the tokens, hidden at every step", above=0, most=0.9)


@method("embeddings.warm", config=WarmConfig, limits=MASKED)
def warm(ctx: StageContext) -> Stage:
    """Hidden tokens of all texts of the examples, whatever their kind."""
    from core.data.segments import Segment
    from core.inference.pseudo import mask_id
    from core.training.stage import Stage

    texts = texts_of(ctx.train)
    if not texts:
        raise DataError("embeddings.warm needs texts", hint="any reader of this app gives them")
    return Stage(
        rows=[[Segment(text, train=True)] for text in texts],
        encoder=_encoded,
        trainer=_trainer(),
        trainer_options={
            "share": ctx.options.share,
            "hide_with": mask_id(ctx.tokenizer),
            "special": sorted({i for i in ctx.tokenizer.all_special_ids if i is not None}),
        },
    )


def texts_of(examples: Any) -> list[str]:
    """Every text of the examples once, in order."""
    found = (text for e in examples for text in (e.text, *e.pos, *e.neg, *([e.text2] if e.text2 else [])))
    return list(dict.fromkeys(found))


def _encoded(rows: Any, tokenizer: Any, *, mode: Any, max_length: int) -> tuple[Any, Any]:
    """Rows that stay apart: in a pack, opened attention would see across texts."""
    from core.data.dataset import EncodedDataset
    from core.data.encode import encode_rows

    encoded, stats = encode_rows(rows, tokenizer, mode=mode, max_length=max_length)
    return EncodedDataset(encoded, None), stats


def told(module: Any, hidden: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Summed loss of the hidden tokens in nats, and their number.

    Args:
        hidden, mask, labels: (n, l) ids with some hidden, 1 where there is text, the hidden tokens' ids or −100.
    """
    from torch.nn import functional as F

    states = module.states(hidden, mask)
    if getattr(module.config, "is_causal", None) is not None:
        states, labels = states[:, :-1], labels[:, 1:]
    chosen = labels != -100
    logits = states[chosen] @ module.encoder.get_input_embeddings().weight.T
    return F.cross_entropy(logits.float(), labels[chosen], reduction="sum"), chosen.sum()


def _trainer() -> type:
    from core.training.masked import corrupt
    from core.training.trainer import SupervisedTrainer

    class WarmTrainer(SupervisedTrainer):
        """`share` of the tokens hidden anew at every step."""

        def __init__(self, *args: Any, share: float, hide_with: int, special: list[int], **options: Any) -> None:
            import torch

            super().__init__(*args, **options)
            self.corrupt = partial(corrupt, share=share, hide_with=hide_with)
            self.share, self.special = share, torch.tensor(special, device=self.args.device)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            import torch

            module, ids = self.accelerator.unwrap_model(model), inputs["input_ids"]
            # rows that all fill their length come without a mask
            mask = inputs.get("attention_mask", torch.ones_like(ids))
            eligible = mask.bool() & ~torch.isin(ids, self.special)
            vocabulary = module.encoder.get_input_embeddings().weight.shape[0]
            hidden, labels = self.corrupt(ids, eligible, vocabulary=vocabulary)
            total, count = told(module, hidden, mask, labels)
            self._useful = self._useful + mask.sum()
            if num_items_in_batch is not None:
                # The step's tokens times the share, so that a gradient does not depend on how the step was cut.
                expected = torch.as_tensor(num_items_in_batch, device=total.device) * self.share
                return total / expected.clamp(min=1) * self.accelerator.num_processes
            return total / count.clamp(min=1)

        def held_out(self, dataset: Any) -> dict[str, float]:
            """Nothing: what is hidden by chance is no measure, the next stage's figures are."""
            return {}

    return WarmTrainer
