"""A recording in place of a model: first a wrong attempt, then the repaired one, for a few generated tasks.

With it the demo shows writing, checking and repairing on any machine. It answers only what was recorded.
"""

from __future__ import annotations

from apps.rtl.example import RtlExample
from apps.rtl.harness import reference_as_candidate
from apps.rtl.taskgen import make
from core.errors import BackendUnavailable
from core.inference.engines.script import ScriptEngine

_TASKS = (
    ("counter", {"width": 4, "modulo": 10, "down": False, "enable": True, "reset": "sync_high"}, "4'd9", "4'd10"),
    ("arbiter", {"size": 4, "kind": "lowest", "reset": "async_low"}, "req & (~req + 4'd1)", "req"),
    ("sequence", {"pattern": "1011", "overlap": True, "reset": "sync_high"}, "s <= x ? 2'd1 : 2'd2",
     "s <= x ? 2'd0 : 2'd2"),
    ("alu", {"width": 8, "ops": ("add", "sub", "and", "or"), "zero": True}, "a - b", "b - a"),
    ("fifo", {"depth": 4, "width": 8, "reset": "sync_high"}, "if (rd && !empty)", "if (rd)"),
    ("shifter", {"width": 8, "kind": "arithmetic"}, "$signed(d) >>> n", "d >>> n"),
)  # fmt: skip


def examples() -> list[RtlExample]:
    """The recorded tasks."""
    return [make(name, params) for name, params, _, _ in _TASKS]


class RecordedEngine(ScriptEngine):
    """Answers the recorded tasks: the repair when the prompt shows a wrong attempt, else the wrong attempt."""

    def __init__(self) -> None:
        self._known = {}
        for example, (_, _, right, wrong) in zip(examples(), _TASKS):
            code = reference_as_candidate(example)
            assert right in code, example.id
            self._known[example.spec] = (code.replace(right, wrong, 1), code)
        super().__init__(self._answer)

    def _answer(self, prompt: str) -> str:
        for spec, (wrong, right) in self._known.items():
            if spec in prompt:
                return right if "This attempt is wrong" in prompt else wrong
        raise BackendUnavailable(
            "no model is loaded, and this task was not recorded",
            hint="choose one of the examples, check code of your own, or open the demo with --run",
        )
