"""Ways to multiply with a quantized matrix. `registry` chooses one; `reference` computes every form exactly."""
