"""The loss on what the base knew, before and after: what a training run costs in forgetting.

The text is named by `eval.retention`, as sources of plain documents; for the shipped base, whose own held-out text is
known, `true` is enough. A document longer than the run's `max_length` is read in pieces of that length.
"""

from __future__ import annotations

from typing import Any

from core.config.registry import get_app
from core.config.schema import Recipe
from core.data.collate import Collator
from core.data.dataset import EncodedDataset
from core.data.encode import Encoded, encode
from core.data.rows import BadRows, read_sources
from core.data.segments import Segment
from core.errors import DataError

TEXT_APP = "lm"
DOCUMENTS, PIECES = 200, 400


def retention_rows(recipe: Recipe, tokenizer: Any) -> EncodedDataset | None:
    """Held-out text of the base; None where none is known or it was not asked for.

    Raises:
        DataError: sources without text.
    """
    asked = recipe.eval.retention
    if isinstance(asked, list) and asked:
        examples = read_sources(get_app(TEXT_APP), asked, BadRows("raise", None), recipe.seed)
        texts = [example.text for example in examples]
    elif asked is True and recipe.model.path == "embedded":
        from core.data.embedded import held_out_text

        texts = list(held_out_text(DOCUMENTS))
    else:
        return None
    size = recipe.data.max_length
    documents = [row.input_ids for text in texts if (row := encode([Segment(text, "document", True)], tokenizer))]
    pieces = [ids[start : start + size] for ids in documents for start in range(0, len(ids), size)]
    pieces = [piece for piece in pieces if len(piece) > 1][:PIECES]
    if not pieces:
        raise DataError("there is no text to measure retention on", field="eval.retention")
    return EncodedDataset([Encoded(piece, list(piece)) for piece in pieces])


def retained(model: Any, rows: EncodedDataset, tokenizer: Any) -> float:
    """Mean loss a token of `rows` under the model as it is now."""
    from core.training.trainer import mean_loss

    return mean_loss(model, rows, Collator(tokenizer.pad_token_id or 0))[0]
