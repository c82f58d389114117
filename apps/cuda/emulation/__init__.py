"""The C++ sources of the emulator: `simt.h` stands in for CUDA's headers, `simt.cpp` runs blocks as fibers."""
