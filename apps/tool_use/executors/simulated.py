"""A model plays the tools from their documents (ToolAlpaca, Tang et al. 2023): tools that nobody has can be used.

What it says for a call is kept, so that the same call has one answer in the life of the cache.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from apps.tool_use.calls import Call
from apps.tool_use.executors.observation import FAILED, Executor, Failure
from apps.tool_use.executors.replay import call_key
from apps.tool_use.spec import ToolSpec
from core.errors import DataError

PROMPT = """You are the function {name}. {description}
Its parameters: {parameters}
Its result: {returns}
Answer with the JSON that it returns for these arguments, and nothing else.
Arguments: {arguments}
Result:"""


class Simulated(Executor):
    """Asks `model(prompt) -> text` what a call returns.

    Args:
        model: any pipeline's text: `lambda prompt: chat(prompt).text`. cache: JSONL of earlier answers; None keeps them
            in memory. An answer that is no JSON is an observation that says so.
    """

    def __init__(
        self, model: Callable[[str], str], tools: Sequence[Any], *, cache: str | Path | None = None, **options: Any
    ) -> None:
        super().__init__(tools, **options)
        self.model, self.cache = model, None if cache is None else Path(cache)
        self._answers: dict[str, str] = {}
        self._lock = threading.Lock()
        if self.cache is not None and self.cache.is_file():
            for number, line in enumerate(self.cache.read_text(encoding="utf-8").splitlines(), 1):
                try:
                    row = json.loads(line)
                    self._answers[row["key"]] = row["text"]
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise DataError("not a kept answer", file=self.cache, line=number, got=line) from error

    def prompt(self, tool: ToolSpec, arguments: dict[str, Any]) -> str:
        """What the model is asked."""
        returns = json.dumps(tool.returns, ensure_ascii=False) if tool.returns else "any JSON"
        return PROMPT.format(
            name=tool.name, description=tool.description, returns=returns,
            parameters=json.dumps(tool.to_chat()["function"]["parameters"], ensure_ascii=False),
            arguments=json.dumps(arguments, ensure_ascii=False),
        )  # fmt: skip

    def _call(self, tool: ToolSpec, arguments: dict[str, Any]) -> Any:
        key = call_key(Call(tool.name, arguments))
        with self._lock:
            if key not in self._answers:
                self._answers[key] = self.model(self.prompt(tool, arguments)).strip()
                if self.cache is not None:
                    with open(self.cache, "a", encoding="utf-8") as handle:
                        handle.write(json.dumps({"key": key, "text": self._answers[key]}, ensure_ascii=False) + "\n")
            text = self._answers[key]
        try:
            return json.JSONDecoder().raw_decode(text)[0]
        except json.JSONDecodeError:
            raise Failure(FAILED, f"The function answered no JSON: {text[:200]}") from None
