"""load() and Model: what a service holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import entry_points
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from pyclattn import _threads
from pyclattn.errors import ArgumentError, DTypeError, MemoryLimitError, ModelFormatError, PyclattnError
from pyclattn.functional import costs
from pyclattn.functional._check import array_of, whole
from pyclattn.functional.precision import resolved
from pyclattn.graph.executor import Executor
from pyclattn.graph.identity import ATTENTION, fingerprint, origins
from pyclattn.graph.planner import check_shape, located
from pyclattn.graph.program import Op, Program, Value, walk
from pyclattn.graph.run_report import RunReport, recording
from pyclattn.graph.serial import load_program, save_program
from pyclattn.graph.spec import Observed, Settings, Spec
from pyclattn.graph.weights import weight_bytes
from pyclattn.plan import Plan
from pyclattn.weights.targets import as_path, check_target

# ONNX Runtime's names of element types
_ORT_TYPES = {"float32": "float", "float64": "double", "float16": "float16"}
PLAN_KEY = "pyclattn.plan"  # in the metadata of a program


@dataclass(frozen=True)
class NodeArg:
    """An input or output of a model, with onnxruntime's attributes."""

    name: str
    shape: list[int | str]
    type: str


def load(
    path: str | os.PathLike,
    attention: str | Mapping | Plan | None = None,
    *,
    precision: str = "float32",
    n_threads: int | None = None,
    max_memory: int | None = None,
) -> Model:
    """A model from a file, ready to run.

    Parameters
    ----------
    path : path-like
        A file pyclattn-export or `Model.save` wrote; one of a kind for which a reader is installed (``.onnx`` with
        ``pip install pyclattn[export]``); or a Hugging Face folder, config.json beside weights, of an encoder
        (docs/layers.md lists them).
    attention : str, mapping or Plan, optional
        "exact", "clustered", "improved-clustered", "coclustered", or "auto": exact or co-clustered, whichever should be
        faster here (rates are measured once, when a model that asks for it is first loaded);
        ``{"method": ..., **parameters}``; a mapping of the names in `Model.attentions` to either, "default" for the
        rest; a plan, or the path of one, ending in .json. By default the plan that was saved with the model; exact if
        there is none.
    precision : str
        Of the products of dense layers, convolutions and attention (docs/bfloat16.md): "float32"; "bfloat16", on a
        processor with AVX512-BF16; or "auto": bfloat16 where the processor has it.
    n_threads : int, optional
        Default: PYCLATTN_NUM_THREADS, else the CPUs this process may use.
    max_memory : int, optional
        Bytes that weights and one run may take together. Kept by smaller blocks, or a run is refused before it
        starts. Weights are left as they are then, and dense layers float32.

    Returns
    -------
    Model

    Raises
    ------
    ModelFormatError
        If the file is missing, truncated, altered or of an unknown kind.
    UnsupportedOpError
        Listing all operators that pyclattn does not run.
    BackendError
        If bfloat16 was asked for and the processor, or the instruction set that was chosen, does not have it.
    """
    path = as_path("path", path)
    try:
        return Model(
            read_program(path),
            attention=attention,
            precision=precision,
            n_threads=n_threads,
            max_memory=max_memory,
            path=str(path),
        )
    except PyclattnError as error:
        if str(path) in str(error) or isinstance(error, ArgumentError):
            raise
        raise located(error, str(path)) from error


def read_program(path: Path) -> Program:
    """What `load` makes a model of."""
    program = _reader(path)(path)
    # a converted model went through this before, and a folder is written with fused operators
    if path.suffix.lower() != ".safetensors" and not path.is_dir():
        from pyclattn.graph.passes import optimize  # here: a converted model, as services load it, needs none

        program, _ = optimize(program)
    return program


def _reader(path: Path):
    """The function that reads files of this kind."""
    if path.is_dir():
        from pyclattn.huggingface import read_folder  # here, since a converted model, as services load it, needs none

        return read_folder
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return load_program
    if not path.exists():
        raise ModelFormatError(f"{path}: no such file or folder (nothing is fetched from a hub)")
    found = {point.name: point for point in entry_points(group="pyclattn.readers")}
    if suffix in found:
        try:
            return found[suffix].load()
        except ImportError as error:
            raise ModelFormatError(
                f"{path}: reading {suffix} files needs {error.name}: pip install pyclattn[export]"
            ) from error
    if suffix == ".onnx":
        raise ModelFormatError(f"{path}: no reader for .onnx files is installed: pip install pyclattn[export]")
    raise ModelFormatError(f"{path}: files of kind {suffix!r} are not known, .safetensors and .onnx are")


class Model:
    """A converted model, safe to call from many threads.

    Parameters
    ----------
    program : Program
    attention, precision, n_threads, max_memory
        As of `load`.
    path : str
        For messages.
    observe : callable, optional
        Called with a `pyclattn.graph.spec.Observed` after each attention that can be replaced: what it was given and
        gave, for calibration and research.

    Attributes
    ----------
    program : Program
    attentions : list of str
        Names of the attentions that can be replaced.
    plan : Plan
    precision : str
        "float32" or "bfloat16": what "auto" has become.
    n_threads : int

    Examples
    --------
    >>> from pyclattn.graph.program import Op
    >>> x, y = Value("x", "float32", ("n", 2)), Value("y", "float32", ("n", 2))
    >>> model = Model(Program([x], [y], [Op("Relu", ("x",), ("y",))]))
    >>> model(x=np.array([[-1, 2]], np.float32))
    {'y': array([[0., 2.]], dtype=float32)}
    >>> model.run(None, {"x": np.array([[3, -4]], np.float32)})
    [array([[3., 0.]], dtype=float32)]
    >>> model.get_inputs()
    [NodeArg(name='x', shape=['n', 2], type='tensor(float)')]
    """

    def __init__(
        self,
        program: Program,
        *,
        attention: str | Mapping | Plan | None = None,
        precision: str = "float32",
        n_threads: int | None = None,
        max_memory: int | None = None,
        path: str = "",
        observe: Callable[[Observed], None] | None = None,
    ):
        self.program, self.path = program, path
        self._given = {
            "precision": precision, "n_threads": n_threads, "max_memory": max_memory, "path": path, "observe": observe
        }  # fmt: skip
        optional = program.metadata.get("optional")
        optional = optional if isinstance(optional, Mapping) else {}
        self._optional = {v: optional[v.name] for v in program.inputs[1:] if type(optional.get(v.name)) is int}
        self.attentions = [op.attributes.get("name", op.name) for op in walk(program) if op.kind == ATTENTION]
        self.plan = self._plan(attention)
        self.precision, self.n_threads = resolved(precision), _threads.resolve(n_threads)
        if any("auto" in self.plan.methods(name) for name in self.attentions):
            costs.rates(self.n_threads)  # measured now, not in a request
        settings = Settings(
            n_threads=self.n_threads, precision=self.precision, attention=self.plan.parts, observe=observe
        )
        self.max_memory, left = _limit(max_memory), None
        if self.max_memory is not None:
            held = weight_bytes(program)
            left = self.max_memory - held
            if left <= 0:
                raise MemoryLimitError(
                    f"the weights have {held:,} bytes, max_memory is {self.max_memory:,}: no model fits"
                )
        self._executor = Executor(program, settings, left)

    def _plan(self, attention: str | Mapping | Plan | None) -> Plan:
        """The plan that is meant, checked against the model; without one, that of the file."""
        if attention is None:
            text = self.program.metadata.get(PLAN_KEY)
            attention = Plan() if not isinstance(text, str) else Plan.from_json(text, f"the metadata's {PLAN_KEY}")
        plan = Plan.of(attention)
        return Plan.of(plan, self.attentions, (self.fingerprint, *self.origins) if plan.model else ())

    @cached_property
    def fingerprint(self) -> str:
        """Which model this is: see `pyclattn.graph.identity.fingerprint`."""
        return fingerprint(self.program)

    @property
    def origins(self) -> tuple[str, ...]:
        """Fingerprints of the models this one was quantised from, the first one first: their plans hold here too."""
        return origins(self.program)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return self._executor.weight_bytes

    def get_inputs(self) -> list[NodeArg]:
        """Names, shapes and types of the inputs, as onnxruntime's."""
        return [_node_arg(v) for v in self.program.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """Names, shapes and types of the outputs, as onnxruntime's."""
        return [_node_arg(v) for v in self.program.outputs]

    def __reduce__(self):
        """Pickled and copied as what it was made of, weights included; the copy plans its runs anew."""
        return partial(Model, attention=self.plan, **self._given), (self.program,)

    def __call__(self, /, **inputs) -> dict[str, np.ndarray]:
        """Run; arrays by input name in, arrays by output name out.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError
            For missing or unknown inputs and for arrays that do not fit.
        MemoryLimitError
            Before the run, if it would take more than ``max_memory``.
        """
        return self._run(inputs)

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping, run_options=None, *, report: bool = False
    ) -> Any:
        """The call of ``onnxruntime.InferenceSession.run``.

        Parameters
        ----------
        output_names : sequence of str or None
            Outputs wanted, in this order; None for all.
        input_feed : mapping of str to array
        run_options : ignored
            For callers of onnxruntime.
        report : bool
            Also return what each attention did (docs/errors.md): its method, its estimated error in each head, which
            heads were made exact, its time. The estimates take time, and memory that `estimate` does not count.

        Returns
        -------
        list of ndarray, or (list of ndarray, RunReport)
        """
        if not isinstance(input_feed, Mapping):
            raise ArgumentError(f"input_feed must map input names to arrays, got {type(input_feed).__name__}")
        if isinstance(output_names, str):
            raise ArgumentError(f"output_names must be a list of names or None, got {output_names!r}")
        known = [v.name for v in self.program.outputs]
        names = known if output_names is None else list(output_names)
        unknown = [n for n in names if n not in known]
        if unknown:
            raise ArgumentError(
                f"outputs {', '.join(map(str, unknown))} do not exist; the model has {', '.join(known)}"
            )
        if not report:
            results = self._run(dict(input_feed))
            return [results[n] for n in names]
        start = perf_counter()
        with recording() as found:
            results = self._run(dict(input_feed))
        return [results[n] for n in names], RunReport(found, perf_counter() - start)

    def profile(self, inputs: Mapping) -> tuple[dict[str, np.ndarray], list]:
        """Run and return (outputs, [(op, start, end) in nanoseconds of every operator])."""
        events: list = []
        return self._run(dict(inputs), events), events

    def _run(self, inputs: dict, profile: list | None = None) -> dict[str, np.ndarray]:
        try:
            arrays = {name: array_of(f"input {name!r}", a) for name, a in inputs.items()}
            return self._executor(self.filled(arrays), profile)
        except PyclattnError as error:
            if self.path and self.path not in str(error):
                raise located(error, self.path) from error
            raise

    def filled(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """With the inputs that may be left out: of the first one's shape, filled with the number the program gives."""
        first = arrays.get(self.program.inputs[0].name) if self._optional else None
        if first is not None:
            for value, number in self._optional.items():
                if value.name not in arrays:
                    arrays[value.name] = np.full(first.shape, number, value.dtype)
        return arrays

    def estimate(self, /, **shapes: Sequence[int]) -> int:
        """Bytes that weights, inputs and one run take together at most.

        Parameters
        ----------
        **shapes : tuple of int
            The shape of each input.

        Returns
        -------
        int

        Raises
        ------
        ArgumentError
            If an input is missing, or if shapes inside the model depend on the data, so that nothing can be said
            before a run.

        Examples
        --------
        >>> from pyclattn.graph.program import Op
        >>> x, y = Value("x", "float32", ("n",)), Value("y", "float32", ("n",))
        >>> Model(Program([x], [y], [Op("Relu", ("x",), ("y",))])).estimate(x=(1024,))
        12288
        """
        specs = self._specs(shapes)
        plan = self._executor.plan(specs)
        if not plan.is_static:
            first = next(step.op for step in plan.steps if step.kernel is None)
            raise ArgumentError(f"shapes from node {first.name!r} ({first.kind}) on depend on the data: no estimate")
        return self.weight_bytes + plan.peak + sum(s.nbytes for s in specs.values())

    def _specs(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Spec]:
        """Specs of inputs of given shapes, checked."""
        names = [v.name for v in self.program.inputs]
        if self._optional and names[0] in shapes:
            shapes = {**{v.name: shapes[names[0]] for v in self._optional}, **shapes}
        if set(shapes) != set(names):
            raise ArgumentError(f"the shapes of {', '.join(names)} are needed, got {', '.join(shapes) or 'none'}")
        specs = {}
        for value in self.program.inputs:
            given = shapes[value.name]
            if isinstance(given, str) or not isinstance(given, Iterable):
                raise ArgumentError(f"the shape of {value.name!r} must be a tuple of whole numbers, got {given!r}")
            shape = tuple(whole(f"an axis of {value.name!r}", n, 0) for n in given)
            check_shape(value, shape)
            specs[value.name] = Spec(shape, value.dtype or "float32")
        return specs

    def describe_attentions(self, /, **shapes: Sequence[int]) -> list[dict]:
        """What is known of each attention that can be replaced.

        Parameters
        ----------
        **shapes : tuple of int, optional
            The shape of each input; without them heads and lengths are left out.

        Returns
        -------
        list of dict
            ``name``, ``mask`` ("none", "padding", "pair", "causal" or several), ``method``, and with shapes ``heads``,
            ``kv_heads``, ``queries``, ``keys``, ``head_dim``.
        """
        known = self._executor.plan(self._specs(shapes)).specs if shapes else {}
        return [self._describe(op, known) for op in walk(self._executor.ready) if op.kind == ATTENTION]

    def _describe(self, op: Op, known: Mapping[str, Spec | None]) -> dict:
        name = op.attributes.get("name", op.name)
        given = [*op.inputs, "", ""]
        masks = ["pair"] * bool(given[3]) + ["padding"] * bool(given[4])
        masks += ["causal"] * bool(op.attributes.get("is_causal"))
        result = {"name": name, "mask": " and ".join(masks) or "none", "method": ", ".join(self.plan.methods(name))}
        query, key = (known.get(n) for n in op.inputs[:2])
        if query is not None and key is not None:
            default = op.attributes.get("layout", "bhld")
            q = dict(zip(op.attributes.get("q_layout", default), query.shape))
            k = dict(zip(op.attributes.get("k_layout", default), key.shape))
            result.update(heads=q["h"], kv_heads=k["h"], queries=q["l"], keys=k["l"], head_dim=q["d"])
        return result

    def save(self, path: str | os.PathLike, plan: Plan | None = None) -> None:
        """Write the model to one safetensors file, whole or not at all.

        Parameters
        ----------
        path : path-like
            Ends in .safetensors, as `load` wants it.
        plan : Plan, optional
            Kept in the file's metadata, for `load` to run by; by default the one that was there. ``Plan()``: exact.
        """
        check_target("path", path, ".safetensors")
        program = self.program
        if plan is not None:
            program = replace(program, metadata={**program.metadata, PLAN_KEY: self._plan(plan).to_json()})
        save_program(path, program)


def _limit(max_memory: float | None) -> int | None:
    """``max_memory``, checked: NaN would be no limit at all."""
    if max_memory is None:
        return None
    if isinstance(max_memory, (bool, np.bool_)) or not isinstance(max_memory, (int, float, np.number)):
        raise DTypeError(f"max_memory must be a number of bytes, got {max_memory!r}")
    if not 0 < max_memory < np.inf:
        raise ArgumentError(f"max_memory must be a positive number of bytes, got {max_memory!r}")
    return int(max_memory)


def _node_arg(value: Value) -> NodeArg:
    name = _ORT_TYPES.get(value.dtype, value.dtype)
    return NodeArg(value.name, list(value.shape), f"tensor({name})")
