"""Mutations of bytes that need no measure of coverage: flips, numbers at their edges, copies, cuts, tokens, splices."""

from random import Random

EDGES = [0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
MAX_SIZE = 1 << 14


def mutated(data: bytes, other: bytes, tokens: list, rng: Random) -> bytes:
    """A few mutations of data, in a row; `other` is a second seed to take pieces from."""
    out = bytearray(data)
    for _ in range(1 + int(rng.random() ** 3 * 6)):
        if not out:
            return other
        draw, place = rng.random(), int(rng.random() * len(out))
        if draw < 0.3:
            out[place] = int(rng.random() * 256)
        elif draw < 0.4:
            out[place] ^= 1 << int(rng.random() * 8)
        elif draw < 0.5:
            width = (1, 2, 4, 8)[int(rng.random() * 4)]
            value = EDGES[int(rng.random() * len(EDGES))] % (1 << 8 * width)
            out[place : place + width] = value.to_bytes(width, "little")
        elif draw < 0.6:
            del out[place : place + 1 + int(rng.random() ** 2 * 16)]
        elif draw < 0.75:
            out[place:place] = tokens[int(rng.random() * len(tokens))]
        elif draw < 0.85:
            start, length = int(rng.random() * len(out)), 1 + int(rng.random() ** 2 * 32)
            out[place:place] = out[start : start + length]
        elif draw < 0.95:
            start, length = int(rng.random() * len(other)), 1 + int(rng.random() ** 2 * 64)
            out[place : place + length] = other[start : start + length]
        else:
            del out[place:]
    return bytes(out[:MAX_SIZE])


def mutated_header(data: bytes, other: bytes, tokens: list, rng: Random) -> bytes:
    """Mutations inside a safetensors header mostly, with its length put right: else few get past the first check."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.2 or length > len(data) - 8:
        return mutated(data, other, tokens, rng)
    text = bytearray(data[8 : 8 + length])
    digits = [i for i, c in enumerate(text) if 48 <= c < 58]
    if digits and rng.random() < 0.5:
        for _ in range(1 + int(rng.random() * 3)):
            text[digits[int(rng.random() * len(digits))]] = 48 + int(rng.random() * 10)
        changed = bytes(text)
    else:
        changed = mutated(bytes(text), other[8:], tokens, rng)
    return len(changed).to_bytes(8, "little") + changed + data[8 + length :]
