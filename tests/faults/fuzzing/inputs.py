"""Drawn by Hypothesis: JSON values and files that are likely to break something."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Input = tuple[str, bytes]
"""Name of a file and its content."""

HOSTILE: list[Any] = [
    *(None, True, False, -1, 0, 1, 2**31, 2**63, 10**400, -(10**400), 0.5, 1e308, -0.0),
    *(float("nan"), float("inf"), -float("inf"), "", "x", "\0", "\ud800", "\x1b[31m red", "a b\n"),
    *("../../etc/passwd", "/dev/zero", "file:///etc/passwd", "NaN", "1e999", "x" * 5000),
    *([], {}, [[]], {"": None}, [None] * 4, [1e308] * 4, [10**400] * 4, [0] * 3, [[1e308] * 6]),
    *({"size": [1, 1], "counts": [1]}, {"size": [10**6] * 2, "counts": "0" * 50}),
    *({"size": [96, 128], "counts": "P" * 8}, {"size": [96, 128], "counts": [2**31] * 3}),
]
_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(HOSTILE)
)
JSON = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def mutated(value: Any, rng: random.Random, news: list[Any]) -> Any:
    """Returns the JSON value with a random part replaced, removed, repeated, renamed or moved."""
    if not isinstance(value, list | dict) or not value or rng.random() < 0.06:
        return rng.choice(news)
    new: Any = dict(value) if isinstance(value, dict) else list(value)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key, action = rng.choice(keys), rng.random()
    if action < 0.06:
        del new[key]
    elif action < 0.12 and isinstance(value, list):
        new += [value[key]] * rng.choice((1, 1, 1, 200))
    elif action < 0.16 and isinstance(value, dict):
        new[rng.choice((f"{key}x", "", str(key).upper()))] = new.pop(key)
    elif action < 0.2:
        new[key] = value[rng.choice(keys)]
    else:
        new[key] = mutated(value[key], rng, news)
    return new


def mangled(data: bytes, rng: random.Random) -> bytes:
    """Returns the bytes with some flipped, cut off, inserted or repeated."""
    if not data:
        return bytes(rng.choices(range(256), k=rng.randrange(40)))
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(content) + 1)
        action = rng.random()
        if action < 0.2:
            del content[place:]
        elif action < 0.4:
            content[place:place] = bytes(rng.choices(range(256), k=rng.randrange(1, 20)))
        elif action < 0.5:
            content[place : place + rng.randrange(20)] = b""
        elif action < 0.6:
            content[place : place + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f"))
        elif place < len(content):
            content[place] = rng.choice((content[place] ^ (1 << rng.randrange(8)), 0, 255, 128))
    return bytes(content)


def seeded() -> st.SearchStrategy[random.Random]:
    return st.randoms(use_true_random=True)  # "true" is fast, and seeded by Hypothesis as well


def replacements() -> st.SearchStrategy[list[Any]]:
    """Values to put in place of a part of something sound."""
    return st.lists(JSON, min_size=1, max_size=3).map(lambda drawn: [*drawn, *HOSTILE])


@st.composite
def documents(draw: Callable, sound: Any, name: str, bytes_share: float = 0.15) -> Input:
    """Draws a JSON file: ``sound`` with parts changed, and at times its bytes."""
    rng, news = draw(seeded()), draw(replacements())
    value = sound
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6))):
        value = mutated(value, rng, news)
    data = json.dumps(value).encode()
    return name, mangled(data, rng) if rng.random() < bytes_share else data
