"""Verdicts of the leaderboard's own checker (package bfcl-eval), for rows that come in as JSON lines.

It runs in a process of its own with the package's folder first on the path. Two of the package's modules, a table of
hosted models and parsers of Java and JavaScript, are of no use for Python calls and are stood in for.
"""

from __future__ import annotations

import json
import sys
import types
from collections import defaultdict


def main(folder: str) -> None:
    sys.path.insert(0, folder)
    table = types.ModuleType("bfcl_eval.constants.model_config")
    table.MODEL_CONFIG_MAPPING = defaultdict(lambda: types.SimpleNamespace(underscore_to_dot=False))
    sys.modules["bfcl_eval.constants.model_config"] = table
    for name, function in (("java", "java_type_converter"), ("js", "js_type_converter")):
        module = types.ModuleType(f"bfcl_eval.eval_checker.ast_eval.type_convertor.{name}_type_converter")
        setattr(module, function, None)
        sys.modules[module.__name__] = module
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

    for line in sys.stdin:
        row = json.loads(line)
        try:
            found = ast_checker(row["tools"], row["calls"], row["expected"], Language.PYTHON, row["category"], "any")
            verdict = [found["valid"], None if found["valid"] else found.get("error_type")]
        except Exception as error:
            verdict = ["raised", type(error).__name__]
        print(json.dumps(verdict))


if __name__ == "__main__":
    main(sys.argv[1])
