"""From kernels to machine code for real GPUs, on a machine that needs none: nvcc or NVRTC inside the sandbox.

A cubin holds device code only, so compiling a candidate produces nothing that could run on the host. Diagnostics come
back by line, and ptxas says what each kernel takes of an SM. The same source, flags and compiler are compiled once.
"""

from __future__ import annotations

import functools
import glob
import importlib.util
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from apps.cuda.source import with_c_linkage
from apps.cuda.verdict import Diagnostic, Usage
from core.errors import ConfigError
from core.execution import ExecCache, ExecPool, Policy, Sandbox, Step, ToolMissing, tool

ARCHITECTURES = tuple(f"sm_{n}" for n in (75, 80, 86, 87, 88, 89, 90, "90a", 100, "100a", 103, 110, 120, 121))
MOST_ERRORS = 5
Compiler = Literal["auto", "nvcc", "nvrtc"]


@dataclass(frozen=True)
class Toolchain:
    """A compiler: the program or library at `path`, what must be visible to it, its include folders and its version."""

    kind: Literal["nvcc", "nvrtc"]
    path: str
    version: str
    visible: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()


@functools.lru_cache(maxsize=8)
def toolchain(compiler: Compiler = "auto") -> Toolchain:
    """The compiler of this machine: nvcc of CUDA_HOME, of PATH, of /usr/local/cuda, of the wheels; else NVRTC.

    Raises:
        ToolMissing: none is installed; the message names the package.
    """
    if compiler in ("auto", "nvcc"):
        homes = [os.environ.get("CUDA_HOME", ""), *sorted(glob.glob("/usr/local/cuda*"), reverse=True), *wheels()]
        places = [f"{home}/bin/nvcc" for home in homes if home]
        found = next((p for p in places if os.access(p, os.X_OK)), None) or shutil.which("nvcc")
        if found is not None:
            real = os.path.realpath(found)
            root = str(Path(real).parent.parent)
            version = tool(real).version
            return Toolchain("nvcc", real, version, () if root.startswith("/usr/") else (root,))
    if compiler in ("auto", "nvrtc"):
        libraries = [p for home in wheels() for p in sorted(glob.glob(f"{home}/lib*/libnvrtc.so.*"))]
        libraries += sorted(glob.glob("/usr/local/cuda*/lib64/libnvrtc.so.*"))
        libraries = [p for p in libraries if "builtins" not in p and ".alt" not in p]
        if libraries:
            root = str(Path(libraries[0]).parent.parent)
            includes = (f"{root}/include",) if os.path.isdir(f"{root}/include") else ()
            name = Path(libraries[0]).name
            return Toolchain(
                "nvrtc", libraries[0], f"NVRTC {name}", () if root.startswith("/usr/") else (root,), includes
            )
    asked = {"nvcc": "nvcc", "nvrtc": "NVRTC"}.get(compiler, "nvcc and NVRTC")
    raise ToolMissing(
        f"no CUDA compiler: {asked} not found (PyPI packages: nvidia-cuda-nvcc, nvidia-cuda-nvrtc). "
        "Compiling kernels needs one; policy, plans and the emulator still work.",
        hint="pip install 'graft[cuda]'; it needs no GPU",
    )


def wheels() -> list[str]:
    """Folders of NVIDIA's wheels, newest first: site-packages/nvidia/cu13, nvidia/cuda_nvcc, …"""
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        spec = None
    roots = list(spec.submodule_search_locations or ()) if spec else []
    return [p for root in roots for p in sorted(glob.glob(f"{root}/cu*"), reverse=True)]


@dataclass(frozen=True)
class Compiled:
    """The outcome for one architecture: `cubin` is None where the code does not compile."""

    arch: str
    cubin: bytes | None
    usage: tuple[Usage, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    log: str = ""
    status: str = "ok"
    cached: bool = False
    seconds: float = 0.0


class KernelCompiler:
    """Compiles sources for architectures. Safe to share between threads.

    Args:
        level: least isolation. cache: known results. compiler: nvcc, nvrtc, or whichever is there. seconds: of one run.

    Raises:
        ToolMissing: no compiler. SandboxError: no isolation as asked. ConfigError: an unknown architecture (`compile`).
    """

    def __init__(self, level: str = "strict", cache: ExecCache | None = None, compiler: Compiler = "auto",
                 seconds: float = 60.0) -> None:  # fmt: skip
        self.tools, self.cache = toolchain(compiler), cache
        policy = Policy(
            wall_s=seconds, cpu_s=seconds, mem_mb=3072, address_space=False, tmp_mb=256, fsize_mb=64, max_procs=64,
            max_output_kb=1024, max_artifact_mb=32, ro=self.tools.visible, level=level,  # type: ignore[arg-type]
        )  # fmt: skip
        self.box = Sandbox.best(policy)

    def compile(self, code: str, arch: str = "sm_90", lines: bool = False) -> Compiled:
        """Machine code of `code` for `arch`, or why there is none; `lines`: with a table that knows its lines."""
        check_arch(arch)
        files: dict[str, str | bytes] = {"kernel.cu": with_c_linkage(code)}
        if self.tools.kind == "nvcc":
            steps = [Step([self.tools.path, "-std=c++17", f"-arch={arch}", "-cubin", "-Xptxas", "-v", "-o",
                           "kernel.cubin", *(["-lineinfo"] if lines else []), "kernel.cu"])]  # fmt: skip
        else:
            files["nvrtc.py"] = (Path(__file__).parent / "inside" / "nvrtc.py").read_text(encoding="utf-8")
            options = ["--generate-line-info"] if lines else []
            includes = [f"-I{path}" for path in self.tools.includes]
            steps = [Step(["python3", "-I", "nvrtc.py", self.tools.path, arch, *includes, *options])]
        collect = ["kernel.cubin"]
        done = (
            self.box.run(steps, files, collect)
            if self.cache is None
            else self.cache.run(self.box, steps, files, collect, extra=self.tools.version)
        )
        log = (done.last.out + done.last.err).strip()
        cubin = done.artifacts.get("kernel.cubin") if done.ok else None
        diagnostics = (
            () if cubin is not None else parse_errors(log) or (Diagnostic(0, _why(done.status, done.why, log)),)
        )
        return Compiled(
            arch,
            cubin,
            parse_usage(log),
            diagnostics,
            log,
            done.status,
            done.cached,
            0.0 if done.cached else done.wall_s,
        )

    def compile_many(self, code: str, archs: Sequence[str]) -> list[Compiled]:
        """One after the other, or several at a time; in the order of `archs`."""
        if len(archs) == 1:
            return [self.compile(code, archs[0])]
        with ExecPool(min(4, len(archs))) as pool:
            return list(pool.imap(lambda arch: self.compile(code, arch), archs))


def check_arch(arch: str) -> str:
    """`arch`, or a `ConfigError` that lists the known ones."""
    if arch not in ARCHITECTURES:
        raise ConfigError(f"unknown architecture '{arch}'", hint=f"known: {', '.join(ARCHITECTURES)}")
    return arch


def _why(status: str, why: str, log: str) -> str:
    if status == "timeout":
        return "compiling takes too long"
    if status == "memory":
        return "compiling takes too much memory"
    return next(iter(log.splitlines()), "") or why or f"the compiler ended with {status}"


_ERROR = re.compile(r"^(?:[\w./]*)kernel\.cu\((\d+)\): (?:catastrophic |fatal )?error(?: #[\w-]+)?: *(.*)$")
_GCC_ERROR = re.compile(r"^(?:[\w./]*)kernel\.cu:(\d+):(?:\d+:)? (?:fatal )?error: *(.*)$")
_PTXAS_ERROR = re.compile(r"^ptxas (?:error|fatal) *: *(.*)$")


def parse_errors(log: str, most: int = MOST_ERRORS) -> tuple[Diagnostic, ...]:
    """The first errors of a compiler's log, with their lines."""
    found = []
    for line in log.splitlines():
        if match := _ERROR.match(line) or _GCC_ERROR.match(line):
            found.append(Diagnostic(int(match[1]), match[2].strip()[:300]))
        elif match := _PTXAS_ERROR.match(line):
            found.append(Diagnostic(0, match[1].strip()[:300]))
    return tuple(dict.fromkeys(found))[:most]


_ENTRY = re.compile(r"Compiling entry function '([^']+)' for '([^']+)'")
_NUMBERS = {
    "stack": re.compile(r"(\d+) bytes stack frame"), "spills": re.compile(r"(\d+) bytes spill (?:stores|loads)"),
    "registers": re.compile(r"Used (\d+) registers"), "shared": re.compile(r"(\d+)(?:\+\d+)? bytes smem"),
    "constant": re.compile(r"(\d+) bytes cmem\[\d+\]"),
}  # fmt: skip


def parse_usage(log: str) -> tuple[Usage, ...]:
    """What `ptxas -v` says of each kernel; spills are stores and loads together."""
    found: list[tuple[str, str, dict[str, int]]] = []
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            found.append((entry[1], entry[2], dict.fromkeys(_NUMBERS, 0)))
        elif found:
            for name, pattern in _NUMBERS.items():
                found[-1][2][name] += sum(map(int, pattern.findall(line)))
    return tuple(Usage(kernel, arch, **numbers) for kernel, arch, numbers in found)
