"""Inputs and expected outputs of an example, made by its reference in the sandbox.

The reference is somebody's Python, so it runs in a warm interpreter inside the sandbox and only bytes come back: named
inputs and weights, outputs in float64, and the types that the module returns. The expected output is never where a
candidate runs.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apps.cuda.example import CudaExample
from apps.cuda.plan import Signature, Spec, output_names
from core.config.files import write_text
from core.errors import BackendUnavailable, SandboxError
from core.execution import Policy, Sandbox, Worker

SMALL_CASE = 1 << 14
"""Elements of inputs and weights of a case for the emulator."""
DEFAULT_TOLERANCE = {"float64": 1e-8, "float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-2}


class InvalidProblem(Exception):
    """The reference itself fails; nobody can solve this."""


class TooLarge(InvalidProblem):
    """The problem cannot be made small enough to be emulated; a GPU may still judge it."""


@dataclass(frozen=True)
class Case:
    """One set of inputs.

    Args:
        signature: names, types and shapes. inputs: bytes by name, weights among them. expected: float64 (or integer)
        arrays by output name. eager: largest relative error of the module in its own precision. sizes: constants
        that were changed. given: which of the inputs are forward's own; the others are weights.
    """

    signature: Signature
    inputs: Mapping[str, bytes]
    expected: Mapping[str, np.ndarray]
    eager: float = 0.0
    sizes: Mapping[str, int] = field(default_factory=dict)
    given: tuple[str, ...] = ()

    @property
    def shapes(self) -> str:
        return ", ".join(f"{n} {list(s.shape)}" for n, s in self.signature.inputs.items())

    def tolerance(self, name: str, asked: float | None) -> float:
        """Absolute and relative tolerance of an output: what was asked for, else by its type; 0 for integers."""
        dtype = self.signature.outputs[name].dtype
        if dtype not in DEFAULT_TOLERANCE:
            return 0.0
        return asked if asked is not None else DEFAULT_TOLERANCE[dtype]


class Oracle:
    """Makes cases, each example's once. Safe to share between threads.

    Args:
        level: least isolation. trials, seed, limit: number of cases, their seed, elements of one. nearby: also odd
            shapes and ones that no block divides, where the reference allows. folder: where cases are kept.
    """

    def __init__(self, level: str = "strict", trials: int = 6, seed: int = 0, limit: int = SMALL_CASE,
                 nearby: bool = True, folder: str | Path | None = None) -> None:  # fmt: skip
        self.level, self.trials, self.seed, self.limit, self.nearby = level, trials, seed, limit, nearby
        self.folder = Path(folder) if folder is not None else None
        self._known: dict[str, list[Case] | InvalidProblem] = {}
        self._lock = threading.Lock()
        self._worker: Worker | None = None

    def cases(self, example: CudaExample) -> list[Case]:
        """The cases of an example. Raises `InvalidProblem` when its reference fails."""
        with self._lock:
            key = f"{example.key}-{self.trials}-{self.seed}-{self.limit}-{int(self.nearby)}"
            if key not in self._known:
                try:
                    self._known[key] = self._read(self._reply(key, example), example)
                except InvalidProblem as error:
                    self._known[key] = error
            found = self._known[key]
        if isinstance(found, InvalidProblem):
            raise found
        return found

    def close(self) -> None:
        """End the interpreter."""
        with self._lock:
            if self._worker is not None:
                self._worker.close()
                self._worker = None

    def _reply(self, key: str, example: CudaExample) -> dict[str, Any]:
        place = None if self.folder is None else self.folder / f"{key}.json"
        if place is not None and place.is_file():
            try:
                return json.loads(place.read_text(encoding="utf-8"))
            except json.JSONDecodeError:
                place.unlink()
        if self._worker is None:
            self._worker = start_worker(self.level)
        answer = self._worker.call(
            "cases", example.reference, example.sizes, self.trials, self.seed, self.limit, self.nearby
        )
        if answer.status != "ok":
            raise InvalidProblem(f"the reference ends with {answer.status}: {answer.error}"[:300])
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_text(place, json.dumps(answer.value))
        return answer.value

    @staticmethod
    def _read(reply: Mapping[str, Any], example: CudaExample) -> list[Case]:
        if reply.get("where") == "size":
            raise TooLarge(f"it cannot be made small enough: {reply['error']}")
        if "error" in reply:
            at = f", line {reply['line']}" if reply.get("line") else ""
            raise InvalidProblem(f"{reply['where']} of the reference{at}: {reply['error']}")
        found = []
        for row in reply["cases"]:
            given = {**row["inputs"], **row["weights"]}
            inputs = {name: Spec(dtype, tuple(shape)) for name, (dtype, shape, _) in given.items()}
            names = output_names(len(row["outputs"]))
            outputs = {n: Spec(kind, tuple(o[1])) for n, kind, o in zip(names, row["types"], row["outputs"])}
            expected = {n: as_array(*o) for n, o in zip(names, row["outputs"])}
            found.append(
                Case(
                    Signature(inputs, outputs, row["numbers"]),
                    {n: base64.b64decode(d) for n, (_, _, d) in given.items()},
                    expected, max(row["eager"], default=0.0), row["sizes"], tuple(row["inputs"]),
                )
            )  # fmt: skip
        return found


def as_array(dtype: str, shape: list[int], data: str) -> np.ndarray:
    """An array from what `inside/cases.py` packs."""
    return decoded(base64.b64decode(data), Spec(dtype, tuple(shape)))


def decoded(data: bytes, spec: Spec) -> np.ndarray:
    """Bytes as an array; bfloat16, which numpy lacks, becomes float32."""
    if spec.dtype == "bfloat16":
        words = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
        return words.view(np.float32).reshape(spec.shape)
    return np.frombuffer(data, np.dtype(spec.dtype)).reshape(spec.shape)


def start_worker(level: str = "strict", timeout_s: float = 120.0) -> Worker:
    """An interpreter with torch inside the sandbox.

    Raises:
        BackendUnavailable: the interpreter of the sandbox cannot import this torch.
    """
    paths = site_packages()
    policy = Policy(
        wall_s=timeout_s, mem_mb=4096, address_space=False, max_procs=64, max_output_kb=32 << 10, tmp_mb=128, ro=paths,
        env={"OMP_NUM_THREADS": "1"}, level=level,  # type: ignore[arg-type]
    )  # fmt: skip
    source = (Path(__file__).parent / "inside" / "cases.py").read_text(encoding="utf-8")
    try:
        return Worker(Sandbox.best(policy), source, timeout_s=timeout_s, startup_s=60, paths=paths)
    except SandboxError as error:
        if "the source fails" not in error.what:
            raise
        raise BackendUnavailable(
            f"the sandbox's Python cannot import torch: {error.what}",
            hint="it runs the system's Python: install torch for that version, or do not run as root",
        ) from error


def bundled(*names: str, exports: str) -> str:
    """A worker's source that holds files of `inside/` as modules: the sandbox need not see this checkout.

    Args:
        names: of the files, those that others import first. exports: what the last one gives, comma-separated.
    """
    folder = Path(__file__).parent / "inside"
    texts = {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in names}
    return (
        f"import sys, types\nfor name, text in {texts!r}.items():\n    module = types.ModuleType(name)\n"
        "    sys.modules[name] = module\n    exec(compile(text, name + '.py', 'exec'), module.__dict__)\n"
        f"from {names[-1]} import {exports}\n"
    )


def site_packages() -> tuple[str, ...]:
    """Folders that hold torch and numpy."""
    places = []
    for name in ("torch", "numpy"):
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise BackendUnavailable(f"{name} is not installed", hint=f"pip install {name}")
        places.append(str(Path(spec.submodule_search_locations[0]).parent))
    return tuple(dict.fromkeys(places))
