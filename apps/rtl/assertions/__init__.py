"""Assertions about designs: a subset of SystemVerilog's, lowered to plain logic, simulated and proved.

The official flow of AssertLLM (Fang et al. 2024) needs a commercial prover. Here `lower` turns an assertion into a
monitor that any simulator and yosys can read, and `check` tells whether it is valid, false, vacuous, proved, or left
undecided, and how much of the design's state the proved ones depend on.
"""
