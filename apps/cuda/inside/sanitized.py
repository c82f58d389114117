"""One small run of a candidate for compute-sanitizer, by the driver alone: python sanitized.py JOB CUBIN.

Every buffer is an allocation of its own. torch would hand out pieces of larger blocks, and an access beyond a piece
would still lie within its block, where nothing looks odd. Prints "done" when all launches came to their end.
"""

import base64
import ctypes
import json
import sys

POISON = 0xFF
DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


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


def main(job_file: str, cubin_file: str) -> None:
    with open(job_file, encoding="utf-8") as handle:
        job = json.load(handle)
    with open(cubin_file, "rb") as handle:
        cubin = handle.read()
    cuda = Driver()
    device, context, module = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    cuda("cuInit", 0)
    cuda("cuDeviceGet", ctypes.byref(device), 0)
    cuda("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    cuda("cuCtxSetCurrent", context)
    cuda("cuModuleLoadData", ctypes.byref(module), cubin)
    places = [buffer(cuda, *row) for row in job["buffers"]]
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


def buffer(cuda: Driver, kind: int, size: int, zero: int, data: "str | None") -> ctypes.c_uint64:
    """Memory of exactly `size` bytes that holds the data of an input, or nothing of value."""
    place = ctypes.c_uint64()
    cuda("cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(max(1, size)))
    if data is not None:
        cuda("cuMemcpyHtoD_v2", place, base64.b64decode(data), ctypes.c_size_t(size))
    elif size:
        cuda("cuMemsetD8_v2", place, ctypes.c_ubyte(0 if zero else POISON), ctypes.c_size_t(size))
    return place


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
