"""Columns of a batch, as engines give them, to one document's inputs each; and outputs back to columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from pyclattn.errors import ArgumentError, DTypeError, PyclattnError, ShapeError
from pyclattn.graph.planner import check_inputs, check_shape, located
from pyclattn.graph.program import Value
from pyclattn.model import Model
from pyclattn.serving.batching import Rule

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Document:
    """One row.

    Attributes
    ----------
    feeds : dict of str to ndarray
        Inputs with a batch of 1, without the padding behind them.
    n_padding : int
        Tokens that were taken off.
    """

    feeds: Feeds
    n_padding: int = 0


def n_rows(columns: Mapping[str, np.ndarray]) -> int:
    """Rows that every column has.

    Raises
    ------
    ShapeError

    Examples
    --------
    >>> n_rows({"ids": np.zeros((3, 8)), "name": np.array(["a", "b", "c"])})
    3
    """
    for name, column in columns.items():
        if getattr(column, "ndim", 1) == 0 or not hasattr(column, "__len__") or isinstance(column, Mapping | Set):
            raise DTypeError(f"column {name!r} must be an array or a list of rows, got {type(column).__name__}")
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        raise ShapeError(f"columns must have equally many rows, got {counts}")
    return next(iter(counts.values()), 0)


def documents(model: Model, rule: Rule, columns: Mapping[str, np.ndarray]) -> list[Document]:
    """The rows as inputs of a model, checked.

    Parameters
    ----------
    model : Model
    rule : Rule
        Of the model. Where padding may be added it may be taken off as well, and a mask may be missing: all is text.
    columns : dict of str to sequence
        By input's name: an array of equal rows, or arrays and lists of several lengths.

    Raises
    ------
    ArgumentError
        If a column is missing, or a row does not fit; the message names it.
    """
    inputs = model.program.inputs
    mask = next((v for v in inputs if v.name in rule.masks), None)
    given = [v for v in inputs if v.name in columns]
    if not given:
        raise ArgumentError(
            f"columns {', '.join(columns) or '(none)'}: no input is among them; the model takes "
            f"{', '.join(v.name for v in inputs)}"
        )
    found = []
    n_rows({v.name: columns[v.name] for v in given})
    # in their order: an index would be a label to a pandas column
    for row, cells in enumerate(zip(*(columns[v.name] for v in given))):
        try:
            feeds = model.filled({v.name: _cell(cell, v) for v, cell in zip(given, cells)})
            if mask is not None and mask.name not in feeds:
                feeds.update(_all_text(feeds, rule, mask))
            check_inputs(inputs, feeds)
        except PyclattnError as error:
            raise located(error, f"row {row}") from error
        found.append(Document(feeds) if mask is None else _without_padding(feeds, rule, mask.name))
    return found


def _cell(cell: object, value: Value) -> np.ndarray:
    """A row of a column with a batch of 1, in the type the model takes."""
    if cell is None or (type(cell) is not np.ndarray and np.ma.is_masked(cell)):
        what = "None" if cell is None else "a masked array"
        raise DTypeError(f"column {value.name!r} must hold an array a row, got {what}")
    try:
        array = np.asarray(cell)
        if array.dtype == object:  # lists in lists, as Arrow gives them
            array = np.array(array.tolist())
    except ValueError:
        raise ShapeError(f"column {value.name!r} must hold an array a row, got lists of several lengths") from None
    wanted = np.dtype(value.dtype or "float32")
    if array.size == 0:  # of which nothing tells the type: numpy calls [] float64
        array = array.astype(wanted)
    if array.dtype != wanted:
        if array.dtype == object or not np.can_cast(array.dtype, wanted, "same_kind"):
            raise DTypeError(f"column {value.name!r} must be {wanted}, got {array.dtype}")
        cast = array.astype(wanted)
        if wanted.kind in "iu" and not np.array_equal(cast, array):
            raise DTypeError(f"column {value.name!r} must be {wanted}, got {array.dtype} beyond its range")
        array = cast
    check_shape(value, (1, *array.shape))
    return array[None]


def _all_text(feeds: Feeds, rule: Rule, mask: Value) -> Feeds:
    """A mask that leaves nothing out, as long as the other inputs."""
    lengths = [feeds[n].shape[axis] for n, axis in rule.inputs.items() if n in feeds and axis and feeds[n].ndim > axis]
    return {mask.name: np.full((1, lengths[0]), rule.masks[mask.name], mask.dtype)} if lengths else {}


def _without_padding(feeds: Feeds, rule: Rule, mask: str) -> Document:
    """What the mask leaves out at the end is not computed; one token stays in any case."""
    length, is_text = rule.length(feeds), (feeds[mask] != 0) == bool(rule.masks[mask])
    if length is None or is_text.ndim != 2:
        return Document(feeds)
    own = max(1, int(np.flatnonzero(is_text[0])[-1]) + 1 if is_text.any() else 1)
    if own >= length:
        return Document(feeds)
    kept = {}
    for name, array in feeds.items():
        axis = rule.inputs[name]
        kept[name] = array if axis is None else array[(slice(None),) * axis + (slice(own),)]
    return Document(kept, length - own)


def column(value: Value, cells: Sequence[np.ndarray], is_ragged: bool) -> np.ndarray:
    """An output's cells, each with a batch of 1, as a column.

    Parameters
    ----------
    value : Value
        The output.
    cells : sequence of ndarray
    is_ragged : bool
        Whether rows may have different lengths: then an array of arrays where the output has an open dimension, even
        if these rows happen to be equal, so that a column is of one type in all batches.

    Raises
    ------
    ShapeError
        If an output does not have a row for a document.

    Examples
    --------
    >>> y = Value("y", "float32", ("batch", "length"))
    >>> column(y, [np.zeros((1, 2)), np.ones((1, 2))], False)
    array([[0., 0.],
           [1., 1.]])
    >>> column(y, [np.zeros((1, 2)), np.ones((1, 3))], True)
    array([array([0., 0.]), array([1., 1., 1.])], dtype=object)
    """
    wrong = next((cell.shape for cell in cells if cell.shape[:1] != (1,)), None)
    if wrong is not None:
        raise ShapeError(f"output {value.name!r} must have one row for each document, got shape {wrong} for one")
    is_open = any(isinstance(n, str) for n in value.shape[1:])
    if not cells and not (is_open and is_ragged):
        return np.empty([0 if isinstance(n, str) else n for n in ("", *value.shape[1:])], value.dtype or "float32")
    if not (is_open and is_ragged) and len({cell.shape for cell in cells}) == 1:
        return np.concatenate(cells)
    found = np.empty(len(cells), object)
    for i, cell in enumerate(cells):
        found[i] = cell[0].copy()  # not a view that keeps the whole run
    return found


def with_padding(outputs: Feeds, rule: Rule, n_padding: int) -> Feeds:
    """Outputs as long as the row that came: zeros where padding was."""
    if not n_padding:
        return outputs
    found = {}
    for name, array in outputs.items():
        axis = rule.outputs.get(name)
        widths = [(0, n_padding if i == axis else 0) for i in range(array.ndim)]
        found[name] = array if axis is None else np.pad(array, widths)
    return found


def beside(columns: Mapping[str, np.ndarray], model: Model, outputs: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns that are none of the model's inputs: they go through.

    Raises
    ------
    ArgumentError
        If one has the name of an output.
    """
    inputs = {v.name for v in model.program.inputs}
    kept = {name: column for name, column in columns.items() if name not in inputs}
    twice = [name for name in kept if name in outputs]
    if twice:
        raise ArgumentError(f"columns {', '.join(twice)} have the name of an output: rename them")
    return kept
