"""What torch.save wrote, as a tree of containers, numbers and tensors still in the file.

zip (PyTorch 1.6 and later): one pickle, ``NAME/data.pkl``, and a member ``NAME/data/KEY`` a storage.
legacy: five pickles (a magic number, the format's version, the writer's system, the objects, the keys of the storages)
and then each storage: its length as 8 bytes, its elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyclattn.errors import ArgumentError, ModelFormatError
from pyclattn.weights import dtypes
from pyclattn.weights.allowed import ElementType, find
from pyclattn.weights.archive import Member, members, stored
from pyclattn.weights.kinds import LEGACY_MAGIC
from pyclattn.weights.pickled import Builder, Unknown, shown
from pyclattn.weights.source import Source
from pyclattn.weights.tensors import Storage, is_count
from pyclattn.weights.unpickler import MAX_NAME, ROOM, Machine

OBJECTS = ("refuse", "placeholder")
LEGACY_VERSION = 1001


def read_zip(source: Source, objects: str = "refuse") -> Any:
    """The tree of a zip file.

    Raises
    ------
    ModelFormatError
    """
    found = members(source)
    pickles = [name for name in found if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ModelFormatError(f"{source.name}: {_other_zip(found, len(pickles))}")
    folder = pickles[0][: -len("data.pkl")]
    record = folder + "byteorder"
    byteorder = _byteorder(source, stored(found, record, source)) if record in found else "<"
    storages: dict[str, Storage] = {}

    def persistent(given: Any) -> Any:
        kind, key, n_bytes = _storage_id(given[:5] if type(given) is tuple else given)
        known = storages.get(key)
        if known is None:
            place = stored(found, f"{folder}data/{key}", source)
            if place.size != n_bytes:
                raise ModelFormatError(
                    f"{source.name}: storage {key!r}: {n_bytes} bytes are needed, the member has {place.size}"
                )
            known = storages[key] = Storage(source, key, kind.dtype, n_bytes, place.start, byteorder)
        return _agreed(known, kind, n_bytes)

    place = stored(found, pickles[0], source)
    where = f"{source.name}: member {pickles[0]!r}"
    machine = Machine(
        source.view[: place.start + place.size], place.start, where, _finder(where, objects), persistent,
        ROOM + source.size,
    )  # fmt: skip
    return machine.run()


def read_legacy(source: Source, objects: str = "refuse") -> Any:
    """The tree of a legacy file.

    Raises
    ------
    ModelFormatError
    """
    storages: dict[str, Storage] = {}

    def persistent(given: Any) -> Any:
        if type(given) is tuple and len(given) == 4 and given[0] == "module":
            return given[1]  # a class and its source text, which is not read
        kind, key, n_bytes = _storage_id(given[:5] if type(given) is tuple else given)
        if key not in storages:
            storages[key] = Storage(source, key, kind.dtype, n_bytes, None)
        root = _agreed(storages[key], kind, n_bytes)
        return root if len(given) < 6 or given[5] is None else _view(root, kind, given[5])

    views: dict[str, Storage] = {}

    def _view(root: Storage, kind: ElementType, metadata: Any) -> Storage:
        """A storage that is part of another (PyTorch before 0.4)."""
        if type(metadata) is not tuple or len(metadata) != 3 or not all(map(is_count, metadata[1:])):
            raise ValueError("has a view of a storage that is not a key, an offset and a length")
        key, offset, count = metadata
        if type(key) is not str or (offset + count) * kind.itemsize > root.n_bytes:
            raise ValueError(f"has a view of storage {root.key!r} that reaches beyond it")
        if key not in views:
            views[key] = Storage(source, key, kind.dtype, count * kind.itemsize, offset * kind.itemsize, root=root)
        return _agreed(views[key], kind, count * kind.itemsize)

    position, room = 0, ROOM + source.size
    parts: list[Any] = []
    for name in ("magic number", "version", "system", "objects", "storage keys"):
        where = f"{source.name}: {name}"
        # Only the objects may name classes and storages.
        inner = (_finder(where, objects), persistent) if name == "objects" else (_finder(where, "refuse"), _nothing)
        machine = Machine(source.view, position, where, *inner, room)
        parts.append(machine.run())
        position, room = machine.position, machine.room
    magic, version, _, tree, keys = parts
    if magic != LEGACY_MAGIC or version != LEGACY_VERSION:
        raise ModelFormatError(f"{source.name}: legacy version {shown(version)}, {LEGACY_VERSION} is read")
    _place(source, storages, keys, position)
    return tree


def _place(source: Source, storages: dict[str, Storage], keys: Any, position: int) -> None:
    """Find where each storage lies: one behind the other, in the order of the keys."""
    if type(keys) is not list or len(keys) != len(storages):
        raise ModelFormatError(f"{source.name}: the keys of its storages are not those its tensors name: altered")
    for key in keys:
        storage = storages.pop(key, None) if type(key) is str else None
        if storage is None:
            raise ModelFormatError(f"{source.name}: storage {shown(key)}: named by no tensor, or twice")
        count = int.from_bytes(source.view[position : position + 8], "little")
        position += 8
        itemsizes = (dtypes.ITEMSIZE[storage.dtype],) if storage.dtype else (1, 4)  # 4: of quantised ones
        if count * itemsizes[0] != storage.n_bytes and count * itemsizes[-1] != storage.n_bytes:
            raise ModelFormatError(
                f"{source.name}: storage {key!r}: has {count} elements, "
                f"its tensors expect {storage.n_bytes // itemsizes[0]}"
            )
        if position + storage.n_bytes > source.size:
            raise ModelFormatError(
                f"{source.name}: storage {key!r}: ends at byte {position + storage.n_bytes}, "
                f"the file has {source.size}: truncated"
            )
        storage.start = position
        position += storage.n_bytes


def _storage_id(given: Any) -> tuple[ElementType, str, int]:
    """Kind, key and bytes of ("storage", class, key, device, length)."""
    if type(given) is not tuple or len(given) != 5 or given[0] != "storage":
        raise ValueError(f"has a persistent id that is no storage: {shown(given)}")
    _, kind, key, _, count = given
    key = str(key) if type(key) is int else key
    if type(kind) is not ElementType or type(key) is not str or len(key) > MAX_NAME or not is_count(count):
        raise ValueError("has a storage without a type, a key or a length, or with a long key")
    return kind, key, count * kind.itemsize


def _agreed(storage: Storage, kind: ElementType, n_bytes: int) -> Storage:
    if storage.dtype != kind.dtype or storage.n_bytes != n_bytes:
        raise ValueError(f"names storage {storage.key!r} with two types or lengths")
    return storage


def _nothing(given: Any) -> Any:
    raise ValueError("names a storage where none may be")


def _finder(where: str, objects: str) -> Callable[[str, str], Builder | ElementType | Unknown]:
    if objects not in OBJECTS:
        raise ArgumentError(f"objects must be one of {', '.join(OBJECTS)}, got {objects!r}")
    unknown: dict[str, Unknown] = {}

    def look_up(module: str, name: str) -> Builder | ElementType | Unknown:
        found = find(module, name)
        if found is not None:
            return found
        full = f"{module}.{name}"
        if objects == "refuse":
            raise ModelFormatError(
                f"{where}: object {full:.200}: tensors, containers and numbers are allowed, and nothing in a file is "
                "run; objects='placeholder' puts an inert stand-in and reads the rest"
            )
        return unknown.setdefault(full, Unknown(full))

    return look_up


def _byteorder(source: Source, place: Member) -> str:
    """Of the storages: a record of PyTorch 2.1 and later; before, files were little-endian."""
    text = bytes(source.view[place.start : place.start + min(place.size, 16)])
    if text not in (b"little", b"big"):
        raise ModelFormatError(f"{source.name}: byteorder is {text!r}, expected little or big")
    return "<" if text == b"little" else ">"


def _other_zip(found: dict[str, Member], n_pickles: int) -> str:
    names = list(found)
    if n_pickles > 1:
        return f"{n_pickles} checkpoints in one zip, one is expected"
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy .npz archive: read it with numpy.load"
    if "[Content_Types].xml" in found:
        return "an Office document"
    if "config.json" in found and "model.weights.h5" in found:
        return "a Keras model"
    if any(name.endswith("/.data/extern_modules") for name in names):
        return "a torch.package archive, which holds code; save its state_dict instead"
    return f"a zip archive, but not one torch.save wrote: no data.pkl among {names[:3]}"
