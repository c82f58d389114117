"""Lengths after the preprocessor: never too small, and known without expanding anything."""

from __future__ import annotations

import time

import pytest

from apps.rtl.macros import ENDLESS, expanded

TWICE = "`define twice(x) x x\n"


@pytest.mark.parametrize(
    "code, least, most",
    [
        ("module a; wire b; endmodule", 7, 7),
        ("`define W 8\nwire [`W-1:0] x;", 10, 10),
        ("`define LONG a \\\n b \\\n c\n`LONG // `LONG\n", 3, 5),
        ("`define W 1\n`define W 1 + 1 + 1\n`W", 5, 5),
        (TWICE + "`twice(`twice(`twice(a)))", 8, 64),
        ("`define more(x) `twice(`twice(x))\n" + TWICE + "`more(a)", 4, 64),
        (TWICE + "`twice(" * 30 + "a" + ")" * 30, 1 << 30, ENDLESS),
    ],
)
def test_a_length_is_a_bound(code, least, most):
    assert least <= expanded(code) <= most


def test_what_has_no_end_is_known_at_once():
    start = time.perf_counter()
    assert expanded("`define a `a `a `a\n`a") == ENDLESS
    assert expanded("`define a `b `b\n`define b `a `a\n`a") == ENDLESS
    assert expanded(TWICE + "`twice(" * 5000 + "a" + ")" * 5000) == ENDLESS
    assert expanded("".join(f"`define m{n} `m{n - 1} `m{n - 1}\n" for n in range(1, 40)) + "`m39") > 1 << 30
    assert time.perf_counter() - start < 10
