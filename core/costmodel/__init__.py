"""What a run will need and how long it will take, told from `config.json` alone, before anything is loaded.

Pure Python: nothing here imports torch. `shape` reads the architecture, `workload` the recipe, `memory` and `time`
predict, `hardware` knows devices, `fit` looks for what fits.
"""
