"""Which requests may share a run, and how: found for each model when it is loaded, and proved on it.

A rule is one of
  padded  requests of similar length, behind the model's own padding mask; attention leaves padding out, so only dense
          layers see it, and lengths of a group differ by a sixteenth at most
  rows    requests of equal shape
  alone   none
A model gets the first rule under which small examples run together give what each gives by itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pyclattn.errors import PyclattnError
from pyclattn.functional.coclustered import SHORTEST
from pyclattn.graph.padding import masks
from pyclattn.graph.program import Value, walk
from pyclattn.model import Model

Feeds = Mapping[str, np.ndarray]

# Lengths are padded to steps of a sixteenth, but not below 8 tokens: so that plans, which take 10 ms to make, are met
# again.
LEAST_STEP, STEPS = 8, 16
# Examples for the proof: sizes of open dimensions, tried in turn, and how large a row may be to be worth the time.
EXAMPLE_SIZES = (8, 64)
LARGEST_ROW = 200_000
# Of the largest number of an output. Runs together are the same bits in practice.
TOLERANCE = 1e-5
# What takes its scale from the whole tensor, other requests' rows included.
WHOLE_TENSOR = ("DynamicQuantizeLinear", "com.microsoft:DynamicQuantizeMatMul", "com.microsoft:DynamicQuantizeLSTM")


def n_tokens(values: Sequence[Value], feeds: Feeds) -> int:
    """The largest product of an input's open dimensions.

    Examples
    --------
    >>> n_tokens([Value("ids", "int64", ("batch", "length"))], {"ids": np.zeros((2, 30))})
    60
    """
    most = 0
    for value in values:
        product = 1
        for name, n in zip(value.shape, feeds[value.name].shape):
            product *= n if isinstance(name, str) else 1
        most = max(most, product)
    return most


def padded_length(n: int) -> int:
    """The next length that plans are made for.

    Examples
    --------
    >>> [padded_length(n) for n in (1, 16, 17, 130, 300, 8192, 8193)]
    [8, 16, 24, 136, 304, 8192, 8704]
    """
    step = max(LEAST_STEP, (1 << max(0, n.bit_length() - 1)) // STEPS)
    return -(-n // step) * step


@dataclass(frozen=True)
class Rule:
    """How requests of a model are put together and their outputs taken apart.

    Attributes
    ----------
    kind : str
        "padded", "rows" or "alone".
    inputs, outputs : dict of str to int or None
        The axis of the length in each; None where it has none.
    longest : int or None
        Padding up to this many tokens only.
    masks : dict of str to int
        The inputs that say what is padding, each with the number of a token, 1 or 0; the other one is padding.
    """

    kind: str = "alone"
    inputs: dict[str, int | None] = field(default_factory=dict)
    outputs: dict[str, int | None] = field(default_factory=dict)
    longest: int | None = None
    masks: dict[str, int] = field(default_factory=dict)

    def key(self, feeds: Feeds) -> Hashable | None:
        """Requests with the same key may share a run; None: with nobody."""
        shapes = {name: array.shape for name, array in feeds.items()}
        if self.kind == "alone" or not all(shapes.values()) or len({shape[0] for shape in shapes.values()}) != 1:
            return None
        if self.kind == "padded":
            length = self.length(feeds)
            if length is None:
                return None
            if self.longest is None or length <= self.longest:
                shapes = {n: _with(s, self.inputs[n], padded_length(length)) for n, s in shapes.items()}
        return tuple((name, shape[1:], feeds[name].dtype.char) for name, shape in sorted(shapes.items()))

    def length(self, feeds: Feeds) -> int | None:
        """The one length all inputs have, or None."""
        found = {feeds[name].shape[axis] for name, axis in self.inputs.items() if axis is not None}
        return found.pop() if len(found) == 1 else None

    def cost(self, values: Sequence[Value], feeds: Feeds) -> int:
        """Tokens that a request adds to a run, padding included: at most a sixteenth, or 7, more for each row."""
        tokens, length = n_tokens(values, feeds), self.length(feeds) if self.kind == "padded" else None
        return tokens // length * padded_length(length) if length else tokens

    def merge(self, requests: Sequence[Feeds]) -> dict[str, np.ndarray]:
        """The feeds of requests with the same key as those of one run."""
        if self.kind == "padded":
            requests = [self._padded(feeds) for feeds in requests]
        if len(requests) == 1:
            return dict(requests[0])
        return {name: np.concatenate([feeds[name] for feeds in requests]) for name in requests[0]}

    def _padded(self, feeds: Feeds) -> Feeds:
        length = self.length(feeds)
        if length is None or (self.longest is not None and length > self.longest):
            return feeds
        more = padded_length(length) - length
        result = {}
        for name, array in feeds.items():
            axis = self.inputs[name]
            widths = [(0, more if i == axis else 0) for i in range(array.ndim)]
            number = 1 - self.masks[name] if name in self.masks else 0
            result[name] = np.pad(array, widths, constant_values=number) if more and axis is not None else array
        return result

    def split(self, results: Feeds, requests: Sequence[Feeds]) -> list[dict[str, np.ndarray]]:
        """Each request's own outputs."""
        found, start = [], 0
        for feeds in requests:
            n_rows, length = len(next(iter(feeds.values()))), self.length(feeds) if self.kind == "padded" else None
            own = {}
            for name, array in results.items():
                part = array[start : start + n_rows] if len(requests) > 1 else array
                axis = self.outputs.get(name)
                if length is not None and axis is not None:
                    part = part[(slice(None),) * axis + (slice(length),)]
                own[name] = part
            start += n_rows
            found.append(own)
        return found


def _with(shape: tuple[int, ...], axis: int | None, n: int) -> tuple[int, ...]:
    return shape if axis is None else (*shape[:axis], n, *shape[axis + 1 :])


def rule_of(model: Model) -> Rule:
    """The first rule that holds on examples.

    Examples
    --------
    >>> from pyclattn.graph.program import Op, Program
    >>> x, y = Value("x", "float32", ("n", 2)), Value("y", "float32", ("n", 2))
    >>> rule_of(Model(Program([x], [y], [Op("Relu", ("x",), ("y",))]))).kind
    'rows'
    >>> rule_of(Model(Program([x], [y], [Op("CumSum", ("x", "axis"), ("y",))], {"axis": np.array(0)}))).kind
    'alone'
    """
    inputs, outputs = model.program.inputs, model.program.outputs
    rows = {v.shape[0] for v in inputs if v.shape}
    is_open = all(v.shape and isinstance(v.shape[0], str) and v.shape[0] != "..." for v in (*inputs, *outputs))
    if not is_open or any(v.shape[0] not in rows for v in outputs):
        return Rule()
    if any(op.kind in WHOLE_TENSOR for op in walk(model.program)):
        return Rule()
    for rule in (_padding_rule(model), Rule("rows")):
        if rule is not None and _holds(model, rule):
            return rule
    return Rule()


def _padding_rule(model: Model) -> Rule | None:
    """For a model with a mask and one open length: padding, as far as its attentions leave padding out."""
    inputs, outputs = model.program.inputs, model.program.outputs
    lengths = {name for v in (*inputs, *outputs) for name in v.shape[1:] if isinstance(name, str)}
    found = masks_of(model)
    if len(lengths) != 1 or len(found) != 1:
        return None
    (length,) = lengths
    if any(v.shape.count(length) > 1 for v in (*inputs, *outputs)):
        return None
    methods = {method for name in model.attentions for method in model.plan.methods(name)}
    if not methods <= {"exact", "auto", "coclustered"}:
        return None
    longest = None if methods <= {"exact"} else SHORTEST - 1  # shorter ones are computed exactly
    axes = [{v.name: v.shape.index(length) if length in v.shape else None for v in vs} for vs in (inputs, outputs)]
    return Rule("padded", axes[0], axes[1], longest, found)


def masks_of(model: Model) -> dict[str, int]:
    """The inputs that say what is padding, each with the number of a token; none where that cannot be tried."""
    inputs = model.program.inputs
    try:
        return masks(model.program, example(inputs, EXAMPLE_SIZES[0], 1, np.random.default_rng(0), {}))
    except (PyclattnError, ValueError, IndexError):
        return {}


def _holds(model: Model, rule: Rule) -> bool:
    """Whether two small requests run together give what each gives by itself."""
    tokens = rule.masks or masks_of(model)
    for size in EXAMPLE_SIZES:
        rng = np.random.default_rng(0)
        sizes = (size - 3, size) if rule.kind == "padded" else (size, size)
        requests = [example(model.program.inputs, n, batch + 1, rng, tokens) for batch, n in enumerate(sizes)]
        if max(array.size for feeds in requests for array in feeds.values()) > LARGEST_ROW:
            return False
        try:
            wanted = [model(**feeds) for feeds in requests]
            found = rule.split(model(**rule.merge(requests)), requests)
        except (PyclattnError, ValueError, IndexError):
            continue  # not a size this model takes
        return all(_same(one[name], other[name]) for one, other in zip(wanted, found) for name in one)
    return False


def example(
    values: Sequence[Value], size: int, batch: int, rng: np.random.Generator, tokens: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Random inputs that any vocabulary has; masks, each with its number of a token in ``tokens``, hide nothing."""
    feeds = {}
    for value in values:
        shape = [batch] + [size if isinstance(n, str) else n for n in value.shape[1:]]
        if value.name in tokens:
            feeds[value.name] = np.full(shape, tokens[value.name], value.dtype or "float32")
        elif np.dtype(value.dtype or "float32").kind == "f":
            feeds[value.name] = rng.standard_normal(shape).astype(value.dtype or "float32")
        else:
            feeds[value.name] = rng.integers(0, 2, shape).astype(value.dtype)
    return feeds


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    largest = np.abs(one).max(initial=0)
    return bool(np.isfinite(largest)) and bool((np.abs(one - other) <= TOLERANCE * largest).all())
