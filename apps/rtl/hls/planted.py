"""Bugs planted by rule into functions of our own: tasks of the same form as Chrysalis, without a download.

A rule changes one line, or puts a pragma before a loop; what it makes is a bug of the named type by construction. The
rules take any C++ function, so one's own kernels can be turned into tasks: `plant("fir", code)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from apps.rtl.hls.dataset import Edit, HlsBug

_CHANGES = (
    ("OOB", re.compile(r"(= |\+= )(\w+)\[(\w+)\]"), r"\1\2[\3 + 64]"),
    ("INIT", re.compile(r"^(\s*(?:int|unsigned|short|long|float) \w+) = 0;"), r"\1;"),
    ("SHFT", re.compile(r"(<<|>>) (\w+)"), r"\1 (\2 + 32)"),
    ("INF", re.compile(r"(for \(.*; )(\w+)\+\+\)"), r"\1\2 += 0)"),
    ("USE", re.compile(r"^(\s*)int (\w+ = 0;)"), r"\1unsigned char \2"),
    ("MLU", re.compile(r"(for \(.*< \w+)(;.*)"), r"\1 - 1\2"),
    ("ZERO", re.compile(r"return (?!0\b)\w+;"), "return 0;"),
    ("BUF", re.compile(r"^(\s*)(\w+)\[(\w+)\] = (\w+)\["), r"\1\4[\3] = \2["),
)
_PRAGMAS = (
    ("ILNU", "unroll factor=7"), ("DFP", "dataflow"), ("MLP", "pipeline II=1"),
    ("FND", "array_partition variable={array} cyclic factor=7"), ("DID", "array_partition variable={array} dim=3"),
    ("RAMB", "interface m_axi port={array} bundle=shared"), ("SMA", "interface bram port={scalar}"),
    ("AMS", "interface s_axilite port={array}"), ("IDAP", "interface ap_fifo port={array}"),
    ("APT", "array_partition variable={array} type=block"),
)  # fmt: skip

FUNCTIONS = {
    "vector_add": """void vector_add(int a[64], int b[64], int c[64], int n)
{
  for (int i = 0; i < n; i++)
    c[i] = a[i] + b[i];
}
""",
    "dot": """int dot(int a[64], int b[64], int n)
{
  int sum = 0;
  for (int i = 0; i < n; i++)
    sum += a[i] * b[i];
  return sum;
}
""",
    "fir": """int fir(int taps[8], int line[8], int x)
{
  int sum = 0;
  for (int i = 7; i > 0; i--)
    line[i] = line[i - 1];
  line[0] = x;
  for (int i = 0; i < 8; i++)
    sum += taps[i] * line[i];
  return sum;
}
""",
    "histogram": """void histogram(unsigned char pixels[256], int bins[16], int n, int shift)
{
  for (int i = 0; i < 16; i++)
    bins[i] = 0;
  for (int i = 0; i < n; i++)
    bins[(pixels[i] >> shift) & 15] += 1;
}
""",
    "matvec": """void matvec(int m[16][16], int v[16], int out[16], int n)
{
  for (int i = 0; i < n; i++) {
    int sum = 0;
    for (int j = 0; j < n; j++)
      sum += m[i][j] * v[j];
    out[i] = sum;
  }
}
""",
    "largest": """int largest(int a[64], int n)
{
  int best = a[0];
  int at = 0;
  for (int i = 0; i < n; i++)
    if (a[i] > best) {
      best = a[i];
      at = i;
    }
  return at;
}
""",
    "prefix": """void prefix(int a[64], int out[64], int n)
{
  int sum = 0;
  for (int i = 0; i < n; i++) {
    sum += a[i];
    out[i] = sum;
  }
}
""",
    "scale": """void scale(int a[64], int out[64], int n, int bits)
{
  for (int i = 0; i < n; i++)
    out[i] = a[i] << bits;
}
""",
    "parity": """unsigned parity(unsigned word, int n)
{
  unsigned bit = 0;
  for (int i = 0; i < n; i++)
    bit ^= (word >> i) & 1;
  return bit;
}
""",
    "clip": """void clip(int a[64], int out[64], int n, int top)
{
  for (int i = 0; i < n; i++) {
    int x = 0;
    x = a[i];
    if (x > top)
      x = top;
    out[i] = x;
  }
}
""",
}


def plant(name: str, source: str) -> Iterator[HlsBug]:
    """One bug a rule and line where it applies to the function `name` in `source`."""
    for line in dict.fromkeys(source.splitlines()):
        for kind, pattern, instead in _CHANGES:
            faulty = pattern.sub(instead, line, count=1)
            if faulty != line:
                yield _bug(name, source, kind, line, faulty)
    loop = next((line for line in source.splitlines() if line.lstrip().startswith("for (")), None)
    arrays = re.findall(r"(\w+)\[\d+\]", source.partition("{")[0])
    scalars = re.findall(r"\bint (\w+)\s*[,)]", source.partition("{")[0])
    if loop is None:
        return
    for kind, words in _PRAGMAS:
        if ("{array}" in words and not arrays) or ("{scalar}" in words and not scalars):
            continue
        told = words.format(array=arrays[0] if arrays else "", scalar=scalars[0] if scalars else "")
        yield _bug(name, source, kind, loop, f"#pragma HLS {told}\n{loop}")


def _bug(name: str, source: str, kind: str, original: str, faulty: str) -> HlsBug:
    return HlsBug("planted", name, source, (kind,), (Edit(kind, original, faulty),))


def planted_bugs() -> Iterator[HlsBug]:
    """Every bug that the rules make in the functions here."""
    for name, source in FUNCTIONS.items():
        yield from plant(name, source)
