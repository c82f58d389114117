"""`graft doctor`: what this machine has, and what is missing for which app."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil

EXAMPLES = """  graft doctor"""

_OPTIONAL = {
    "bitsandbytes": "graft[quant]: bases in NF4 and int8",
    "sacrebleu": "graft[translation]",
    "py3langid": "language identification of outputs",
}
_TOOLS = {"chromium": "browser tests of the demos", "nvidia-smi": "NVIDIA GPUs"}


def arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(options: argparse.Namespace) -> int:
    from core.config.run_folder import versions

    for name, version in versions().items():
        print(f"{name:<16} {version}")
    print(f"{'cpu cores':<16} {os.cpu_count()}")
    free = shutil.disk_usage(".").free / 2**30
    print(f"{'disk free':<16} {free:.0f} GiB")
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            print(f"{f'gpu {index}':<16} {device.name}, {device.total_memory / 2**30:.0f} GiB")
    else:
        print(f"{'gpu':<16} none; recipes run on the CPU")
    for package, use in _OPTIONAL.items():
        if importlib.util.find_spec(package) is None:
            print(f"{package:<16} missing: {use}")
    for tool, use in _TOOLS.items():
        print(f"{tool:<16} {shutil.which(tool) or f'missing ({use})'}")
    _execution()
    return 0


def _execution() -> None:
    """How untrusted code would be held here, and the programs that checks need."""
    from core.execution import Sandbox
    from core.execution.tools import KNOWN, ToolMissing, tool

    for probe in Sandbox.probe():
        print(f"{f'sandbox {probe.name}':<16} {probe.level}: {probe.reason}")
    for name in ("iverilog", "verilator", "yosys", "dot", "g++", "nvcc"):
        try:
            print(f"{name:<16} {tool(name).version}")
        except ToolMissing:
            print(f"{name:<16} missing (Debian package: {KNOWN[name].package})")
