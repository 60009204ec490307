"""JSON from a file that may be hostile: depth and memory are bounded before a parser sees the text."""

from __future__ import annotations

import json
from typing import Any

from pyclattn.errors import ModelFormatError

# object -> object -> list: deeper nesting is neither a safetensors header nor an index of shards
MAX_DEPTH = 3
# What the parsed objects may cost, besides the size of the file.
ROOM = 40 << 20
# Bytes a value costs in Python: an entry of a dict with its key and its pair; a container.
PER_COMMA, PER_BRACKET = 250, 100


def parse_json(text: bytes, where: str, file_size: int = 0) -> dict:
    """A JSON object without duplicate names, infinities, deep nesting, or more values than its file is worth.

    Parameters
    ----------
    text : bytes
    where : str
        The file, for messages.
    file_size : int
        Of the whole file; large files may describe more.

    Raises
    ------
    ModelFormatError
    """
    deepest = _depth(text)
    if deepest > MAX_DEPTH:
        raise ModelFormatError(f"{where}: the header is nested {deepest} deep or more, at most {MAX_DEPTH} is expected")
    cost = PER_COMMA * text.count(b",") + PER_BRACKET * (text.count(b"{") + text.count(b"["))
    if cost > ROOM + file_size:
        raise ModelFormatError(
            f"{where}: {len(text)} bytes of JSON would take about {cost} bytes of memory, "
            f"at most the file's size and {ROOM} are allowed"
        )

    def unique(pairs: list) -> dict:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise ModelFormatError(f"{where}: tensor {short(twice)}: named twice in the header")
        return result

    def refuse(constant: str) -> Any:
        raise ModelFormatError(f"{where}: the header holds {constant}, which is not JSON")

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        if isinstance(error, ModelFormatError):
            raise
        raise ModelFormatError(f"{where}: the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ModelFormatError(f"{where}: the header must be a JSON object, got {type(header).__name__}")
    return header


def short(name: str) -> str:
    """A name from a file for a message, quoted, and not longer than one wants to read."""
    return repr(name) if len(name) <= 200 else f"{name[:200]!r}..."


def _depth(text: bytes) -> int:
    """The deepest nesting outside strings, before a parser recurses into it."""
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    depth = deepest = 0
    is_quoted = False
    for byte in text.translate(None, bytes(b for b in range(256) if b not in b'[]{}"')):
        if byte == 0x22:
            is_quoted = not is_quoted
        elif not is_quoted:
            depth += 1 if byte in b"[{" else -1
            deepest = max(deepest, depth)
            if deepest > MAX_DEPTH:
                break
    return deepest
