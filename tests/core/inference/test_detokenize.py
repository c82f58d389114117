"""Streams of text: joined they are the whole decoding, for every kind of tokenizer and for nonsense ids too."""

from __future__ import annotations

import json
import random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from core.inference.detokenize import Detokenizer
from core.inference.stopping import find_stop, held_back, ids_until_stop
from core.models.tokenizer import train_bpe

SENTENCES = """The quick brown fox.|Grüße aus Köln, schön!|Où est l'hôtel ?|你好，世界。|こんにちは世界|안녕하세요 세계
Привет, мир!|مرحبا بالعالم|नमस्ते दुनिया|שלום עולם|ไทยไม่มีช่องว่าง|Zażółć gęślą jaźń|naïve “quotes” — dash…|𝒳 ∈ ℝⁿ
👩‍👩‍👧‍👦 family 🏳️‍🌈""".replace("\n", "|").split("|")
SENTENCES += ["  two  spaces  ", "line\nbreak\n\n", "tab\tend", "e\u0301 combining", "\u200d zero \u200b width"]


def byte_level():
    return train_bpe(SENTENCES[:6], 320)


def _llama_like(strip: bool):
    """BPE on metaspace words with byte fallback, decoded as Llama's and Mistral's tokenizers decode."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "</s>", "<pad>"], show_progress=False)
    inner.train_from_iterator(SENTENCES[:3] * 3, trainer)
    # Byte tokens are ordinary tokens, not special ones: they are added to the trained vocabulary itself.
    state = json.loads(inner.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary.update({f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)})
    state["model"].update(byte_fallback=True, fuse_unk=True)
    inner = Tokenizer.from_str(json.dumps(state))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def llama():
    return _llama_like(True)


def metaspace():
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "</s>", "<pad>"], show_progress=False)
    inner.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def wordpiece():
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", "</s>", "[PAD]"], show_progress=False)
    inner.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="[PAD]", unk_token="[UNK]")


@pytest.fixture(scope="module", params=[byte_level, llama, metaspace, wordpiece], ids=lambda f: f.__name__)
def tokenizer(request):
    return request.param()


def whole(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def pieces(tokenizer, ids):
    stream = Detokenizer(tokenizer)
    return [*(stream.add([i]) for i in ids), stream.flush()]


def strings(count, seed=0):
    rng = random.Random(seed)
    for _ in range(count):
        yield rng.choice(["", " ", "\n"]).join(
            "".join(rng.choices(rng.choice(SENTENCES), k=rng.randint(1, 9))) for _ in range(rng.randint(1, 4))
        )


def test_joined_pieces_are_the_whole_text(tokenizer):
    for text in [*SENTENCES, *strings(2500)]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "".join(pieces(tokenizer, ids)) == whole(tokenizer, ids), text


def test_joined_pieces_are_the_whole_text_of_random_ids(tokenizer):
    rng = random.Random(1)
    for _ in range(400):
        ids = rng.choices(range(len(tokenizer)), k=rng.randint(1, 30))
        assert "".join(pieces(tokenizer, ids)) == whole(tokenizer, ids), ids


def test_no_piece_holds_half_a_character(tokenizer):
    for text in SENTENCES:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert not any("\ufffd" in piece for piece in pieces(tokenizer, ids)[:-1])


def test_bytes_that_turn_out_wrong_are_held_back():
    tokenizer = llama()
    you, broken = [tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>") for b in "你".encode()], [300]
    assert whole(tokenizer, you) == "你"
    assert "你" not in whole(tokenizer, you + broken), "the decoder keeps valid characters: nothing to test"
    assert "".join(pieces(tokenizer, you + broken)) == whole(tokenizer, you + broken)


def test_text_comes_while_it_is_made():
    tokenizer = byte_level()
    ids = tokenizer("The quick brown fox. " * 5, add_special_tokens=False)["input_ids"]
    got = pieces(tokenizer, ids)
    assert sum(bool(piece) for piece in got[:-1]) > 0.9 * len(ids)
    assert got[-1] == ""


def test_stop_strings_in_text():
    assert find_stop("a##b#", ("#", "##")) == 1
    assert find_stop("abc", ("x", "")) is None
    assert held_back("abc##", ("###",)) == 2
    assert held_back("abc", ("###",)) == 0
    assert held_back("###", ("####", "#?")) == 3
    assert ids_until_stop([1, 2, 3, 4], ("c",), lambda ids: "abcd"[: len(ids)]) == [1, 2, 3]
