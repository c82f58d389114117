"""From a question and tools to calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from apps.tool_use import prompts
from apps.tool_use.calls import Call, check_format, constraint, parse
from apps.tool_use.data import ToolExample
from apps.tool_use.spec import as_spec, check_tools
from core.errors import AppInputError
from core.inference.pipeline import BasePipeline, PipelineConfig
from core.inference.request import Output, Request, Result

KEPT = 64


@dataclasses.dataclass(frozen=True)
class FunctionCallConfig(PipelineConfig):
    """Args:
    template: of the prompt. form: how calls are written; both as in training.
    constrained: only calls that the tools' schemas accept can be written. most: calls at most; null is any number.
    """

    template: str | None = "plain"
    form: str = "json"
    constrained: bool = True
    most: int | None = None


class FunctionCallPipeline(BasePipeline):
    """`call({"query": …, "tools": […]})` gives the calls as text and, in `meta["calls"]`, as data. It runs none."""

    app = "tool_use"
    example_cls = ToolExample
    default_template = "plain"
    config_cls = FunctionCallConfig

    def to_example(self, given: Any, tools: Any = None) -> ToolExample:
        """An example from an example, a question with `tools=`, or {"query", "tools"}; tools may be functions."""
        if isinstance(given, ToolExample):
            return given
        if isinstance(given, str):
            given = {"query": given, "tools": tools}
        if not isinstance(given, Mapping) or not isinstance(given.get("query"), str):
            raise AppInputError(f"cannot use {type(given).__name__} as a question", hint='{"query": …, "tools": […]}')
        unknown = set(given) - set(ToolExample.__dataclass_fields__)
        if unknown:
            raise AppInputError(
                f"unknown field '{sorted(unknown)[0]}'", hint='{"query": …, "tools": […], "calls"?: […]}'
            )
        if not given.get("tools"):
            raise AppInputError("no tools were given", hint="tools: functions, chat-completions entries or ToolSpecs")
        specs = tuple(as_spec(tool) for tool in given["tools"])
        check_tools(specs)
        calls = given.get("calls")
        right = None if calls is None else tuple(c if isinstance(c, Call) else Call(**c) for c in calls)
        rest = {k: given[k] for k in ("expected", "category", "context", "id") if k in given}
        return ToolExample(given["query"], specs, right, **rest)

    def prepare(self, example: ToolExample) -> Request:
        if not example.query.strip():
            raise AppInputError("the question is empty")
        template, form = self.config.template or "plain", check_format(self.config.form)
        request = self.request(prompts.segments(example, template, form))
        context = getattr(self.engine, "context", None)
        if context is not None and len(request.ids) >= context:
            raise AppInputError(
                f"the tools and the question take {len(request.ids)} tokens and the model's context is {context}",
                hint=f"offer fewer than {len(example.tools)} tools, chosen by a retriever",
            )
        if not self.config.constrained or self.tokenizer is None:
            return dataclasses.replace(request, stop=("\n\n", "<|im_end|>"))
        return dataclasses.replace(request, constraint=self._constraint(example))

    def _constraint(self, example: ToolExample) -> Any:
        """The constraint of these tools, kept for the next question with the same ones."""
        import json

        known = self.__dict__.setdefault("_constraints", {})
        key = json.dumps([tool.to_chat() for tool in example.tools], sort_keys=True)
        if key not in known:
            while len(known) >= KEPT:
                known.pop(next(iter(known)))
            model = getattr(self.engine, "model", None)
            size = getattr(getattr(model, "config", None), "vocab_size", 0) or 0
            known[key] = constraint(example.tools, self.tokenizer, self.config.form, most=self.config.most, size=size)
        return known[key]

    def finish(self, request: Request, output: Output) -> Result:
        text = output.text.strip()
        parsed = parse(text, self.config.form)
        meta = {"calls": [call.to_dict() for call in parsed.calls], "notes": parsed.notes, "rest": parsed.rest}
        return Result(text, meta)

    def target_text(self, target: str) -> str:
        return f" {target}" if (self.config.template or "plain") == "plain" else target
