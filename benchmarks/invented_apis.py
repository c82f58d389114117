"""Invented tools and questions for them, as chat-completions traces.

Names of tools and of their parameters are made-up words; the syllables of the split "test" are not those of "train",
so that a model must read a tool's schema instead of remembering it. Values are ordinary words and numbers.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from core.config.files import write_text

SYLLABLES = {
    "train": "ba ko lin mer tas vo du fen gra pil son tir mak lo ves ran dol chi bor nat lum sig per wid".split(),
    "test": "zu qua jex hyn olp urk eft yam ibra xen thy ogo waf kje plu squi jor ugh vyx ezo nuq blif".split(),
}
VERBS = "get find make send set list check book order move open close start stop update count plan share".split()
CITIES = "Rome Oslo Lima Cairo Delhi Quito Accra Hanoi Paris Tokyo Berlin Madrid Lisbon Dublin Vienna Warsaw".split()
PEOPLE = "Ana Ben Carla Dan Eva Finn Gita Hugo Ines Jon Kim Lea Max Nina Omar Pia".split()
THINGS = "bread water paper music light table garden winter horse letter river window summer coffee orange".split()
COLOURS = "red green blue white black yellow brown pink".split()
SIZES = "small medium large huge".split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
POLITE = ("Please {}.", "Can you {}?", "I want you to {}.", "{}, please.", "Now {}.", "We need to {}.")


def word(rng: random.Random, split: str, least: int = 2, most: int = 3) -> str:
    return "".join(rng.choice(SYLLABLES[split]) for _ in range(rng.randint(least, most)))


def parameter(rng: random.Random) -> tuple[dict[str, Any], Any]:
    """A schema, and a value that a question may name."""
    kind = rng.choice(["city", "person", "thing", "count", "amount", "choice", "choice", "flag"])
    if kind in ("city", "person", "thing"):
        values = {"city": CITIES, "person": PEOPLE, "thing": THINGS}[kind]
        return {"type": "string", "description": f"a {kind}"}, rng.choice(values)
    if kind == "count":
        return {"type": "integer", "description": "how many", "minimum": 1}, rng.randint(1, 99)
    if kind == "amount":
        return {"type": "number", "description": "how much", "minimum": 0}, rng.randint(1, 99) + 0.5
    if kind == "flag":
        return {"type": "boolean", "description": "yes or no"}, rng.random() < 0.5
    options = rng.sample(rng.choice([COLOURS, SIZES, DAYS]), 3)
    return {"type": "string", "description": "one of a few", "enum": options}, rng.choice(options)


def tool(rng: random.Random, split: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A tool as an entry of chat completions, and the arguments of one call."""
    properties, arguments = {}, {}
    for _ in range(rng.randint(1, 4)):
        name = word(rng, split) if rng.random() < 0.6 else f"{word(rng, split, 1, 2)}_{word(rng, split, 1, 2)}"
        properties[name], arguments[name] = parameter(rng)
    verb, thing = rng.choice(VERBS), word(rng, split)
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    entry = {"name": f"{verb}_{thing}", "description": f"{verb} a {thing}", "parameters": schema}
    return entry, arguments


def trace(rng: random.Random, split: str) -> dict[str, Any]:
    """A question, two tools, and the call that is right."""
    made = {entry["name"]: (entry, arguments) for entry, arguments in (tool(rng, split) for _ in range(2))}
    name = rng.choice(list(made))
    entry, arguments = made[name]
    offered = [given for given, _ in made.values()]
    rng.shuffle(offered)
    asked = list(arguments.items())
    rng.shuffle(asked)
    shown = [f"{key.replace('_', ' ')} {_said(value)}" for key, value in asked]
    text = f"{name.replace('_', ' ', 1)} with {', '.join(shown)}"
    call = {"id": "c1", "function": {"name": name, "arguments": json.dumps(arguments)}}
    question = {"role": "user", "content": rng.choice(POLITE).format(text)}
    return {"messages": [question, {"role": "assistant", "tool_calls": [call]}], "tools": offered}


def _said(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def write_traces(path: Path, split: str, count: int, seed: int = 0) -> Path:
    """`count` traces of a split as JSONL, the same for the same seed."""
    rng = random.Random(f"{split}-{seed}")
    lines = [json.dumps(trace(rng, split), ensure_ascii=False) for _ in range(count)]
    write_text(path, "".join(line + "\n" for line in lines))
    return path
