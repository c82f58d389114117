"""A CUDA C++ kernel compiled at run time and started with little work on the host.

torch carries the compiler (NVRTC). A start packs the arguments into one structure and calls the driver, which takes a
few microseconds; a decoding step starts hundreds of kernels.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from core.errors import BackendUnavailable

# bytes of shared memory that a block gets unasked, and the driver's number for asking
WITHOUT_ASKING, MOST_SHARED = 48 * 1024, 8


class Program:
    """One function of a source file, with its sizes fixed, on one device.

    Args:
        source: the file; its stem is the function's name. sizes: macros. arguments: ctypes of the parameters, in order.
    """

    def __init__(self, source: Path, sizes: Mapping[str, int], arguments: Sequence[Any], device: int) -> None:
        defined = "".join(f"#define {name} {value}\n" for name, value in sizes.items())
        capability = "".join(map(str, torch.cuda.get_device_capability(device)))
        with torch.cuda.device(device):
            self._kernel = torch.cuda._compile_kernel(
                defined + source.read_text(encoding="utf-8"), source.stem, compute_capability=capability
            )
        self._driver = driver()
        self._device, self._shared = device, WITHOUT_ASKING
        fields = [(f"a{number}", kind) for number, kind in enumerate(arguments)]
        self._cells = type("Cells", (ctypes.Structure,), {"_fields_": fields})
        self._offsets = [getattr(self._cells, name).offset for name, _ in fields]
        self._pointers = ctypes.c_void_p * len(fields)

    def start(self, blocks: int, threads: int, shared: int, *values: Any) -> None:
        """Start on the current stream of the device: `blocks` of `threads` with `shared` bytes.

        Raises:
            BackendUnavailable: the driver refuses, with its number.
        """
        if shared > self._shared:
            with torch.cuda.device(self._device):
                _checked(self._driver.cuFuncSetAttribute(self._kernel.func, MOST_SHARED, shared), shared)
            self._shared = shared
        cells = self._cells(*values)
        base = ctypes.addressof(cells)
        pointers = self._pointers(*(base + offset for offset in self._offsets))
        stream = ctypes.c_void_p(torch.cuda.current_stream(self._device).cuda_stream)
        size = (blocks, 1, 1, threads, 1, 1, shared)
        if torch.cuda.current_device() == self._device:
            status = self._driver.cuLaunchKernel(self._kernel.func, *size, stream, pointers, None)
        else:
            with torch.cuda.device(self._device):
                status = self._driver.cuLaunchKernel(self._kernel.func, *size, stream, pointers, None)
        _checked(status, size)


@functools.cache
def driver() -> ctypes.CDLL:
    """The CUDA driver's library."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _checked(status: int, what: Any) -> None:
    if status:
        raise BackendUnavailable(f"a CUDA kernel did not start: error {status} of the driver for {what}")


@functools.cache
def shared_limit(device: int) -> int:
    """Bytes of shared memory that a block may have on this device."""
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 48 * 1024)


@functools.cache
def processors(device: int) -> int:
    """Multiprocessors of this device."""
    return torch.cuda.get_device_properties(device).multi_processor_count
