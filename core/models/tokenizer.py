"""Train a tokenizer, and add tokens to a model without disturbing what it knows.

The trained kind is byte-level BPE (Sennrich et al. 2016; Radford et al. 2019): every text round-trips, no token is
unknown. End of text and padding are different tokens, so that padding is never mistaken for an end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from core.errors import ConfigError, DataError

EOS, PAD = "<|endoftext|>", "<|pad|>"
CHAT_MARKERS = ("<|im_start|>", "<|im_end|>")


def train_bpe(texts: Iterable[str], vocab_size: int, specials: Sequence[str] = CHAT_MARKERS) -> Any:
    """A byte-level BPE tokenizer of `vocab_size` tokens as a transformers tokenizer; deterministic in its texts.

    Raises:
        ConfigError: a vocabulary too small for the 256 bytes and the special tokens.
        DataError: no text.
    """
    least = 256 + 2 + len(specials)
    if vocab_size < least:
        raise ConfigError(f"a byte-level vocabulary needs at least {least} tokens, got {vocab_size}")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD, *specials],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    seen = 0

    def counted():
        nonlocal seen
        for text in texts:
            seen += 1
            yield text

    inner.train_from_iterator(counted(), trainer)
    if not seen:
        raise DataError("no text to train a tokenizer on")
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=EOS, pad_token=PAD)


def add_tokens(model: Any, tokenizer: Any, tokens: Sequence[str], seed: int = 0) -> list[int]:
    """Add special tokens; their rows start at the mean of the known rows plus small noise (Hewitt 2021). Returns ids.

    The mean keeps the new tokens' logits near the average, so the first steps do not collapse onto them. Tokens that
    are known keep their rows. The `tie_word_embeddings` flag is set to what the model is.
    """
    import torch

    known = len(tokenizer)
    added = [t for t in dict.fromkeys(tokens) if t not in tokenizer.get_vocab()]
    tokenizer.add_tokens(added, special_tokens=True)
    tied = is_tied(model)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.config.tie_word_embeddings = tied
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    tables = [model.get_input_embeddings(), *([] if tied else [model.get_output_embeddings()])]
    with torch.no_grad():
        for weight in (table.weight for table in tables if table is not None):
            mean, scale = weight[:known].float().mean(0), weight[:known].float().std()
            noise = torch.randn(len(tokenizer) - known, mean.shape[0], generator=generator).to(mean.device)
            weight[known : len(tokenizer)] = (mean + 0.02 * scale * noise).to(weight.dtype)
    write_tied(model)
    return tokenizer.convert_tokens_to_ids(list(tokens))


def is_tied(model: Any) -> bool:
    """Whether head and embedding are one tensor."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def write_tied(model: Any) -> None:
    """Make the config say what the model is: a stale flag loses the head at reload."""
    model.config.tie_word_embeddings = is_tied(model)
