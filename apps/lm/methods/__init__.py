"""Training methods of language modelling, one file each."""
