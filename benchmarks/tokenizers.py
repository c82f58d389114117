"""Eight tokenizers of the kinds that models come with, trained on the spot.

They differ in what goes wrong elsewhere: a beginning of text or none, padding that is the end of text, a space that is
put in front, digits cut apart, bytes or pieces, BPE or Unigram.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"


def eight(texts: Sequence[str], size: int = 1200) -> dict[str, Any]:
    """Name → fast tokenizer, all able to write every text in `texts`."""
    from tokenizers import Regex, pre_tokenizers

    space, digits = pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.Split(Regex(r"\s?\p{L}+|\s?\p{N}{1,3}|\s?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return {
        "bytes": _bytes(texts, size, space),
        "bytes, padding is end of text": _bytes(texts, size, space, pad=EOS),
        "bytes, beginning of text": _bytes(texts, size, space, bos=True),
        "bytes, digits apart": _bytes(texts, size, pre_tokenizers.Sequence([digits, space])),
        "bytes, own words": _bytes(texts, size, pre_tokenizers.Sequence([words, plain])),
        "pieces, space in front": _pieces(texts, size, "BPE", "first"),
        "pieces, nothing in front": _pieces(texts, size, "BPE", "never", bos=False),
        "unigram, beginning of text": _pieces(texts, size, "Unigram", "first"),
    }


def _bytes(texts: Sequence[str], size: int, splitter: Any, *, pad: str = PAD, bos: bool = False) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = splitter, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return _wrap(inner, bos, pad_token=pad)


def _pieces(texts: Sequence[str], size: int, kind: str, prepend: str, *, bos: bool = True) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = [UNK, BOS, EOS, PAD]
    if kind == "BPE":
        inner = Tokenizer(models.BPE(unk_token=UNK))
        trainer: Any = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    else:
        inner = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token=UNK, show_progress=False)
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    inner.decoder = decoders.Metaspace(prepend_scheme=prepend)
    inner.train_from_iterator(texts, trainer)
    return _wrap(inner, bos, pad_token=PAD, unk_token=UNK)


def _wrap(inner: Any, bos: bool, **tokens: str) -> Any:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    if bos:
        special = [(BOS, inner.token_to_id(BOS))]
        inner.post_processor = TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=special)
        tokens["bos_token"] = BOS
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=EOS, **tokens)
