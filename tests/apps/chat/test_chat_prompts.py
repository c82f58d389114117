"""Conversations as segments: what is learnt, the same prompt in training and serving, templates that are refused."""

from __future__ import annotations

import pytest

from apps.chat import ChatPipeline
from apps.chat.data import ChatExample
from apps.chat.prompts import RENDERERS, chosen, segments
from core.data.encode import encode, encode_prompt
from core.errors import TemplateError
from core.models.tokenizer import train_bpe

TURNS = (("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi."), ("user", "How are you?"))
OWN = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["Hello. How are you? Be kind. Hi. I am well, thank you."] * 5, 400)


@pytest.fixture
def with_template(tokenizer):
    tokenizer.chat_template = OWN
    yield tokenizer
    tokenizer.chat_template = None


def text(made, learnt=None):
    return "".join(s.text for s in made if learnt is None or s.train == learnt)


@pytest.mark.parametrize("template", [*RENDERERS, "model"])
def test_only_the_assistant_is_learnt_and_the_text_is_the_rendering(with_template, template):
    tokenizer = with_template
    whole = (*TURNS, ("assistant", "I am well."))
    made = segments(whole, tokenizer, template)
    learnt = [s.text.strip() for s in made if s.train]
    assert [part.split("<")[0].strip() for part in learnt] == ["Hi.", "I am well."]
    assert [s.train for s in segments(whole, tokenizer, template, every_turn=False)].count(True) == 1
    if template == "model":
        given = [{"role": r, "content": c} for r, c in whole]
        assert text(made) == tokenizer.apply_chat_template(given, tokenize=False)
    else:
        assert text(made) == RENDERERS[template](whole, False)


@pytest.mark.parametrize("template", [*RENDERERS, "model"])
def test_the_prompt_is_the_same_in_training_and_in_serving(with_template, template):
    tokenizer = with_template
    row = encode(segments((*TURNS, ("assistant", "I am well.")), tokenizer, template, every_turn=False), tokenizer)
    at = next(i for i, label in enumerate(row.labels) if label >= 0)
    prompt = encode_prompt(segments(TURNS, tokenizer, template), tokenizer)
    assert row.input_ids[:at] == prompt and not row.straddled
    pipeline = ChatPipeline.from_pretrained("any", engine="tiny", template=template)
    pipeline.tokenizer = tokenizer
    assert pipeline.prepare(ChatExample(TURNS)).ids == prompt


def test_only_what_the_user_said_may_be_cut(tokenizer):
    asked = "Hello Hello Hello Hello Hello Hello"
    made = segments((("user", asked), ("assistant", "Hi.")), tokenizer, "chatml")
    full = encode(made, tokenizer)
    short = encode(made, tokenizer, max_length=len(full.input_ids) - 3)
    shown = tokenizer.decode(short.input_ids)
    assert shown.startswith("<|im_start|>user\nHello") and "<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>" in shown


def test_auto_takes_the_models_own_template(tokenizer):
    assert chosen("auto", tokenizer) == "plain"
    tokenizer.chat_template = OWN
    assert chosen("auto", tokenizer) == "model"
    tokenizer.chat_template = None
    with pytest.raises(TemplateError, match="no chat template"):
        chosen("model", tokenizer)
    with pytest.raises(TemplateError, match="chatml"):
        chosen("chatlm", tokenizer)


def test_a_template_whose_beginning_changes_with_the_end_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages|length }} turns{% for m in messages %} {{ m['content'] }}{% endfor %}"
    with pytest.raises(TemplateError, match="beginning"):
        segments((*TURNS, ("assistant", "I am well.")), tokenizer, "model")
    tokenizer.chat_template = None
