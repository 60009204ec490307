"""From the tree of a checkpoint to named tensors: which part holds the weights, and what each is called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pyclattn.errors import ArgumentError, ModelFormatError
from pyclattn.weights.allowed import ElementType, PickledArray
from pyclattn.weights.dtypes import ITEMSIZE
from pyclattn.weights.pickled import Builder, Placeholder, Unknown
from pyclattn.weights.strict_json import short
from pyclattn.weights.tensors import Leaf, Refused, Storage, Tensor

# Where training code keeps the weights, in this order: Lightning and most others; DeepSpeed; fairseq, YOLO, MAE.
WEIGHTS = ("state_dict", "model_state_dict", "model_state", "module", "model", "net", "network", "weights", "params")
# What lies beside them and is not weights.
BESIDE = (
    "optimizer", "optimizers", "optimizer_states", "optimizer_state_dict", "optim", "optim_state_dict",
    "lr_schedulers", "lr_scheduler", "scheduler", "scheduler_state_dict", "callbacks", "loops", "hyper_parameters",
    "rng_state", "scaler", "grad_scaler", "amp",
)  # fmt: skip
MAX_DEPTH = 64
MAX_WRAPPERS = 4  # {"model": {"state_dict": ...}}
MAX_NODES = 500_000
MAX_NAMES = 32 << 20  # characters of all names together, and of one:
MAX_NAME = 4096
CONTAINERS = (dict, list, tuple, Placeholder)
BARE = "tensor"  # the name of a tensor that was saved by itself


def named_tensors(tree: Any, where: str, key: str | None = None) -> dict[str, Leaf]:
    """Dotted name -> tensor, of the part of a checkpoint that holds the weights.

    Parameters
    ----------
    tree : object
        What `read_zip` or `read_legacy` gave.
    where : str
        The file, for messages.
    key : str, optional
        Which part: ``"state_dict"``, ``"model.ema"``; ``""`` is everything in the file. By default it is found: below
        one of `WEIGHTS` where the checkpoint has that and holds tensors there, else everything but `BESIDE`.

    Raises
    ------
    ArgumentError
        If there is no such part; lists those there are.
    ModelFormatError
        If the tree is deeper or larger than any checkpoint.
    """
    part = _found(tree) if key is None else _chosen(tree, key, where)
    leave_out = BESIDE if key is None else ()
    found: dict[str, Leaf] = {}
    length = 0
    for name, leaf in _leaves(part, where, leave_out):
        length += len(name)
        if length > MAX_NAMES:
            raise ModelFormatError(f"{where}: the names of its tensors have more than {MAX_NAMES} characters")
        if name in found:
            raise ModelFormatError(f"{where}: tensor {name!r}: two tensors have this name")
        found[name] = leaf
    return found


def arrays_of(tree: Any, where: str, widen: bool = True) -> Any:
    """The tree with arrays for its tensors; containers that were shared are shared."""
    made: dict[int, Any] = {}
    unfinished = object()

    def convert(value: Any, depth: int) -> Any:
        if _is_leaf(value):
            return (
                made[id(value)] if id(value) in made else made.setdefault(id(value), _array(_leaf(value), where, widen))
            )
        if type(value) not in CONTAINERS:
            return value.name if isinstance(value, (ElementType, Builder, Unknown)) else value
        if depth > MAX_DEPTH:
            raise ModelFormatError(f"{where}: nested more than {MAX_DEPTH} deep")
        known = made.get(id(value))
        if known is unfinished:
            raise ModelFormatError(f"{where}: a container that holds itself")
        if known is not None:
            return known
        made[id(value)] = unfinished
        result: Any
        if type(value) is dict:
            result = {key: convert(item, depth + 1) for key, item in value.items()}
        elif type(value) is Placeholder:
            result = Placeholder(value.name, convert(value.args, depth + 1))
            result.state = convert(value.state, depth + 1)
            result.items = convert(value.items, depth + 1)
        else:
            result = type(value)([convert(item, depth + 1) for item in value])
        made[id(value)] = result
        return result

    return convert(tree, 0)


def _array(leaf: Leaf, where: str, widen: bool) -> np.ndarray:
    try:
        return leaf.array(widen)
    except ModelFormatError as error:
        raise ModelFormatError(f"{where}: {error}") from error


def _leaf(value: Any) -> Leaf:
    """A storage that was saved by itself is all its elements."""
    if type(value) is not Storage:
        return value
    dtype = value.dtype or "uint8"
    return Tensor(value, dtype, 0, (value.n_bytes // ITEMSIZE[dtype],), (1,))


def _is_leaf(value: Any) -> bool:
    return type(value) in (Tensor, PickledArray, Refused, Storage)


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """Names and values below a container; of a module that was saved whole, those its state_dict would have."""
    if type(value) is dict:
        yield from ((_text(name), item) for name, item in value.items())
    elif type(value) in (list, tuple):
        yield from ((str(i), item) for i, item in enumerate(value))
    elif type(value) is Placeholder and type(value.state) is dict:
        parts = [value.state.get(part) for part in ("_parameters", "_buffers", "_modules")]
        if not any(type(part) is dict for part in parts):
            yield from _children(value.state)
            return
        passing = value.state.get("_non_persistent_buffers_set")
        for part in parts:
            for name, item in part.items() if type(part) is dict else ():
                if part is not parts[1] or type(passing) is not set or name not in passing:
                    yield _text(name), item


def _text(name: Any) -> str:
    return name if type(name) is str else name.decode("latin1") if type(name) is bytes else str(name)


def _leaves(part: Any, where: str, leave_out: tuple[str, ...]) -> Iterator[tuple[str, Leaf]]:
    """Each tensor with its dotted name, in order; no recursion, so depth is bounded by a number, not by the stack."""
    if _is_leaf(part):
        yield BARE, _leaf(part)
        return
    open_ones: list[tuple[str, Iterator[tuple[str, Any]]]] = [("", _children(part))]
    count = 0
    while open_ones:
        prefix, rest = open_ones[-1]
        for name, value in rest:
            count += 1
            if count > MAX_NODES:
                raise ModelFormatError(f"{where}: more than {MAX_NODES} values in its containers")
            if _is_leaf(value):
                yield prefix + name, _leaf(value)
            elif type(value) in CONTAINERS and not (name in leave_out and len(open_ones) == 1):
                if len(open_ones) >= MAX_DEPTH:
                    raise ModelFormatError(f"{where}: nested more than {MAX_DEPTH} deep, or holds itself")
                if len(prefix) + len(name) > MAX_NAME:
                    raise ModelFormatError(
                        f"{where}: a name of more than {MAX_NAME} characters: {short(prefix + name)}"
                    )
                open_ones.append((f"{prefix}{name}.", _children(value)))
                break
        else:
            open_ones.pop()


def _found(tree: Any) -> Any:
    """The part that holds the weights."""
    empty: set[int] = set()
    for _ in range(MAX_WRAPPERS):
        inner = _wrapper(dict(_children(tree)), empty) if type(tree) is dict else None
        if inner is None:
            break
        tree = inner
    return tree


def _wrapper(children: dict[str, Any], empty: set[int]) -> Any:
    """The value of the first known key, where it is a container with tensors somewhere in it."""
    for name in WEIGHTS:
        value = children.get(name)
        if type(value) in (dict, Placeholder) and _holds_tensors(value, empty):
            return value
    return None


def _holds_tensors(value: Any, empty: set[int]) -> bool:
    """Whether a tensor lies anywhere below; containers known to be ``empty`` of them are looked at once."""
    seen, ahead = set(empty), [value]
    while ahead:
        value = ahead.pop()
        if _is_leaf(value):
            return True
        if type(value) in CONTAINERS and id(value) not in seen:
            seen.add(id(value))
            ahead.extend(item for _, item in _children(value))
    empty |= seen
    return False


def _chosen(tree: Any, key: str, where: str) -> Any:
    part, rest = tree, key
    while rest:
        children = dict(_children(part))
        # a name may hold dots itself: the longest that fits is taken
        pieces = rest.split(".")
        for n in range(len(pieces), 0, -1):
            name = ".".join(pieces[:n])
            if name in children:
                part, rest = children[name], ".".join(pieces[n:])
                break
        else:
            there = ", ".join(list(children)[:20]) or "nothing"
            raise ArgumentError(f"key={key!r} is not in {where}; at {rest!r} there is: {there}")
    return part
