"""The programs that checks stand on: where they are, which version, and which Debian package brings a missing one."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from core.errors import BackendUnavailable, SandboxError

PATH = "/usr/local/bin:/usr/bin:/bin"


class ToolMissing(BackendUnavailable):
    """A program that a check needs is not installed."""


@dataclass(frozen=True)
class Known:
    """What is known of a program: its Debian package, how it prints its version, what needs it and what does not."""

    package: str
    version: tuple[str, ...] = ("--version",)
    needs: str = ""


KNOWN = {
    "iverilog": Known("iverilog", ("-V",), "RTL compile checks need it; parse-only checks still work."),
    "vvp": Known("iverilog", ("-V",), "RTL simulation needs it; parse-only checks still work."),
    "verilator": Known("verilator", needs="The second RTL engine needs it; designs that iverilog reads still work."),
    "yosys": Known("yosys", ("-V",), "Synthesis, cost and equivalence need it; simulation still works."),
    "bwrap": Known("bubblewrap", needs="The strict sandbox prefers it; unshare of util-linux does as well."),
    "unshare": Known("util-linux"),
    "setpriv": Known("util-linux"),
    "dot": Known("graphviz", ("-V",), "Schematics are drawn with it; everything else still works."),
    "g++": Known("g++", needs="C++ checks and the verilator engine need it."),
    "gcc": Known("gcc"),
    "nvcc": Known("nvidia-cuda-toolkit", needs="CUDA kernels are compiled with it."),
    "cuobjdump": Known("nvidia-cuda-toolkit"),
    "python3": Known("python3-minimal"),
}


@dataclass(frozen=True)
class Tool:
    """An installed program. `digest` is the first 16 hex digits of its file's SHA-256."""

    name: str
    path: str
    version: str
    digest: str
    package: str


def tool(name: str) -> Tool:
    """The program called `name`.

    Raises:
        ToolMissing: not in /usr/local/bin, /usr/bin, /bin or PATH; the message names the Debian package.
    """
    path = shutil.which(name, path=PATH) or shutil.which(name)
    known = KNOWN.get(name, Known(""))
    if path is None:
        package = f" (Debian package: {known.package})" if known.package else ""
        raise ToolMissing(
            f"{name} not found{package}.{' ' + known.needs if known.needs else ''}",
            hint=f"apt-get install {known.package}" if known.package else f"install {name}",
        )
    info = os.stat(path)
    return _described(name, path, info.st_mtime_ns, info.st_size)


def has(name: str) -> bool:
    """Whether the program is installed."""
    return shutil.which(name, path=PATH) is not None or shutil.which(name) is not None


@functools.lru_cache(maxsize=256)
def _described(name: str, path: str, mtime: int, size: int) -> Tool:
    known = KNOWN.get(name, Known(""))
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    try:
        said = subprocess.run(
            [path, *known.version], capture_output=True, timeout=20, stdin=subprocess.DEVNULL, check=False
        )
        lines = [line.strip() for line in (said.stdout + said.stderr).decode("utf-8", "replace").splitlines()]
        version = next((line for line in lines if re.search(r"\d+\.\d+", line)), next(iter(lines), ""))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"{name} does not start: {error}", where=path) from error
    return Tool(name, path, version[:120], digest.hexdigest()[:16], known.package)
