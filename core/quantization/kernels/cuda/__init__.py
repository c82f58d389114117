"""Kernels in CUDA C++, compiled at first use by the runtime compiler that comes with torch; no toolkit is needed."""
