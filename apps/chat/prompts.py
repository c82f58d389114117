"""Conversations as segments: by the model's own chat template, or by one of ours.

Only the assistant's words are learnt, each with the mark that ends its turn. A model's own template is a program that
renders whole conversations; the segments are found by rendering every beginning of the conversation, and a template for
which a beginning is not the beginning of the whole is refused, because its prompts in training would not be those in
serving.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from core.data.segments import Segment
from core.errors import TemplateError, nearest

Messages = Sequence[tuple[str, str]]
Renderer = Callable[[Messages, bool], str]


def chatml(messages: Messages, reply: bool) -> str:
    """OpenAI's ChatML; `reply` opens the assistant's turn."""
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)
    return text + ("<|im_start|>assistant\n" if reply else "")


def alpaca(messages: Messages, reply: bool) -> str:
    """Alpaca's headings (Taori et al. 2023), a turn each."""
    names = {"system": "", "user": "### Instruction:\n", "assistant": "### Response:\n"}
    text = "".join(f"{names[role]}{content}\n\n" for role, content in messages)
    return text + ("### Response:\n" if reply else "")


def plain(messages: Messages, reply: bool) -> str:
    """Names and lines, for base models without special tokens."""
    names = {"system": "System", "user": "User", "assistant": "Assistant"}
    text = "".join(f"{names[role]}: {content}\n" for role, content in messages)
    return text + ("Assistant:" if reply else "")


RENDERERS: dict[str, Renderer] = {"chatml": chatml, "alpaca": alpaca, "plain": plain}
STOPS = {"chatml": ("<|im_end|>",), "alpaca": ("\n\n### ",), "plain": ("\nUser:",)}
Template = Literal["auto", "model", "chatml", "alpaca", "plain"]
NAMES = get_args(Template)


def chosen(name: str, tokenizer: Any) -> str:
    """The template that "auto" stands for: the model's own where it has one, else "plain".

    Raises:
        TemplateError: an unknown name, or "model" for a tokenizer without a template.
    """
    if name not in NAMES:
        raise TemplateError(
            f"unknown chat template '{name}'", hint=nearest(name, NAMES) or f"known: {', '.join(NAMES)}"
        )
    own = bool(getattr(tokenizer, "chat_template", None))
    if name == "auto":
        return "model" if own else "plain"
    if name == "model" and not own:
        raise TemplateError("the model's tokenizer has no chat template", hint=f"choose one of {', '.join(RENDERERS)}")
    return name


def renderer(name: str, tokenizer: Any) -> Renderer:
    """The function that renders messages by the template `name` (not "auto")."""
    if name != "model":
        return RENDERERS[name]

    def render(messages: Messages, reply: bool) -> str:
        given = [{"role": role, "content": content} for role, content in messages]
        return tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=reply)

    return render


def segments(messages: Messages, tokenizer: Any, template: str = "auto", *, every_turn: bool = True) -> list[Segment]:
    """The conversation in pieces: what is given, and what the assistant says with the mark that ends its turn.

    Args:
        messages: (role, text) turns. When the user is last they are a prompt, which opens the assistant's turn and in
            which nothing is learnt.
        every_turn: learn all of the assistant's turns, or the last one alone.

    Raises:
        TemplateError: the model's template does not render a conversation turn by turn.
    """
    render = renderer(chosen(template, tokenizer), tokenizer)
    answered = bool(messages) and messages[-1][0] == "assistant"
    last = len(messages) - 1 if answered else None
    found: list[Segment] = []
    done = ""

    def add(text: str, train: bool, asked: str = "") -> None:
        nonlocal done
        if not text.startswith(done):
            raise TemplateError(
                "the model's chat template renders the beginning of a conversation otherwise than the whole",
                where=repr(text[: len(done)][-60:]),
                hint=f"choose another template: {', '.join(RENDERERS)}",
            )
        if len(text) > len(done):
            piece = text[len(done) :]
            at = piece.rfind(asked) if asked and not train else -1
            source = (at, at + len(asked)) if at >= 0 else None
            found.append(Segment(piece, "assistant" if train else "user", train, source))
        done = text

    for index, (role, _) in enumerate(messages):
        if role == "assistant":
            add(render(messages[:index], True), False, messages[index - 1][1] if index else "")
            add(render(messages[: index + 1], False), index == last or (every_turn and answered))
    if not answered:
        add(render(messages, True), False, messages[-1][1] if messages else "")
    return found
