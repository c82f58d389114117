"""The one encoding: prompts are the same in training and serving, and what is learnt is the target and an end."""

from __future__ import annotations

import random

import pytest

from core.data.encode import IGNORE, EncodeStats, encode, encode_prompt, encode_rows
from core.data.segments import Segment, Template, render
from core.errors import DataError

TEMPLATES = [
    Template(name, (*(Segment(p) for p in prompt), Segment(sep + "{tgt}", "assistant", True)))
    for name, prompt, sep in (
        ("alma", ["Translate this from German to English:\nGerman: {src}\nEnglish:"], " "),
        ("codes", ["[de] {src}\n[en]"], " "),
        ("turns", ["<|im_start|>user\n{src}<|im_end|>\n", "<|im_start|>assistant:"], " "),
        ("question", ["Q: How do you say this German text in English? {src}\nA:"], " "),
    )
]
WORDS = "Das ist ein kleines Haus The dog sees a cat green trees Kinder spielen Garten 0 1 2 , . ! ? äöüß é".split()
WILD = ["日本語", "🙂", "a{b}c", "don't", "x  y", "</p>", "ﬁ", "e\u0301"]


def sentences(count: int, wild: bool = False):
    rng = random.Random(7)
    words = WORDS + (WILD if wild else [])
    return [" ".join(rng.choice(words) for _ in range(rng.randint(1, 9))) for _ in range(count)]


def learnt(row):
    return [label for label in row.labels if label != IGNORE]


@pytest.mark.parametrize("mode", ["offsets", "pieces"])
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_prompt_of_training_is_prompt_of_serving_and_target_plus_end_is_learnt(kind, template, mode):
    name, tokenizer, exact = kind
    texts = sentences(40, wild=name.startswith("byte"))
    for src, tgt in zip(texts, reversed(texts)):
        segments = render(template, {"src": src, "tgt": tgt})
        row = encode(segments, tokenizer, mode=mode)
        prompt = encode_prompt(segments, tokenizer, mode=mode)
        assert row.input_ids[: len(prompt)] == prompt
        assert row.labels == [IGNORE] * len(prompt) + row.input_ids[len(prompt) :]
        assert encode_prompt(segments[:-1], tokenizer, mode=mode) == prompt
        ids = learnt(row)
        assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1
        assert not row.straddled and row.cut == 0
        if exact:
            assert tokenizer.decode(ids[:-1]).strip() == tgt
        else:
            alone = tokenizer(tgt, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids[:-1]).split() == tokenizer.decode(alone).split()


@pytest.mark.parametrize("mode", ["offsets", "pieces"])
def test_rows_encoded_together_are_the_rows_encoded_alone(kind, mode):
    _, tokenizer, _ = kind
    rows = [render(TEMPLATES[0], {"src": s, "tgt": s[::-1].strip()}) for s in sentences(30)]
    together, stats = encode_rows(rows, tokenizer, mode=mode, max_length=60)
    alone = [e for r in rows if (e := encode(r, tokenizer, mode=mode, max_length=60)) is not None]
    assert together == alone
    assert stats.rows == 30 and stats.trained == sum(e.trained for e in alone)


def test_a_beginning_that_the_template_already_has_is_not_doubled(make):
    for name in ("byte_bpe_bos", "wordpiece"):
        tokenizer = make(name)
        begin = tokenizer.bos_token_id
        for opening in ("", "<s>"):
            segments = [Segment(opening + "German: Haus\nEnglish:"), Segment(" house", train=True)]
            for mode in ("offsets", "pieces"):
                row = encode(segments, tokenizer, mode=mode)
                assert row.input_ids.count(begin) == 1 and row.input_ids[0] == begin
                assert encode_prompt(segments, tokenizer, mode) == row.input_ids[: len(row.labels) - row.trained]


def test_training_ids_are_those_of_the_chat_template(make):
    """One beginning, and the same ids as `apply_chat_template(tokenize=True)` gives to a server."""
    tokenizer = make("byte_bpe_bos")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    messages = [{"role": "user", "content": "Das ist ein Haus."}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    served = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])
    segments = [Segment(text), Segment(" This is a house.", train=True)]
    row = encode(segments, tokenizer)
    assert served.count(tokenizer.bos_token_id) == 1
    assert row.input_ids[: len(served)] == served == encode_prompt(segments, tokenizer)


def test_an_end_in_the_text_is_not_doubled(byte_bpe):
    row = encode([Segment("Q:"), Segment(" yes</s>", train=True)], byte_bpe)
    assert learnt(row).count(byte_bpe.eos_token_id) == 1 and row.input_ids[-1] == byte_bpe.eos_token_id


def test_padding_equal_to_end_keeps_the_end(make):
    tokenizer = make("byte_bpe_pad_is_eos")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    row = encode([Segment("Q:"), Segment(" yes", train=True)], tokenizer)
    assert row.labels[-1] == tokenizer.eos_token_id


def test_a_token_across_the_border_is_counted_and_the_prompt_still_serves(byte_bpe):
    segments = [Segment("English: "), Segment("house", train=True)]
    row = encode(segments, byte_bpe)
    prompt = encode_prompt(segments, byte_bpe)
    assert row.straddled and row.input_ids[: len(prompt)] == prompt
    assert byte_bpe.decode(learnt(row)[:-1]) == "house"
    assert not encode(segments, byte_bpe, mode="pieces").straddled
    with pytest.raises(DataError, match="across the border"):
        encode_rows([segments] * 10, byte_bpe)
    fine = [Segment("English:"), Segment(" house", train=True)]
    encode_rows([segments] + [fine] * 300, byte_bpe)


def test_several_turns_learn_each_answer(byte_bpe):
    turns = [
        Segment("user: a\nassistant:"),
        Segment(" one\n", train=True),
        Segment("user: b\nassistant:"),
        Segment(" two", train=True),
        Segment("\nignored"),
    ]
    row = encode(turns, byte_bpe)
    assert byte_bpe.decode(learnt(row)[:-1]) == " one\n two"
    assert byte_bpe.decode(row.input_ids) == "user: a\nassistant: one\nuser: b\nassistant: two</s>"


@pytest.mark.parametrize("mode", ["offsets", "pieces"])
def test_only_the_end_of_the_source_is_cut(kind, mode):
    """Instruction, the source's beginning, cue, target and end stay, at every length that can hold them."""
    _, tokenizer, _ = kind
    segments = render(
        TEMPLATES[0], {"src": "ein Hund 0 1 2 3 4 5 6 7 8 9 , . ! ? : ; Das Haus", "tgt": "This is a house ."}
    )
    whole = encode(segments, tokenizer, mode=mode)
    cue = encode_prompt([Segment("Translate this from German to English:\nGerman:")], tokenizer)
    tails, shortest = set(), None
    for length in range(len(whole.input_ids) - 1, 0, -1):
        row = encode(segments, tokenizer, mode=mode, max_length=length)
        if row is None:
            shortest = shortest or length
            continue
        assert shortest is None, "a shorter row fitted where a longer one did not"
        assert len(row.input_ids) == length and row.cut == len(whole.input_ids) - length
        assert learnt(row) == learnt(whole)
        same = next(i for i, (a, b) in enumerate(zip(row.input_ids, whole.input_ids)) if a != b)
        assert same > len(cue), "the source has lost its first token"
        assert row.input_ids[same:] == whole.input_ids[same + row.cut :]
        tails.add(length - same)
    assert shortest is not None and len(tails) == 1, "what follows the source is the same at every length"
    assert whole.trained < tails.pop() < whole.trained + 12


def test_without_a_field_the_start_is_cut(byte_bpe):
    segments = [Segment("one two three four five six seven"), Segment(" end", train=True)]
    whole = encode(segments, byte_bpe)
    row = encode(segments, byte_bpe, max_length=len(whole.input_ids) - 4)
    assert row.input_ids == whole.input_ids[4:] and row.cut == 4


def test_rows_that_cannot_fit_are_counted(byte_bpe):
    long = render(TEMPLATES[0], {"src": "x", "tgt": "a very long target " * 20})
    short = render(TEMPLATES[0], {"src": "x", "tgt": "y"})
    rows, stats = encode_rows([short, long, short], byte_bpe, max_length=100)
    assert (len(rows), stats.rows, stats.dropped, stats.worst) == (2, 3, 1, [1])
    assert "1 rows dropped" in stats.summary() and "first: 2" in stats.summary()


def test_nothing_to_learn_is_an_error(byte_bpe):
    with pytest.raises(DataError, match="no token of 2 rows carries loss") as error:
        encode_rows([[Segment("only a prompt")]] * 2, byte_bpe)
    assert "max_length" in error.value.hint
    with pytest.raises(DataError, match="no rows"):
        encode_rows([], byte_bpe)
    with pytest.raises(DataError):
        EncodeStats(rows=1).check()


def test_a_beginning_is_given_also_where_a_document_brings_it(make):
    tokenizer = make("byte_bpe_bos")
    row = encode([Segment("<s>Haus", train=True)], tokenizer)
    assert row.input_ids[0] == tokenizer.bos_token_id and row.labels[0] == IGNORE
    assert tokenizer.bos_token_id not in row.input_ids[1:]


def test_a_document_is_learnt_whole(kind):
    _, tokenizer, _ = kind
    row = encode([Segment("Die Kinder spielen im Garten.", role="document", train=True)], tokenizer)
    prefix = len(row.labels) - row.trained
    assert row.input_ids[:prefix] == encode_prompt([], tokenizer)
    assert row.labels[-1] == tokenizer.eos_token_id
