"""The device itself: its driver, memory with canaries, launches that are ready to be queued, and its limits.

This file runs inside the sandbox, on torch's context.
"""

from __future__ import annotations

import ctypes

import torch

MARGIN = 256
CANARY, POISON = 0xA5, 0xFF


class DeviceError(Exception):
    """The driver refuses something, or a kernel failed."""


class Driver:
    """The part of the driver's interface that is needed, on torch's context."""

    def __init__(self) -> None:
        torch.zeros(1, device="cuda")
        self.lib = ctypes.CDLL("libcuda.so.1")

    def check(self, code: int) -> None:
        if code:
            name = ctypes.c_char_p()
            self.lib.cuGetErrorString(code, ctypes.byref(name))
            raise DeviceError((name.value or b"unknown error").decode())

    def load(self, cubin: bytes) -> ctypes.c_void_p:
        module = ctypes.c_void_p()
        self.check(self.lib.cuModuleLoadData(ctypes.byref(module), cubin))
        return module

    def unload(self, module: ctypes.c_void_p) -> None:
        self.lib.cuModuleUnload(module)

    def function(self, module: ctypes.c_void_p, name: str, shared: int) -> ctypes.c_void_p:
        found = ctypes.c_void_p()
        self.check(self.lib.cuModuleGetFunction(ctypes.byref(found), module, name.encode()))
        if shared > 48 << 10:
            self.check(self.lib.cuFuncSetAttribute(found, 8, shared))
        return found


class Prepared:
    """Launches of a plan over buffers, ready to be queued again and again."""

    def __init__(self, driver: Driver, module: ctypes.c_void_p, launches: list, pointers: list[int]) -> None:
        self.driver, self.rows = driver, []
        for kernel, grid, block, shared, args in launches:
            function = driver.function(module, kernel, shared)
            values = [ctypes.c_uint64(pointers[v] if tag == "t" else v) for tag, v in args]
            array = (ctypes.c_void_p * max(1, len(values)))(*(ctypes.addressof(v) for v in values))
            sizes = [ctypes.c_uint(n) for n in (*grid, *block, shared)]
            self.rows.append((function, sizes, array, values))

    def queue(self, stream: int) -> None:
        handle = ctypes.c_void_p(stream)
        for function, sizes, array, _ in self.rows:
            code = self.driver.lib.cuLaunchKernel(function, *sizes, handle, array, None)
            if code:
                self.driver.check(code)


class Buffer:
    """Device memory with a canary on each side."""

    def __init__(self, size: int, shift: int = 0) -> None:
        self.size, self.at = size, MARGIN + shift
        self.whole = torch.full((size + 2 * MARGIN + shift,), CANARY, dtype=torch.uint8, device="cuda")
        self.bytes = self.whole[self.at : self.at + size]

    @property
    def pointer(self) -> int:
        return self.whole.data_ptr() + self.at

    def intact(self) -> bool:
        before, after = self.whole[: self.at], self.whole[self.at + self.size :]
        return bool((before == CANARY).all()) and bool((after == CANARY).all())


_DRIVER: list[Driver] = []


def driver() -> Driver:
    if not _DRIVER:
        _DRIVER.append(Driver())
    return _DRIVER[0]


# ---- facts -------------------------------------------------------------------------------------------------------


def facts() -> dict:
    """Name, architecture and measured limits of the device."""
    info = torch.cuda.get_device_properties(0)
    driver()
    version = ctypes.c_int()
    driver().lib.cuDriverGetVersion(ctypes.byref(version))
    return {
        "name": info.name, "arch": f"sm_{info.major}{info.minor}", "sms": info.multi_processor_count,
        "memory": info.total_memory, "l2_bytes": int(getattr(info, "L2_cache_size", 50 << 20)),
        "shared": int(getattr(info, "shared_memory_per_block_optin", 0)), "torch": torch.__version__,
        "driver": version.value, "tf32": bool(torch.backends.cuda.matmul.allow_tf32),
        "cudnn_tf32": bool(torch.backends.cudnn.allow_tf32),
    }  # fmt: skip


def limits() -> dict:
    """Measured bytes a second of a copy, and FLOP a second of the fastest product for each type."""
    big = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(big)
    seconds = _best(lambda: other.copy_(big))
    rates = {}
    for name, dtype in (("float32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16),
                        ("float64", torch.float64)):  # fmt: skip
        n = 2048 if dtype == torch.float64 else 8192
        a, b = (torch.randn(n, n, device="cuda").to(dtype) for _ in range(2))
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        rates[name] = 2 * n**3 / _best(lambda a=a, b=b: torch.mm(a, b))
        torch.backends.cuda.matmul.allow_tf32 = before
    return {"copy_bytes_s": 2 * (256 << 20) / seconds, "matmul_flops": rates}


def _best(call, tries: int = 8) -> float:
    found = []
    for _ in range(tries):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end))
    return min(found) / 1e3
