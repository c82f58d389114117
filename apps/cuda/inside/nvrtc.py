"""Compile `kernel.cu` to `kernel.cubin` by NVRTC: python nvrtc.py LIBRARY ARCHITECTURE [OPTION …]."""

import ctypes
import sys

# NVRTC has no standard headers; these are what kernels use of them.
INTEGERS = "".join(
    f"typedef signed {kind} int{bits}_t;\ntypedef unsigned {kind} uint{bits}_t;\n"
    for kind, bits in (("char", 8), ("short", 16), ("int", 32), ("long long", 64))
)
LIMITS = "#define INT_MAX 2147483647\n#define INT_MIN (-2147483647 - 1)\n#define UINT_MAX 4294967295u\n"
FLOATS = "#define FLT_MAX 3.402823466e+38f\n#define FLT_MIN 1.175494351e-38f\n#define FLT_EPSILON 1.192092896e-07f\n"
HEADERS = {"stdint.h": INTEGERS, "limits.h": LIMITS, "float.h": FLOATS, "math.h": "", "stddef.h": ""}
ALIASES = {"cstdint": "stdint.h", "climits": "limits.h", "cfloat": "float.h", "cmath": "math.h", "cstddef": "stddef.h"}
MACROS = ["-DINFINITY=__int_as_float(0x7f800000)", "-DNAN=__int_as_float(0x7fffffff)"]


def main(library: str, arch: str, options: list[str]) -> int:
    nvrtc = ctypes.CDLL(library)
    with open("kernel.cu", "rb") as handle:
        source = handle.read()
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernel.cu", 0, None, None)
    for name in [*HEADERS, *ALIASES]:
        with open(name, "w", encoding="ascii") as handle:
            handle.write("#pragma once\n" + HEADERS[ALIASES.get(name, name)])
    words = [
        f"--gpu-architecture={arch}",
        "--std=c++17",
        "--ptxas-options=-v",
        "-I.",
        *options,
        *MACROS,
    ]
    given = (ctypes.c_char_p * len(words))(*(word.encode() for word in words))
    failed = nvrtc.nvrtcCompileProgram(program, len(words), given)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    sys.stderr.write(log.value.decode("utf-8", "replace"))
    if failed:
        return 1
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    with open("kernel.cubin", "wb") as handle:
        handle.write(cubin.raw)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
