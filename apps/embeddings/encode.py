"""Ids of texts for embedding models: an instruction in front, end of text behind, and what to pool.

The prompt is tokenised together with its text, as serving libraries do; offsets say which tokens belong to it. A
tokenizer without an ending of its own gets one (`with_ending`), so that the ids are the same wherever it is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import AppInputError, CheckpointError


@dataclass(frozen=True)
class Text:
    """Ids (l,), how many of the first ones are not pooled, and whether the text was cut."""

    ids: list[int]
    prompt: int
    cut: bool = False


def with_ending(tokenizer: Any) -> Any:
    """`tokenizer` as one that ends every text with its end of text, and pads behind it, as `padded` does.

    Raises:
        CheckpointError: a tokenizer that tells no offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError("embedding needs a fast tokenizer", hint="convert it to tokenizer.json")
    # Absolute positions count padding in front.
    tokenizer.padding_side = "right"
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    ids = tokenizer("a")["input_ids"]
    if not ids or ids[-1] not in ends:
        from tokenizers.processors import Sequence as Chain
        from tokenizers.processors import TemplateProcessing

        eos, backend = tokenizer.eos_token, tokenizer.backend_tokenizer
        ending = TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, tokenizer.eos_token_id)])
        before = backend.post_processor
        backend.post_processor = ending if before is None else Chain([before, ending])
        if tokenizer("a")["input_ids"][-1] != tokenizer.eos_token_id:
            raise CheckpointError("the tokenizer takes no ending", where=type(tokenizer).__name__)
    return tokenizer


def encode_texts(tokenizer: Any, texts: Sequence[str], prompts: Sequence[str], max_length: int) -> list[Text]:
    """Each text behind its prompt, cut to `max_length` ids; the last id, its ending, stays.

    Raises:
        AppInputError: what is no text or empty, or a prompt that leaves no room; the numbers of the rows are named.
    """
    strange = [i for i, text in enumerate(texts) if not _is_text(text)]
    if strange:
        first = texts[strange[0]]
        kind = "half a character" if isinstance(first, str) else type(first).__name__
        raise AppInputError(f"{len(strange)} inputs are no texts, rows {strange[:5]}: {kind}", hint="give text")
    empty = [i for i, text in enumerate(texts) if not text.strip()]
    if empty:
        raise AppInputError(f"{len(empty)} empty texts, rows {empty[:5]}", hint="leave them out or fill them")
    if not texts:
        return []
    joined = [prompt + text for prompt, text in zip(prompts, texts)]
    made = tokenizer(joined, return_offsets_mapping=any(prompts), verbose=False)
    found = []
    for row, (ids, prompt) in enumerate(zip(made["input_ids"], prompts)):
        given = 0
        if prompt:
            offsets = made["offset_mapping"][row]
            # Special tokens have empty spans; those in front of the prompt go with it.
            spans = [end for start, end in offsets]
            given = next((i for i, end in enumerate(spans) if end > len(prompt)), len(ids) - 1)
        cut = len(ids) > max_length
        if cut:
            ids = [*ids[: max_length - 1], ids[-1]]
        if given >= len(ids) - 1 and prompt:
            raise AppInputError(f"the instruction of row {row} leaves no room for its text", hint="raise max_length")
        found.append(Text(ids, given, cut))
    return found


def _is_text(given: object) -> bool:
    """A string of whole characters: JSON can spell half of a surrogate pair, which no tokenizer reads."""
    try:
        return isinstance(given, str) and (given.isascii() or given.encode() is not None)
    except UnicodeEncodeError:
        return False


def by_length(lengths: Sequence[int], budget: int, least: int = 1024) -> list[list[int]]:
    """Numbers of texts in groups of like length, the longest first; a group's padded tokens stay within `budget`.

    A group of `least` tokens, which is worth a pass of its own, ends before a text shorter than seven eighths of its
    longest: padding is then under an eighth of it.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups: list[list[int]] = []
    for number in order:
        if groups:
            group, longest = groups[-1], lengths[groups[-1][0]]
            full = len(group) * longest >= least and 8 * lengths[number] < 7 * longest
            if not full and (len(group) + 1) * longest <= budget:
                group.append(number)
                continue
        groups.append([number])
    return groups


def padded(texts: Sequence[Text], pad: int) -> dict[str, Any]:
    """`input_ids`, `attention_mask` and `pool_mask`, each (n, longest), padded on the right."""
    import torch

    lengths = torch.tensor([len(text.ids) for text in texts])
    prompts = torch.tensor([text.prompt for text in texts])
    places = torch.arange(int(lengths.max()))
    mask = places < lengths[:, None]
    ids = torch.full(mask.shape, pad, dtype=torch.long)
    ids[mask] = torch.tensor([number for text in texts for number in text.ids])
    return {
        "input_ids": ids,
        "attention_mask": mask.long(),
        "pool_mask": (mask & (places >= prompts[:, None])).long(),
    }
