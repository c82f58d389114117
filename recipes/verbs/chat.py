"""`graft chat`: talk to a run or a model in the terminal, answers as they are written."""

from __future__ import annotations

import argparse
import sys

from recipes.verbs import count, share

EXAMPLES = """  graft chat runs/sft/42
  graft chat /models/base --template chatml --system "Answer in one sentence."
  echo "What is a crepe?" | graft chat runs/sft/42"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="run folder, model folder, hub id or embedded")
    parser.add_argument("--template", default=None, help="chat template; by default the one of training")
    parser.add_argument("--system", default=None, help="text that opens the conversation")
    parser.add_argument("--temperature", type=share, default=0.0, help="0 always takes the most probable token")
    parser.add_argument("--max-new-tokens", type=count, default=512)
    parser.add_argument("--device", default="auto")


def run(options: argparse.Namespace) -> int:
    from apps.chat import ChatPipeline
    from core.errors import AppInputError

    given = {name: getattr(options, name) for name in ("template", "system") if getattr(options, name) is not None}
    sampling = {"temperature": options.temperature, "max_new_tokens": options.max_new_tokens}
    terminal = sys.stdin.isatty()
    with ChatPipeline.from_pretrained(options.model, device=options.device, **given) as chat:
        if terminal:
            print("an empty line ends, /new starts over")
        turns: list[dict[str, str]] = []
        while (asked := _ask(terminal)) is not None:
            if asked == "/new":
                turns = []
                continue
            turns.append({"role": "user", "content": asked})
            answer = ""
            try:
                for event in chat.stream({"messages": turns}, **sampling):
                    if event.kind == "text":
                        answer += event.text
                        print(event.text, end="", flush=True)
            except AppInputError as error:
                if not terminal:
                    raise
                # the conversation is still there: a shorter question, or a new start, goes on with it
                print(f"{error.what}; ask something shorter, or start over with /new")
                turns.pop()
                continue
            print()
            turns.append({"role": "assistant", "content": answer})
    return 0


def _ask(terminal: bool) -> str | None:
    """The next thing said, None at the end. Piped lines are questions one after the other.

    Raises:
        AppInputError: what is piped in is no UTF-8.
    """
    from core.errors import AppInputError

    if terminal:
        try:
            return input("> ").strip() or None
        except EOFError:
            return None
    try:
        for line in sys.stdin:
            if line.strip():
                return line.strip()
    except UnicodeDecodeError as error:
        hint = "convert it, e.g. iconv -f latin1 -t utf-8"
        raise AppInputError(f"what is piped in is not UTF-8 (byte {error.start})", hint=hint) from error
    return None
