"""What answers a control unit: an inference engine, or answers written down before.

Both are functions of the conversation alone, sampling included, so a resumed run goes on as the killed one would have.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Sequence
from typing import Any

from core.agents.control import SUMMARISE, Message, Model
from core.agents.instructions import InstructionRegistry
from core.errors import BackendUnavailable, DataError
from core.inference.request import Request, SamplingParams

PLAN = (
    "Plan the work on this task as a list of instructions that are carried out one after the other, each in a context "
    "that holds only the names of the files and a short summary of what was done. Answer with a JSON list of at most "
    "{most} texts and nothing else.\nTask: {task}"
)
_ENDS = ("\nUser:", "\nAssistant:")


class EngineModel:
    """A conversation through the tokenizer's chat template, or as plain turns where it has none.

    Args:
        reply: most tokens of an answer.
    """

    def __init__(self, engine: Any, tokenizer: Any, reply: int = 700) -> None:
        self.engine, self.tokenizer, self.reply = engine, tokenizer, reply

    def __call__(self, messages: Sequence[Message], temperature: float) -> str:
        prompt = self.render(messages)
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"] if self.tokenizer is not None else []
        sampling = SamplingParams(
            self.reply, temperature=temperature, top_p=0.95, stop=_ENDS, seed=zlib.crc32(prompt.encode())
        )
        return self.engine.generate([Request(ids, prompt)], sampling)[0].text.strip()

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt of a conversation."""
        if getattr(self.tokenizer, "chat_template", None):
            turns = [{"role": m.role, "content": m.text} for m in messages]
            return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        turns = [m.text if m.role == "system" else f"{m.role.capitalize()}: {m.text}" for m in messages]
        return "\n".join([*turns, "Assistant:"])

    def count(self, text: str) -> int:
        """Tokens of a text, and of what the template puts around a message."""
        return self._tokens(text) + self._around

    @functools.cached_property
    def _around(self) -> int:
        """The most that the template adds for a message of any role, with the opening of an answer."""
        system, user, assistant = (Message(role, "x") for role in ("system", "user", "assistant"))
        alone, given, answered = (
            self._tokens(self.render(talk)) for talk in ([user], [system, user], [user, assistant])
        )
        return max(alone, given - alone, answered - alone)

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])


class Recorded:
    """Answers by instruction and turn: `steps[i][k]` is the answer k of instruction i; summaries are `summary`.

    Raises:
        BackendUnavailable: an answer that was not recorded.
    """

    def __init__(self, steps: Sequence[Sequence[str]], summary: str = "Done as asked.") -> None:
        self.steps, self.summary = steps, summary

    def __call__(self, messages: Sequence[Message], temperature: float) -> str:
        if messages[-1].text == SUMMARISE:
            return self.summary
        at = re.search(r"^Instruction (\d+) of ", messages[1].text, re.MULTILINE)
        step, turn = int(at[1]) - 1 if at else 0, sum(m.role == "assistant" for m in messages)
        if step >= len(self.steps) or turn >= len(self.steps[step]):
            raise BackendUnavailable(
                f"no recorded answer {turn + 1} to instruction {step + 1}", hint="give a model to go on"
            )
        return self.steps[step][turn]


def planned(model: Model, task: str, *, most: int = 20, tries: int = 3) -> InstructionRegistry:
    """Instructions that the model itself makes of a task.

    Raises:
        DataError: no plan in any of its answers.
    """
    messages = [Message("user", PLAN.format(most=most, task=task))]
    for number in range(tries):
        answer = model(messages, 0.4 * number)
        try:
            registry = InstructionRegistry.from_plan(answer)
        except DataError as error:
            messages += [Message("assistant", answer[:2000]), Message("user", f"Error: {error.what}.")]
            continue
        if len(registry) <= most:
            return registry
        messages += [Message("assistant", answer[:2000]), Message("user", f"At most {most} instructions, please.")]
    raise DataError(f"the model made no plan in {tries} answers", hint="write the instructions into the program")
