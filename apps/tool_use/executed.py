"""Whether calls did the right thing: they and the gold calls are run on two copies of a world, which must end alike.

The verdict is that of the leaderboard's multi-turn categories (Patil et al. 2025): after each turn every object's
public attributes are equal, and all that the gold calls of the turn returned was returned to the model by then, in any
order. Where the gold turn is empty the model must not call. Worlds are Python classes; they run in the sandbox, and
calls reach them as data, never as code.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apps.tool_use.calls import Call
from apps.tool_use.executors.observation import FAILED, OK, Observation
from apps.tool_use.spec import ToolSpec
from core.errors import BackendUnavailable, ConfigError, DataError
from core.execution import Policy, Sandbox

BFCL_MODULES = {
    "GorillaFileSystem": "gorilla_file_system", "MathAPI": "math_api", "MessageAPI": "message_api",
    "TicketAPI": "ticket_api", "TradingBot": "trading_bot", "TravelAPI": "travel_booking", "TwitterAPI": "posting_api",
    "VehicleControlAPI": "vehicle_control",
}  # fmt: skip
BFCL_PACKAGE = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"

_INSIDE = """
import copy, importlib, inspect, json

WORLDS = {}

def begin(classes, config, extra):
    WORLDS.clear()
    for side in ("model", "gold"):
        WORLDS[side] = {}
        for name, module in classes.items():
            made = (getattr(importlib.import_module(module), name) if module else globals()[name])()
            load = getattr(made, "_load_scenario", None)
            if load is not None:
                known = {k: v for k, v in extra.items() if k in inspect.signature(load).parameters}
                load(copy.deepcopy(config.get(name, {})), **known)
            WORLDS[side][name] = made

def run(side, calls):
    return [one(side, *call) for call in calls]

def one(side, name, args, kwargs):
    methods = [getattr(world, name) for world in WORLDS[side].values() if inspect.ismethod(getattr(world, name, None))]
    if name.startswith("_") or not methods:
        return f"Error during execution: name '{name}' is not defined"
    try:
        value = methods[-1](*args, **kwargs)
    except Exception as error:
        return f"Error during execution: {error}"
    if isinstance(value, dict):
        try:
            return json.dumps(value)
        except TypeError:
            return str(value)
    return value if isinstance(value, str) else str(value)

def differences():
    found = []
    for name, gold in WORLDS["gold"].items():
        for attribute, value in vars(gold).items():
            if not attribute.startswith("_") and getattr(WORLDS["model"][name], attribute, None) != value:
                found.append(f"{name}.{attribute}")
    return found
"""


@dataclass(frozen=True)
class Episode:
    """A conversation in which each turn of the user is answered by calls on a world.

    Args:
        turns: for each turn its (role, text) messages. expected: for each turn the gold calls as Python text.
        classes: of the world. config: for each class what it starts from.
    """

    turns: tuple[tuple[tuple[str, str], ...], ...]
    expected: tuple[tuple[str, ...], ...]
    classes: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[ToolSpec, ...] = ()
    id: str | None = None

    @property
    def query(self) -> str:
        return "\n".join(text for turn in self.turns for _, text in turn)


@dataclass(frozen=True)
class StateVerdict:
    """Right or not; the kind of the first error, the turn it is in, and what differs."""

    valid: bool
    error: str | None = None
    turn: int | None = None
    detail: str = ""


class World:
    """Two copies of some classes, the model's and the gold one, in the sandbox.

    Args:
        source: Python that defines classes. modules: class → module, for classes of a package. packages: folders that
            hold the packages; they are visible inside, read-only.
    """

    def __init__(
        self, source: str = "", modules: Mapping[str, str] | None = None, packages: Sequence[str] = (),
        timeout_s: float = 20,
    ) -> None:  # fmt: skip
        self.modules = dict(modules or {})
        hidden = [folder for folder in packages if Path(folder).is_relative_to("/tmp")]
        if hidden:
            raise ConfigError(
                f"{hidden[0]} is not visible in the sandbox, whose /tmp is its own", hint="move it elsewhere"
            )
        box = Sandbox.best(Policy(mem_mb=1024, ro=tuple(packages)))
        self._worker = box.worker(f"{source}\n{_INSIDE}", timeout_s=timeout_s, paths=tuple(packages))

    @classmethod
    def bfcl(cls, folder: str | None = None) -> World:
        """The leaderboard's worlds, from the folder that holds the package `bfcl_eval`, which BFCL_EVAL names."""
        folder = folder or os.environ.get("BFCL_EVAL")
        if not folder or not (Path(folder) / "bfcl_eval").is_dir():
            raise BackendUnavailable(
                "the leaderboard's worlds are not here",
                hint="pip download --no-deps bfcl-eval, unpack the wheel, and name its folder by BFCL_EVAL",
            )
        packages = [str(Path(folder).resolve())]
        import importlib.util

        found = importlib.util.find_spec("mpmath")
        if found is not None and found.origin is not None:
            packages.append(str(Path(found.origin).resolve().parent.parent))
        return cls("", {name: f"{BFCL_PACKAGE}.{module}" for name, module in BFCL_MODULES.items()}, packages)

    def judge(self, episode: Episode, turns: Sequence[Sequence[Sequence[Any]]]) -> StateVerdict:
        """The verdict on the model's calls.

        Args:
            turns: for each turn its steps, for each step its calls: `Call`s, their dictionaries or Python text.

        Raises:
            DataError: another number of turns than the episode has.
        """
        if len(turns) != len(episode.expected):
            raise DataError(f"{len(turns)} turns of calls for {len(episode.expected)} turns", field=episode.id)
        self.begin(episode)
        returned: list[str] = []
        for number, (steps, gold) in enumerate(zip(turns, episode.expected)):
            calls = [call for step in steps for call in step]
            returned += self._ask("run", "model", [as_data(call) for call in calls])
            expected = self._ask("run", "gold", [as_data(call) for call in gold])
            if not gold:
                if calls:
                    return StateVerdict(False, "multi_turn:irrelevance_error:decoder_success", number, str(calls[0]))
                continue
            if not calls:
                return StateVerdict(False, "multi_turn:empty_turn_model_response", number)
            different = self._ask("differences")
            if different:
                return StateVerdict(False, "multi_turn:instance_state_mismatch", number, ", ".join(different))
            left = list(returned)
            for text in expected:
                if text not in left:
                    return StateVerdict(False, "multi_turn:execution_response_mismatch", number, text[:200])
                left.remove(text)
        return StateVerdict(True)

    def begin(self, episode: Episode) -> None:
        """Both copies as the episode starts from."""
        modules = {name: self.modules.get(name) for name in episode.classes}
        self._ask("begin", modules, dict(episode.config), {"long_context": False})

    def run_all(self, calls: Sequence[Call]) -> list[Observation]:
        """Run the model's calls; the observations, whole."""
        texts = self._ask("run", "model", [as_data(call) for call in calls])
        return [Observation(text, FAILED if text.startswith("Error during execution") else OK) for text in texts]

    def _ask(self, function: str, *arguments: Any) -> Any:
        answer = self._worker.call(function, *arguments)
        if not answer.ok:
            said = answer.error or answer.status
            raise BackendUnavailable(f"the world failed: {said}", hint=answer.traceback or None)
        return answer.value

    def close(self) -> None:
        self._worker.close()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()


Asked = Callable[[Sequence[ToolSpec], Sequence[Mapping[str, Any]]], tuple[str, list[Call]]]
"""Tools and a conversation → what the model says in words, and its calls."""


def play(ask: Asked, episode: Episode, world: World, most: int = 20) -> list[list[list[dict[str, Any]]]]:
    """A model's calls in an episode: for each turn its steps, until a step without calls or `most` of them."""
    world.begin(episode)
    messages: list[dict[str, Any]] = []
    turns: list[list[list[dict[str, Any]]]] = []
    for given in episode.turns:
        messages += [{"role": role, "content": text} for role, text in given]
        steps: list[list[dict[str, Any]]] = []
        while len(steps) < most:
            words, calls = ask(episode.tools, messages)
            made = [{"id": f"{len(turns)}.{len(steps)}.{n}", **call.to_dict()} for n, call in enumerate(calls)]
            messages.append({"role": "assistant", "content": words, **({"tool_calls": made} if made else {})})
            if not calls:
                break
            for call, seen in zip(made, world.run_all(calls)):
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": seen.text})
            steps.append([call.to_dict() for call in calls])
        turns.append(steps)
    return turns


def as_data(call: Any) -> list[Any]:
    """[name, positional arguments, named arguments] of a call, of its dictionary or of its Python text.

    Raises:
        DataError: no call, or an argument that is no literal.
    """
    if isinstance(call, Call):
        return [call.name, [], dict(call.arguments)]
    if isinstance(call, Mapping) and isinstance(call.get("name"), str):
        return [call["name"], [], dict(call.get("arguments", {}))]
    try:
        node = ast.parse(str(call).strip(), mode="eval").body
        if not isinstance(node, ast.Call):
            raise ValueError("no call")
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        return [ast.unparse(node.func).rpartition(".")[2], [ast.literal_eval(arg) for arg in node.args], named]
    except (SyntaxError, ValueError) as error:
        raise DataError(f"not a call with literal arguments: {error}", got=call) from error
