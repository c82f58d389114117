"""Kernels for CPUs: one C++ file with a plain C interface, compiled once by the system's compiler."""
