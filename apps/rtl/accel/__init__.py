"""Arithmetic units of accelerators as generators: parameters in, Verilog with a golden model and testbench out.

`encode` recodes operands into digits and counts their partial products, `mac` and `array` generate multiply-
accumulate units and rows of them with the bit-weight transformations (Wu et al. 2024, "Exploring the Performance
Improvement of Tensor Processing Engines through Transformation in the Bit-weight Dimension of MACs"), `loops` holds
the same transformations as rewrites of a loop nest that is checked against numpy. `sparse` generates a chain of
multipliers for N:M sparse weights, `flight` compiles a language model's shape to an accelerator's instructions and
predicts memory and cycles.
"""
