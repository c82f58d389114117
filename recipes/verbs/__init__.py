"""One module a verb: `HELP`, `EXAMPLES`, `arguments(parser)` and `run(options)`. None imports torch to be listed."""
