"""A translation encoder under a language model: data, model, pipeline and evaluator (Schmidt et al. 2024, MT-LLM)."""
