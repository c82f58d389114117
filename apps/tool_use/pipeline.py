"""From a question and tools to calls (`FunctionCallPipeline`), and on to an answer (`ToolUsePipeline`)."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

from apps.tool_use import prompts
from apps.tool_use.calls import Call, Parsed, check_format, constraint, parse
from apps.tool_use.data import ToolExample
from apps.tool_use.session import FINISH, Outcome, Session
from apps.tool_use.spec import ToolSpec, as_spec, check_tools
from apps.tool_use.trace import ToolEvent, Trace, answered, prompt_key
from core.data.segments import Segment
from core.errors import AppInputError, ConfigError
from core.inference.pipeline import BasePipeline, PipelineConfig
from core.inference.request import Event, Output, Request, Result, SamplingParams

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
    from_training = ("template", "mode", "form")
    config: FunctionCallConfig

    @classmethod
    def _read_card(cls, folder: str) -> dict[str, Any]:
        """Of a model that another of this app's methods made, the settings that are also this pipeline's."""
        card = super()._read_card(folder)
        config = {k: v for k, v in card.get("config", {}).items() if k in cls.config_cls.__dataclass_fields__}
        return {**card, "config": config} if card else {}

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
        self._check_room(request, example.tools)
        return self._kept(request, example.tools)

    def _check_room(self, request: Request, tools: Sequence[ToolSpec]) -> None:
        context = getattr(self.engine, "context", None)
        if context is not None and len(request.ids) >= context:
            raise AppInputError(
                f"the tools and the question take {len(request.ids)} tokens and the model's context is {context}",
                hint="offer fewer tools, chosen by a retriever, or take a model with a longer context",
            )

    def _kept(self, request: Request, tools: Sequence[ToolSpec], thought: bool = False) -> Request:
        """The request, its answer kept to calls of these tools where the configuration says so."""
        if not self.config.constrained or self.tokenizer is None:
            return dataclasses.replace(request, stop=prompts.STOPS)
        known = self.__dict__.setdefault("_constraints", {})
        key = json.dumps([thought, *(tool.to_chat() for tool in tools)], sort_keys=True)
        if key not in known:
            while len(known) >= KEPT:
                known.pop(next(iter(known)))
            model = getattr(self.engine, "model", None)
            size = getattr(getattr(model, "config", None), "vocab_size", 0) or 0
            known[key] = constraint(
                tools, self.tokenizer, self.config.form, most=self.config.most, size=size, thought=thought
            )
        return dataclasses.replace(request, constraint=known[key])

    def predict(self, examples: Sequence[Any], **gen: Any) -> list[Any]:
        """Texts with calls; of episodes the calls of every turn, made in the leaderboard's worlds."""
        from apps.tool_use.executed import Episode, World, play

        if not examples or not isinstance(examples[0], Episode):
            return super().predict(examples, **gen)
        sampling, _ = self._split(gen)
        template, form = self.config.template or "plain", check_format(self.config.form)

        def ask(tools: Sequence[ToolSpec], messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[Call]]:
            request = self.request(prompts.conversation(tools, messages, template, form, steps=False, turns=True))
            context = getattr(self.engine, "context", None)
            if context is not None and len(request.ids) + sampling.max_new_tokens > context:
                return "", []
            (output,) = self.engine.generate([dataclasses.replace(request, stop=prompts.STOPS)], sampling)
            parsed = parse(output.text.strip(), form)
            return parsed.rest, parsed.calls

        with World.bfcl() as world:
            return [play(ask, episode, world) for episode in examples]

    def finish(self, request: Request, output: Output) -> Result:
        text = output.text.strip()
        parsed = parse(text, self.config.form)
        meta = {"calls": [call.to_dict() for call in parsed.calls], "notes": parsed.notes, "rest": parsed.rest}
        return Result(text, meta)

    def target_text(self, target: str) -> str:
        return f" {target}" if (self.config.template or "plain") == "plain" else target


@dataclasses.dataclass(frozen=True)
class ToolUseConfig(FunctionCallConfig):
    """Args:
    strategy: single (calls at once, then an answer in words), react (one chain), dfsdt (depth-first search) or latm
        (a made tool). store: folder of the tools of latm.
    max_calls: model calls of a question. max_depth: nodes of a chain: thoughts, tool names and arguments.
    width, answers, climb, ranked: of dfsdt; see `methods.dfsdt.Dfsdt`. most: calls of a step.
    """

    strategy: Literal["single", "react", "dfsdt", "latm"] = "react"
    store: str | None = None
    most: int | None = 1
    max_calls: int = 200
    max_depth: int = 12
    width: int = 2
    answers: int = 1
    climb: int = 2
    ranked: bool = False


class ToolUsePipeline(FunctionCallPipeline):
    """`use("question")` works with the tools until it can answer.

    The result's text is the answer; `meta` holds `calls`, `finish` (why it ended), `model_calls` and the `trace`, a
    `Trace` as data. `stream` tells thoughts, calls and observations while they happen.

    Args:
        tools: what is offered; None takes the executor's. executor: runs the calls, see `apps.tool_use.executors`.
    """

    config_cls = ToolUseConfig
    config: ToolUseConfig

    def __init__(
        self,
        engine: Any,
        tokenizer: Any,
        config: ToolUseConfig | None = None,
        *,
        tools: Sequence[Any] | None = None,
        executor: Any = None,
    ) -> None:
        super().__init__(engine, tokenizer, config)
        self.use(executor, tools)

    def use(self, executor: Any, tools: Sequence[Any] | None = None) -> Self:
        """Work with this executor from now on. Raises `ConfigError` for a tool that it cannot run."""
        self.executor = executor
        self.tools = tuple(as_spec(tool) for tool in (tools if tools is not None else getattr(executor, "tools", ())))
        check_tools(self.tools)
        runs = {tool.name for tool in getattr(executor, "tools", self.tools)}
        for tool in self.tools:
            if tool.name == FINISH.name:
                raise ConfigError(f"'{FINISH.name}' is how a strategy ends", hint="give the tool another name")
            if executor is not None and tool.name not in runs:
                raise ConfigError(f"nothing runs the tool '{tool.name}'", hint="give the executor a function for it")
        return self

    @classmethod
    def from_model(
        cls, model: Any, tokenizer: Any, *, tools: Sequence[Any] | None = None, executor: Any = None, **config: Any
    ) -> Self:
        """Serve a model in memory; what one step has in common with the last is not computed again."""
        from core.inference.engines.prefix import PrefixEngine

        made = PrefixEngine(model, tokenizer)
        return cls(made, tokenizer, cls._config(config), tools=tools, executor=executor)

    @classmethod
    def from_pretrained(
        cls, path: Any, *, tools: Sequence[Any] | None = None, executor: Any = None, **options: Any
    ) -> Self:
        return super().from_pretrained(path, **options).use(executor, tools)

    def to_example(self, given: Any, tools: Any = None) -> ToolExample:
        if self.config.strategy == "latm" and isinstance(given, str):
            return ToolExample(given, ())
        if isinstance(given, str):
            given = {"query": given, "tools": tools if tools is not None else self.tools}
        elif isinstance(given, Mapping) and not given.get("tools"):
            given = {**given, "tools": self.tools}
        return super().to_example(given)

    def complete(self, prompt: str, **gen: Any) -> str:
        """What the model says to a prompt as it is: as maker, user or judge."""
        made = dataclasses.replace(self.request([Segment(prompt)]), stop=("<|im_end|>",))
        (output,) = self.engine.generate([made], self._split(gen)[0])
        return output.text.strip()

    def stream(self, given: Any, **gen: Any) -> Iterator[Event]:
        """Events of kind thought, call, observation and answer as they happen, then `done` with the result."""
        sampling, extra = self._split(gen)
        (example,) = self._examples([given], extra)
        yield from self._work(example, sampling)

    def _run(
        self, examples: Sequence[Any], sampling: SamplingParams, max_tokens: int, max_size: int, ordered: bool
    ) -> Iterator[Result]:
        for example in examples:
            *_, done = self._work(example, sampling)
            assert isinstance(done.result, Result)
            yield done.result

    def _work(self, example: ToolExample, sampling: SamplingParams) -> Iterator[Event]:
        start = time.perf_counter()
        session = self._session(example, sampling)
        running = self._strategy(session)
        outcome: Outcome
        while True:
            try:
                event = next(running)
            except StopIteration as ended:
                outcome = ended.value
                break
            yield dataclasses.replace(event, t_ms=(time.perf_counter() - start) * 1e3)
        elapsed = (time.perf_counter() - start) * 1e3
        result = self._result(example, session, outcome, elapsed)
        yield ToolEvent("answer", result.text, elapsed, root=session.root)
        yield ToolEvent("done", result.text, elapsed, session.asked, result, root=session.root)

    def _session(self, example: ToolExample, sampling: SamplingParams) -> Session:
        if not example.query.strip():
            raise AppInputError("the question is empty")
        if self.executor is None and self.config.strategy != "latm":
            raise ConfigError(
                "there is nothing that runs the calls",
                hint="executor=Local(functions, trusted=True), say; FunctionCallPipeline only writes calls",
            )
        c, steps = self.config, self.config.strategy in ("react", "dfsdt")
        offered = (*example.tools, FINISH) if steps else example.tools

        def request(messages: Sequence[Mapping[str, Any]]) -> Request:
            if c.strategy == "latm":
                return self.request([Segment(messages[-1]["content"])])
            turns = [*({"role": role, "content": text} for role, text in example.context), *messages]
            return self.request(prompts.conversation(offered, turns, c.template or "plain", c.form, steps=steps))

        def ask(messages: Sequence[Mapping[str, Any]]) -> tuple[str, str, Parsed]:
            made = request(messages)
            self._check_room(made, example.tools)
            words = c.strategy == "latm" or (not steps and any(message["role"] == "tool" for message in messages))
            made = dataclasses.replace(made, stop=prompts.STOPS) if words else self._kept(made, offered, steps)
            (output,) = self.engine.generate([made], sampling)
            text = output.text.strip()
            return made.text, text, Parsed([], text) if words else parse(text, c.form)

        def fits(messages: Sequence[Mapping[str, Any]]) -> bool:
            context = getattr(self.engine, "context", None)
            return context is None or len(messages) < 2 or len(request(messages).ids) + c.max_new_tokens <= context

        return Session(example.query, ask, self.executor, c.max_calls, c.max_depth, fits)

    def _strategy(self, session: Session) -> Generator[ToolEvent, None, Outcome]:
        c = self.config
        if c.strategy == "dfsdt":
            from apps.tool_use.methods.dfsdt import Dfsdt

            return Dfsdt(session, c.width, c.answers, c.climb, c.ranked).search()
        if c.strategy == "latm":
            from apps.tool_use.methods.latm import latm
            from apps.tool_use.tool_store import ToolStore

            if c.store is None:
                raise ConfigError("the strategy latm takes its tools from a store", hint="store: FOLDER")
            return latm(session, ToolStore(c.store))
        from apps.tool_use.methods.react import react, single

        return react(session) if c.strategy == "react" else single(session)

    def _result(self, example: ToolExample, session: Session, outcome: Outcome, elapsed: float) -> Result:
        node = outcome.node
        path = node.path() if node is not None else []
        calls = [
            {"name": step.parent.text, "arguments": json.loads(step.text), "observation": step.observation}
            for step in path
            if step.kind == "Action Input" and step.parent is not None and step.parent.text != FINISH.name
        ]
        answer = answered(node) if node is not None else ""
        if self.config.strategy in ("single", "latm") and outcome.finish == "answer" and node is not None:
            answer = node.text if node.kind == "Thought" else node.observation
        settings = {k: v for k, v in dataclasses.asdict(self.config).items() if v is not None}
        trace = Trace(
            example.query, [tool.to_chat() for tool in example.tools], self.config.strategy, settings,
            [dict(message) for message in node.messages] if node is not None else [], session.root.to_dict(),
            [[prompt_key(prompt), text] for prompt, text in session.exchanges], session.observations, answer,
            outcome.finish,
        )  # fmt: skip
        meta = {
            "prompt": session.exchanges[-1][0] if session.exchanges else "",
            "exchanges": session.exchanges,
            "calls": calls,
            "finish": outcome.finish,
            "model_calls": session.asked,
            "tool_calls": session.made,
            "trace": trace.to_dict(),
        }
        return Result(answer, meta, {"ms": elapsed})
