"""Scores as data: reports, intervals and the page of a run. Nothing here loads a model."""
