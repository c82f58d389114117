"""Compile `kernel.cu` to `kernel.cubin` by NVRTC: python nvrtc.py LIBRARY ARCHITECTURE [INCLUDE …]."""

import ctypes
import sys


def main(library: str, arch: str, includes: list[str]) -> int:
    nvrtc = ctypes.CDLL(library)
    with open("kernel.cu", "rb") as handle:
        source = handle.read()
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernel.cu", 0, None, None)
    words = [f"--gpu-architecture={arch}", "--std=c++17", "--ptxas-options=-v", *(f"-I{path}" for path in includes)]
    options = (ctypes.c_char_p * len(words))(*(word.encode() for word in words))
    failed = nvrtc.nvrtcCompileProgram(program, len(words), options)
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
