"""Eight kinds of tokenizer, each trained once, that between them split text in every way that matters."""

from __future__ import annotations

from functools import lru_cache

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Translate this from German to English:\nGerman: Das ist ein kleines Haus.\nEnglish: This is a small house.",
    "Translate this from English to German:\nEnglish: The dog sees a cat.\nGerman: Der Hund sieht eine Katze.",
    "You translate from German to English. Q: How do you say this German text in English? A: The trees are green.",
    "user system assistant Translate the following text. Translation: Die Kinder spielen im Garten und lachen.",
    "Words 0 1 2 3 4 5 6 7 8 9 , . ! ? : ; [ ] < > | _ - ' \" ( ) { } / = + ä ö ü ß Ä Ö Ü é",
] * 4
SPECIALS = ["<unk>", "<s>", "</s>", "<pad>"]


def _wrap(inner: Tokenizer, **names: str) -> PreTrainedTokenizerFast:
    given = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"} | names
    return PreTrainedTokenizerFast(tokenizer_object=inner, **given)


def _byte_level(space: bool, size: int = 400) -> Tokenizer:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    return inner


def _metaspace(model, trainer, scheme: str) -> Tokenizer:
    inner = Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    inner.decoder = decoders.Metaspace(prepend_scheme=scheme)
    inner.train_from_iterator(TEXTS, trainer)
    return inner


def byte_bpe():
    return _wrap(_byte_level(False))


def byte_bpe_prefix_space():
    return _wrap(_byte_level(True))


def byte_bpe_pad_is_eos():
    return _wrap(_byte_level(False), pad_token="</s>", bos_token="</s>")


def byte_bpe_bos():
    inner = _byte_level(False)
    begin = inner.token_to_id("<s>")
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return _wrap(inner, bos_token="<s>")


def bpe_metaspace():
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIALS, show_progress=False)
    return _wrap(_metaspace(models.BPE(unk_token="<unk>"), trainer, "first"))


def unigram_metaspace():
    trainer = trainers.UnigramTrainer(vocab_size=260, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    return _wrap(_metaspace(models.Unigram(), trainer, "always"))


def wordpiece():
    inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=SPECIALS, show_progress=False)
    inner.train_from_iterator(TEXTS, trainer)
    ids = [("<s>", inner.token_to_id("<s>")), ("</s>", inner.token_to_id("</s>"))]
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    return _wrap(inner, bos_token="<s>")


def wordlevel():
    inner = Tokenizer(models.WordLevel(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=SPECIALS, show_progress=False))
    return _wrap(inner)


KINDS = {
    f.__name__: f
    for f in (
        byte_bpe,
        byte_bpe_prefix_space,
        byte_bpe_pad_is_eos,
        byte_bpe_bos,
        bpe_metaspace,
        unigram_metaspace,
        wordpiece,
        wordlevel,
    )
}
EXACT = {"byte_bpe", "byte_bpe_prefix_space", "byte_bpe_pad_is_eos", "byte_bpe_bos", "bpe_metaspace"}


@lru_cache
def trained(name: str):
    return KINDS[name]()


@pytest.fixture(params=sorted(KINDS))
def kind(request):
    """(name, tokenizer, whether it gives every text back exactly)."""
    return request.param, trained(request.param), request.param in EXACT


@pytest.fixture(name="byte_bpe")
def _byte_bpe():
    return trained("byte_bpe")


@pytest.fixture
def make():
    return trained
