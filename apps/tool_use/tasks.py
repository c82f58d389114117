"""Questions that one of a few small tools answers, made by the project: for tests, demos and first training runs.

Each tool has its schema, ways to ask for it, and values. The splits `train` and `dev` share tools and not questions;
`test` has tools that training never shows, which is what matters for a model that is given new ones.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from typing import Any

from apps.tool_use.calls import Call
from apps.tool_use.spec import ToolSpec
from core.errors import DataError

CITIES = "Rome Oslo Lima Cairo Delhi Quito Accra Hanoi Paris Tokyo".split()
PEOPLE = "Ana Ben Carla Dan Eva Finn Gita Hugo".split()
WORDS = "lunch yoga standup dentist piano training shopping reading".split()
COINS = "EUR USD JPY GBP CHF".split()
SIZES = {"train": 2000, "dev": 100, "test": 200}


@dataclass(frozen=True)
class Task:
    """A tool, sentences that ask for it, and what fills them: a list of values, or (low, high)."""

    tool: ToolSpec
    asks: tuple[str, ...]
    values: dict[str, Any]
    unseen: bool = False


def _tool(name: str, text: str, /, **properties: Any) -> ToolSpec:
    required = [key for key, schema in properties.items() if not schema.pop("optional", False)]
    return ToolSpec(name, text, {"type": "object", "properties": properties, "required": required})


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


def _whole(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "integer", "description": description, **more}


TASKS = (
    Task(
        _tool("get_weather", "Weather of a city", city=_text("name of the city"),
              unit=_text("of the temperature", enum=["celsius", "fahrenheit"])),
        ("What is the weather in {city} in {unit}?", "Tell me how warm it is in {city}, in {unit}."),
        {"city": CITIES, "unit": ["celsius", "fahrenheit"]},
    ),
    Task(
        _tool("set_alarm", "Set an alarm", hour=_whole("hour of the day", minimum=0, maximum=23),
              minute=_whole("minute", minimum=0, maximum=59), label=_text("what it is for")),
        ("Wake me at {hour}:{minute} for {label}.", "Set an alarm named {label} for {hour}:{minute}."),
        {"hour": (0, 23), "minute": (10, 59), "label": WORDS},
    ),
    Task(
        _tool("convert_currency", "Convert an amount of money", amount=_whole("how much", minimum=0),
              source=_text("currency that is given", enum=COINS), target=_text("currency that is wanted", enum=COINS)),
        ("How much is {amount} {source} in {target}?", "Convert {amount} {source} to {target}."),
        {"amount": (2, 900), "source": COINS, "target": COINS},
    ),
    Task(
        _tool("send_message", "Send a short message", to=_text("who gets it"), text=_text("what it says")),
        ("Tell {to} that it is time for {text}.", "Write {to} a message: {text}."),
        {"to": PEOPLE, "text": WORDS},
    ),
    Task(
        _tool("add_numbers", "Add two whole numbers", a=_whole("the first"), b=_whole("the second")),
        ("What is {a} plus {b}?", "Add {a} and {b}."),
        {"a": (2, 99), "b": (2, 99)},
    ),
    Task(
        _tool("book_table", "Book a table in a restaurant", place=_text("city"), guests=_whole("how many", minimum=1)),
        ("Book a table for {guests} in {place}.", "We are {guests} and want to eat in {place}."),
        {"place": CITIES, "guests": (2, 12)},
    ),
    Task(
        _tool("play_music", "Play music", genre=_text("kind of music", enum=["jazz", "rock", "folk", "opera"]),
              volume=_whole("in percent", minimum=0, maximum=100)),
        ("Play some {genre} at volume {volume}.", "I want to hear {genre}, {volume} percent loud."),
        {"genre": ["jazz", "rock", "folk", "opera"], "volume": (5, 95)}, True,
    ),
    Task(
        _tool("find_flight", "Find a flight", origin=_text("city of departure"), destination=_text("city of arrival"),
              day=_whole("day of the month", minimum=1, maximum=31)),
        ("Find a flight from {origin} to {destination}, day {day}.", "Fly from {origin} to {destination}, day {day}."),
        {"origin": CITIES, "destination": CITIES, "day": (1, 31)}, True,
    ),
    Task(
        _tool("order_food", "Order food", dish=_text("what"), count=_whole("how many", minimum=1)),
        ("Order {count} portions of {dish}.", "I would like {count} times {dish}."),
        {"dish": ["soup", "pizza", "curry", "salad"], "count": (1, 9)}, True,
    ),
)  # fmt: skip


def tasks(split: str = "train", seed: int = 0) -> list[tuple[str, tuple[ToolSpec, ...], Call]]:
    """(question, two tools to choose from, the right call), the same for the same seed."""
    if split not in SIZES:
        raise DataError("unknown split of the shipped tasks", got=split, expected=", ".join(SIZES))
    rng = random.Random(seed * 1000 + zlib.crc32(split.encode()))
    pool = [task for task in TASKS if task.unseen == (split == "test")]
    made: dict[str, tuple[str, tuple[ToolSpec, ...], Call]] = {}
    while len(made) < SIZES[split]:
        task = rng.choice(pool)
        arguments = {name: _draw(rng, values) for name, values in task.values.items()}
        question = rng.choice(task.asks).format(**arguments)
        if split != "test" and (zlib.crc32(question.encode()) % 12 == 0) != (split == "dev"):
            continue
        others = rng.sample([other for other in pool if other is not task], 1)
        offered = [task.tool, *(other.tool for other in others)]
        rng.shuffle(offered)
        made.setdefault(question, (question, tuple(offered), Call(task.tool.name, arguments)))
    return list(made.values())


def _draw(rng: random.Random, values: Any) -> Any:
    return rng.randint(*values) if isinstance(values, tuple) else rng.choice(values)
