"""The apps: one package per domain, each with the same rooms. Apps know the core and never each other."""
