"""`BatchEncoder`: a model as a function from columns to columns, for engines that run functions in many processes."""

from __future__ import annotations

import operator
import os
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from pyclattn import _threads
from pyclattn.errors import ArgumentError, DTypeError, PyclattnError
from pyclattn.functional._check import one_of
from pyclattn.functional.precision import CHOICES
from pyclattn.graph.planner import located
from pyclattn.graph.program import Value
from pyclattn.model import Model, load
from pyclattn.plan import Plan
from pyclattn.serving.batching import Rule, rule_of
from pyclattn.serving.columns import Document, Feeds, beside, column, documents, n_rows, with_padding
from pyclattn.serving.limits import Limits
from pyclattn.serving.repository import Signature, signature_of

# Models a process keeps for encoders that come by pickle with every task: the one in use, and one of another stage.
N_KEPT = 2
_lock = Lock()  # threads of a worker that ask for a model at once load it once


class BatchEncoder:
    """A model applied to the rows of a batch; pickled as a path, so that an engine can send it to its workers.

    Each process loads the model when it is first called and keeps it, also for encoders that arrive with later tasks.
    Rows of similar length run together, longest first, up to a budget of tokens; a row is padded to the same length
    whatever it runs with. So the result depends on the row alone, and is the same however an engine cuts its batches.

    Parameters
    ----------
    path : path-like
        A model as `pyclattn.load` takes it, at the same place for every worker.
    plan : optional
        The ``attention`` of `pyclattn.load`. A plan's file is read now, and its content goes to the workers.
    precision : str
        As of `pyclattn.load`. "auto" is decided by each worker: where their processors differ, so do last digits.
    outputs : sequence of str, optional
        Outputs wanted; all by default. Take what is small: an engine moves what is returned.
    n_threads : int, optional
        Of a call. By default what the engine gave the worker: PYCLATTN_NUM_THREADS, else OMP_NUM_THREADS as Ray, Dask,
        Spark and joblib set it, else 1 in a process of multiprocessing, else the CPUs the process may use.
    max_batch_tokens : int
        What rows that run together have at most, padding included; a longer row runs alone. 0: each runs alone.

    Raises
    ------
    ArgumentError, ModelFormatError
        If the plan is none, or a number is out of range. A model that is not there is told by the first call, since it
        need not be where the encoder is made.

    Examples
    --------
    >>> import pickle, tempfile
    >>> from pyclattn.graph.program import Op, Program
    >>> from pyclattn.graph.serial import save_program
    >>> x, y = Value("x", "float32", ("batch", "n")), Value("y", "float32", ("batch", "n"))
    >>> path = os.path.join(tempfile.mkdtemp(), "relu.safetensors")
    >>> save_program(path, Program([x], [y], [Op("Relu", ("x",), ("y",))]))
    >>> encoder = pickle.loads(pickle.dumps(BatchEncoder(path, n_threads=1)))
    >>> encoder({"name": np.array(["a", "b"]), "x": np.array([[-1, 2], [3, -4]], np.float32)})
    {'name': array(['a', 'b'], dtype='<U1'), 'y': array([[0., 2.],
           [3., 0.]], dtype=float32)}
    """

    def __init__(
        self, path: str | os.PathLike, *, plan: Any = None, precision: str = "float32",
        outputs: Sequence[str] | None = None, n_threads: int | None = None,
        max_batch_tokens: int = Limits.max_batch_tokens,
    ):  # fmt: skip
        self.path = os.path.abspath(path)  # a worker may have another working folder
        self.precision = one_of("precision", precision, CHOICES)  # whether it can be had, a worker's processor says
        self.outputs = _names(outputs)
        self.n_threads = None if n_threads is None else _threads.resolve(n_threads)
        self.max_batch_tokens = _budget(max_batch_tokens)
        self._plan = None if plan is None else Plan.of(plan).to_json()
        self._held: tuple[Model, Rule] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}

    def __repr__(self) -> str:
        return f"BatchEncoder({self.path!r}, n_threads={self.n_threads}, max_batch_tokens={self.max_batch_tokens})"

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the rows of a batch.

        Parameters
        ----------
        batch : dict of str to ndarray
            Columns with a row for each document. The model's inputs: arrays (rows, ...), or arrays of objects whose
            rows are arrays or lists of several lengths; then a padding mask may be left out. Padding that a mask
            leaves out at a row's end is not computed. Other columns go through.

        Returns
        -------
        dict of str to ndarray
            The other columns, and the outputs. One with a length is an array of arrays if an input was; else as long
            as the input, zero where padding was.

        Raises
        ------
        ArgumentError
            For columns and rows that do not fit the model; the row is named.
        ModelFormatError
            If there is no model at the path.
        """
        if not isinstance(batch, Mapping):
            raise DTypeError(f"batch must be a dict of columns, got {type(batch).__name__}")
        model, rule = self._loaded()
        wanted = [v for v in model.program.outputs if self.outputs is None or v.name in self.outputs]
        others = beside(batch, model, [v.name for v in wanted])
        n_rows(batch)
        rows = documents(model, rule, batch)
        cells: list[Feeds] = [{}] * len(rows)
        for group in groups(rule, model.program.inputs, [row.feeds for row in rows], self.max_batch_tokens):
            for i, found in zip(group, _run(model, rule, [rows[i] for i in group], group)):
                cells[i] = {v.name: found[v.name] for v in wanted}
        is_ragged = any(_is_ragged(batch[v.name]) for v in model.program.inputs if v.name in batch)
        return {**others, **{v.name: column(v, [cell[v.name] for cell in cells], is_ragged) for v in wanted}}

    def _loaded(self) -> tuple[Model, Rule]:
        """The model: an encoder that lives as long as its worker keeps the one it started with."""
        if self._held is None:
            with _lock:
                n_threads = _threads.of_worker() if self.n_threads is None else self.n_threads
                model, rule = _load(self.path, signature_of(Path(self.path)), self._plan, self.precision, n_threads)
            known = [v.name for v in model.program.outputs]
            unknown = [name for name in self.outputs or () if name not in known]
            if unknown:
                raise ArgumentError(f"outputs {', '.join(unknown)} do not exist; the model has {', '.join(known)}")
            self._held = model, rule
        return self._held


@lru_cache(maxsize=N_KEPT)
def _load(
    path: str, signature: Signature | None, plan: str | None, precision: str, n_threads: int
) -> tuple[Model, Rule]:
    model = load(path, None if plan is None else Plan.from_json(plan), precision=precision, n_threads=n_threads)
    return model, rule_of(model)


def groups(rule: Rule, inputs: Sequence[Value], requests: Sequence[Feeds], max_tokens: int) -> list[list[int]]:
    """Indices of requests that run together, longest first.

    Parameters
    ----------
    rule : Rule
    inputs : sequence of Value
        Of the model.
    requests : sequence of dict of str to ndarray
    max_tokens : int
        Of a group, padding included; a request that is larger makes one by itself.

    Examples
    --------
    >>> ids, rule = Value("ids", "int64", ("batch", "length")), Rule("padded", {"ids": 1})
    >>> groups(rule, [ids], [{"ids": np.zeros((1, n))} for n in (5, 60, 8, 7, 61)], 16)
    [[1], [4], [0, 2], [3]]
    """
    costs = [rule.cost(inputs, feeds) for feeds in requests]
    found: list[list[int]] = []
    open_: dict[Hashable | None, tuple[list[int] | None, int]] = {}
    for i in sorted(range(len(requests)), key=lambda i: -costs[i]):
        key = rule.key(requests[i])
        group, size = open_.get(key, (None, 0))
        if group is None or key is None or size + costs[i] > max_tokens:
            group, size = [], 0
            found.append(group)
        group.append(i)
        open_[key] = group, size + costs[i]
    return found


def _run(model: Model, rule: Rule, group: Sequence[Document], rows: Sequence[int]) -> list[Feeds]:
    """Outputs of each; an error names the row that is at fault."""
    requests = [document.feeds for document in group]
    try:
        # also one alone is padded to the length it has in company: the same bits
        is_shared = rule.key(requests[0]) is not None
        results = model(**(rule.merge(requests) if is_shared else requests[0]))
    except PyclattnError:
        if len(group) > 1:
            return [_run(model, rule, [document], [row])[0] for document, row in zip(group, rows)]
        is_shared = False
        try:
            results = model(**requests[0])  # a table of positions may end between the row's length and the padded one
        except PyclattnError as error:
            raise located(error, f"row {rows[0]}") from error
    own = rule.split(results, requests) if is_shared else [results]
    return [with_padding(outputs, rule, document.n_padding) for outputs, document in zip(own, group)]


def _is_ragged(given: np.ndarray) -> bool:
    """Whether a column's rows may have several lengths."""
    return not isinstance(given, np.ndarray) or given.dtype == object


def _names(outputs: Sequence[str] | None) -> tuple[str, ...] | None:
    if outputs is None:
        return None
    if isinstance(outputs, str) or not outputs or not all(isinstance(name, str) for name in outputs):
        raise ArgumentError(f"outputs must be a list of names, got {outputs!r}")
    return tuple(outputs)


def _budget(max_batch_tokens: int) -> int:
    try:
        number = operator.index(max_batch_tokens)
    except TypeError:
        raise DTypeError(f"max_batch_tokens must be a whole number, got {max_batch_tokens!r}") from None
    if number < 0:
        raise ArgumentError(f"max_batch_tokens must be at least 0, got {number}")
    return number
