"""Recipes (YAML files by app), and the command line that runs them."""
