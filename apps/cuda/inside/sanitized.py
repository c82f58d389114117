"""Small runs of a candidate for compute-sanitizer, by the driver alone: python sanitized.py JOBS CUBIN.

Every buffer is an allocation of its own, far from all others. torch would hand out pieces of larger blocks, and the
driver packs small allocations back to back: an index past one of them then lies within the next, where nothing looks
odd. Prints where the buffers are, and "done" when all launches came to their end.
"""

import base64
import ctypes
import json
import sys

POISON = 0xFF
DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
APART = 1 << 18
"""Bytes around a buffer that belong to no other: an index that is off by a whole buffer of most cases finds nothing."""
TRIES = 4096


class Driver:
    """Calls of libcuda that end the program with the driver's message when they fail."""

    def __init__(self) -> None:
        self.lib = ctypes.CDLL("libcuda.so.1")

    def __call__(self, name: str, *args: object) -> None:
        code = getattr(self.lib, name)(*args)
        if code:
            said = ctypes.c_char_p()
            self.lib.cuGetErrorString(code, ctypes.byref(said))
            sys.exit(f"{name}: {(said.value or b'unknown error').decode()}")


class Memory:
    """Allocations at a distance from each other."""

    def __init__(self, cuda: Driver) -> None:
        self.cuda = cuda
        self.living: list[tuple[int, int]] = []

    def take(self, size: int) -> ctypes.c_uint64:
        """The place of exactly `size` bytes with `APART` free ones on both sides.

        What the driver offers too near another buffer is put by, so that it offers another place, and given back then.
        """
        put_by = []
        for _ in range(TRIES):
            place = self._allocate(size)
            if all(
                place.value + size + APART <= at or at + length + APART <= place.value for at, length in self.living
            ):
                break
            put_by += [place, self._allocate(APART)]
        else:
            sys.exit(f"the driver offers no place for {size} bytes that is {APART} bytes from other buffers")
        for other in put_by:
            self.cuda("cuMemFree_v2", other)
        self.living.append((place.value, size))
        return place

    def _allocate(self, size: int) -> ctypes.c_uint64:
        place = ctypes.c_uint64()
        self.cuda("cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(size))
        return place


def main(jobs_file: str, cubin_file: str) -> None:
    with open(jobs_file, encoding="utf-8") as handle:
        jobs = json.load(handle)
    with open(cubin_file, "rb") as handle:
        cubin = handle.read()
    cuda = Driver()
    device, context, module = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    cuda("cuInit", 0)
    cuda("cuDeviceGet", ctypes.byref(device), 0)
    cuda("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    cuda("cuCtxSetCurrent", context)
    cuda("cuModuleLoadData", ctypes.byref(module), cubin)
    memory = Memory(cuda)
    for job in jobs:
        places = [filled(cuda, memory.take(max(1, row[1])), *row) for row in job["buffers"]]
        for kernel, grid, block, shared, args in job["launches"]:
            function = ctypes.c_void_p()
            cuda("cuModuleGetFunction", ctypes.byref(function), module, kernel.encode())
            if shared > 48 << 10:
                cuda("cuFuncSetAttribute", function, DYNAMIC_SHARED, shared)
            values = [ctypes.c_uint64(places[v].value if tag == "t" else v) for tag, v in args]
            array = (ctypes.c_void_p * max(1, len(values)))(*(ctypes.addressof(v) for v in values))
            sizes = [ctypes.c_uint(n) for n in (*grid, *block, shared)]
            cuda("cuLaunchKernel", function, *sizes, None, array, None)
        cuda("cuCtxSynchronize")
    print("done")


def filled(cuda: Driver, place: ctypes.c_uint64, kind: int, size: int, zero: int, data: "str | None"):
    """The place, where the data of an input lies now, or nothing of value."""
    print(f"{('input', 'output', 'scratch')[kind]} of {size} bytes at {place.value:#x}", flush=True)
    if data is not None:
        cuda("cuMemcpyHtoD_v2", place, base64.b64decode(data), ctypes.c_size_t(size))
    elif size:
        cuda("cuMemsetD8_v2", place, ctypes.c_ubyte(0 if zero else POISON), ctypes.c_size_t(size))
    return place


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
