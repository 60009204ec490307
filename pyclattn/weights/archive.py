"""The members of a zip archive: where each lies in the file.

Only what PyTorch's writer makes is read, ZIP64 included: one disk, no encryption. Compressed members are found but
not read (TorchScript has its code so). Every position is checked against the file, each member's own header against the
directory, and no two members may overlap. Nothing is ever unpacked, so names are keys here and never paths.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import NamedTuple

from pyclattn.errors import ModelFormatError
from pyclattn.weights.source import Source
from pyclattn.weights.strict_json import short

MAX_MEMBERS = 100_000
END = struct.Struct("<4s4H2IH")  # end of central directory
LOCATOR = struct.Struct("<4sIQI")  # of the ZIP64 end
END64 = struct.Struct("<4sQ2H2I4Q")
ENTRY = struct.Struct("<4s6H3I5H2I")  # of the directory
LOCAL = struct.Struct("<4s5H3I2H")
FULL32, FULL16 = 0xFFFFFFFF, 0xFFFF  # "see the ZIP64 field"


class Member(NamedTuple):
    """Where a member's bytes lie, as they are in the file."""

    start: int
    size: int
    is_stored: bool


def members(source: Source) -> dict[str, Member]:
    """Name -> place of each member, after every check.

    Raises
    ------
    ModelFormatError
        Naming the file and the member at fault.
    """
    begin, size, count = _directory(source)
    if count > min(MAX_MEMBERS, size // ENTRY.size):
        raise ModelFormatError(
            f"{source.name}: the zip says it has {count} members, its directory of {size} bytes "
            f"holds at most {min(MAX_MEMBERS, size // ENTRY.size)}"
        )
    found: dict[str, Member] = {}
    spans: list[tuple[int, int, str]] = []
    position, end = begin, begin + size
    for _ in range(count):
        name, length, offset, method, position = _entry(source, position, end)
        where = f"{source.name}: member {name!r}"
        if name in found:
            raise ModelFormatError(f"{where}: in the directory twice")
        start = _data_start(source, name, offset, method, where)
        if start + length > begin:
            raise ModelFormatError(f"{where}: ends at byte {start + length}, its directory begins at {begin}")
        found[name] = Member(start, length, method == 0)
        spans.append((offset, start + length, name))
    spans.sort()
    for (_, stop, name), (start, _, other) in pairwise(spans):
        if start < stop:
            raise ModelFormatError(f"{source.name}: members {name!r} and {other!r} overlap")
    return found


def _directory(source: Source) -> tuple[int, int, int]:
    """Where the directory begins, its size, and the number of members."""
    tail_start = max(0, source.size - END.size - FULL16)
    tail = bytes(source.view[tail_start:])
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) - place < END.size:
        raise ModelFormatError(f"{source.name}: a zip without its directory at the end: truncated")
    place += tail_start
    _, disk, first_disk, _, count, size, begin, _ = END.unpack_from(source.view, place)
    end = place
    if place >= LOCATOR.size:
        mark, _, place64, disks = LOCATOR.unpack_from(source.view, place - LOCATOR.size)
        if mark == b"PK\x06\x07":
            end = place64
            if place64 > place - LOCATOR.size - END64.size or disks > 1:
                raise ModelFormatError(f"{source.name}: the zip's directory lies beyond the file: altered")
            mark, _, _, _, disk, first_disk, _, count, size, begin = END64.unpack_from(source.view, place64)
            if mark != b"PK\x06\x06":
                raise ModelFormatError(f"{source.name}: the zip's directory is not where it should be: altered")
    if disk or first_disk:
        raise ModelFormatError(f"{source.name}: a zip in several parts; one file is expected")
    if begin + size > end:
        raise ModelFormatError(
            f"{source.name}: the zip's directory of {size} bytes at {begin} reaches beyond {end}: truncated or altered"
        )
    return begin, size, count


def _entry(source: Source, position: int, end: int) -> tuple[str, int, int, int, int]:
    """Name, size, offset and method of a member, and where the next entry begins."""
    if position + ENTRY.size > end:
        raise ModelFormatError(f"{source.name}: the zip's directory ends in the middle of an entry: truncated")
    (
        mark, _, _, flags, method, _, _, _, packed, size, n_name, n_extra, n_comment, _, _, _, offset,
    ) = ENTRY.unpack_from(source.view, position)  # fmt: skip
    position += ENTRY.size
    stop = position + n_name + n_extra + n_comment
    if mark != b"PK\x01\x02" or stop > end:
        raise ModelFormatError(f"{source.name}: an entry of the zip's directory is not one: altered")
    name = bytes(source.view[position : position + n_name]).decode("utf-8", "backslashreplace")
    where = f"{source.name}: member {name!r}"
    extra = bytes(source.view[position + n_name : position + n_name + n_extra])
    packed, size, offset = _wide(extra, packed, size, offset, where)
    if flags & 1:
        raise ModelFormatError(f"{where}: encrypted")
    if not method and packed != size:
        raise ModelFormatError(f"{where}: {packed} bytes are stored for {size}: altered")
    return name, packed, offset, method, stop


def stored(found: dict[str, Member], name: str, source: Source) -> Member:
    """The place of a member that may be read as it is."""
    place = found.get(name)
    if place is None:
        raise ModelFormatError(f"{source.name}: member {short(name)}: not in the file")
    if not place.is_stored:
        raise ModelFormatError(f"{source.name}: member {name!r}: compressed; PyTorch stores members as they are")
    return place


def _wide(extra: bytes, packed: int, size: int, offset: int, where: str) -> tuple[int, int, int]:
    """Sizes and offset, those of 64 bits from the ZIP64 field."""
    if FULL32 not in (packed, size, offset):
        return packed, size, offset
    place = 0
    while place + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, place)
        field = extra[place + 4 : place + 4 + length]
        if tag == 1:
            values = iter(struct.unpack_from(f"<{len(field) // 8}Q", field))
            wide = [next(values, -1) if value == FULL32 else value for value in (size, packed, offset)]
            if -1 in wide:
                break
            return wide[1], wide[0], wide[2]
        place += 4 + length
    raise ModelFormatError(f"{where}: its ZIP64 field is missing or too short: altered")


def _data_start(source: Source, name: str, offset: int, method: int, where: str) -> int:
    """Behind the member's own header, which must be that of this member."""
    if offset + LOCAL.size > source.size:
        raise ModelFormatError(f"{where}: begins at byte {offset}, the file has {source.size}: truncated or altered")
    mark, _, flags, own_method, _, _, _, _, _, n_name, n_extra = LOCAL.unpack_from(source.view, offset)
    place = offset + LOCAL.size
    own = bytes(source.view[place : place + n_name]).decode("utf-8", "backslashreplace")
    if mark != b"PK\x03\x04" or own != name or own_method != method or flags & 1:
        raise ModelFormatError(f"{where}: its header names it {own!r:.80}: not what the directory says, altered")
    return place + n_name + n_extra
