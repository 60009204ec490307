"""Products of matrices."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from pyclattn._blas import single
from pyclattn.errors import DTypeError, ModelFormatError, ShapeError
from pyclattn.functional.dense import ACTIVATIONS as TILE_ACTIVATIONS
from pyclattn.graph import blocks
from pyclattn.graph.ops import functions as f
from pyclattn.graph.ops.registry import op
from pyclattn.graph.spec import Kernel, Node, Spec, broadcast, simple

# Below this many multiplications a second thread costs more than it saves (about 40 us at 100 GFLOP/s a core).
SPLIT = 4_000_000
# Rows of one task: 512 rows of 384 to 3,072 float32 are 0.8 to 6 MB, so that the activation finds them in L2 or L3;
# BLAS packs the weights anew for each task, which at this height costs 2 or 3 % of the product.
ROWS = 512

# Up to this many rows a product is cut by columns: fewer rows in each part would slow BLAS down.
SHORT, LEAST_PIECE = 256, 2_000_000
# Parts, or a multiple: 1, 2 and 4 threads share them evenly. One thread alone takes 1 to 5 % longer for four parts.
PIECES = 4
# Up to this many rows fetching the weights takes longer than the product, from a matrix of 256 kB on.
FEW_ROWS, FETCHED = 64, 1 << 16
# Activations without temporaries.
IN_PLACE = ("", "relu", "tanh")


def blasable(a: np.ndarray) -> bool:
    """Whether BLAS can read (or write) the last two axes as they lie."""
    if a.dtype not in (np.float32, np.float64) or a.ndim < 2:
        return False
    (m, n), (row, column), item = a.shape[-2:], a.strides[-2:], a.itemsize
    return (column == item and (row >= n * item or m == 1) and row % item == 0) or (
        row == item and (column >= m * item or n == 1) and column % item == 0
    )


def product(a: np.ndarray, b: np.ndarray, out: np.ndarray, n_threads: int, after=None):
    """A call of ``matmul(a, b, out)`` for a of shape (M, K) and b (K, N), then ``after(part of out, rows, columns)``.

    Rows are shared among threads, or columns where there are few rows.
    """
    (m, k), n = a.shape, b.shape[1]
    threads = n_threads if single.works and m * k * n >= SPLIT else 1
    # A result must not depend on the number of threads, but BLAS rounds differently in another cut, of rows or of
    # columns (OpenBLAS's kernels for AVX2). So cuts follow from the lengths alone.
    if m <= SHORT:
        parts = min(PIECES, m * k * n // LEAST_PIECE) if single.works and m * k * n >= SPLIT else 1
        step = max(1, -(-n // parts))
        step += -step % 64
        places = [(slice(None), slice(i, i + step)) for i in range(0, n, step)]
    else:
        n_tasks = -(-m // ROWS)
        n_tasks += -n_tasks % PIECES
        step = -(-m // n_tasks)
        places = [(slice(i, i + step), slice(None)) for i in range(0, m, step)]
    calls = [
        _piece(a[rows], b[:, columns], out[rows, columns], after and partial(after, rows=rows, columns=columns))
        for rows, columns in places
    ]
    if len(calls) == 1:
        return calls[0]
    return blocks.share(lambda i: calls[i](), len(calls), threads)


def _piece(a, b, out, after):
    """A call of one product, and of what comes after it."""
    # BLAS repacks the right matrix by columns, which waits for memory at every row. With few rows on the left that is
    # most of the time; reading a number of each cache line first, in order, fetches it ahead: a quarter less.
    ahead = b[:, ::16] if a.shape[0] <= FEW_ROWS and b.size >= FETCHED and b.strides[1] == b.itemsize else None

    def run():
        if ahead is not None:
            np.maximum.reduce(ahead, None)
        np.matmul(a, b, out)
        if after is not None:
            after(out)

    return partial(np.matmul, a, b, out) if ahead is None and after is None else run


def _by_blas(x: Spec, weight: Spec, bias: bool, activation: str, has_residual: bool, n_threads: int):
    """The ``bind`` of ``activation(x @ weight + bias) + residual`` for x (..., K) in C order and weight (K, N)."""
    k, n = weight.shape
    m = math.prod(x.shape[:-1])
    function = f.ACTIVATIONS[activation]
    if activation not in IN_PLACE:
        function = _in_blocks(function)

    def bind(ins, outs, scratch):
        a, out = ins[0].reshape(m, k), outs[0].reshape(m, n)
        b, shift = ins[1], ins[2] if bias else None
        residual = ins[3].reshape(m, n) if has_residual else None
        if shift is None and function is None and residual is None:
            return product(a, b, out, n_threads)

        def after(into, rows, columns):
            if shift is not None:
                np.add(into, shift[columns] if shift.ndim else shift, into)
            if function is not None:
                function(into, into)
            if residual is not None:
                np.add(into, residual[rows, columns], into)

        return product(a, b, out, n_threads, after)

    return bind


def _by_tile(x: Spec, weight: Spec, bias: Spec | None, activation: str, has_residual: bool, n_threads: int):
    """The same on a weight that was packed; what the tile cannot do with the sums is done to them after it."""
    k, n = weight.shape
    m = math.prod(x.shape[:-1])
    is_fused = _is_fused(bias, n, activation)
    inner = activation if is_fused else ""
    function = f.ACTIVATIONS[activation] if not is_fused else None

    def bind(ins, outs, scratch):
        a, out = ins[0].reshape(m, k), outs[0]
        if out.shape[-1] == n:  # else heads, which the tile deals out
            out = out.reshape(m, n)
        shift = None if bias is None else ins[2]
        residual = ins[3].reshape(m, n) if has_residual else None
        given = (shift, residual) if is_fused else (None, None)
        multiply = weight.packed.bind(a, given[0], activation=inner, residual=given[1], n_threads=n_threads, out=out)
        if is_fused:
            return multiply

        def run():
            multiply()
            if shift is not None:
                np.add(out, shift, out)
            if function is not None:
                function(out, out)
            if residual is not None:
                np.add(out, residual, out)

        return run

    return bind


def _is_fused(bias: Spec | None, width: int, activation: str) -> bool:
    """Whether the tile does all that comes after a product."""
    return activation in TILE_ACTIVATIONS and (bias is None or (bias.shape == (width,) and bias.strides is None))


def _in_blocks(function):
    """An activation with temporaries, in blocks of rows that stay in cache."""

    def run(x, out):
        step = max(1, blocks.BLOCK // max(1, x.shape[1]))
        for i in range(0, x.shape[0], step):
            function(x[i : i + step], out[i : i + step])

    return run


def _check_matrix(x: Spec, weight: Spec) -> None:
    if x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[0]:
        raise ShapeError(f"cannot multiply {x.shape} by {weight.shape}")


@op("pyclattn:Linear")
def _linear(node: Node) -> Kernel:
    x, weight = node.spec(0), node.spec(1)
    _check_matrix(x, weight)
    if x.dtype != weight.dtype:
        raise DTypeError(f"input and weight must have one type, got {x.dtype} and {weight.dtype}")
    name = node.attr("activation", "")
    if name not in f.ACTIVATIONS:
        raise ModelFormatError(f"activation must be one of {', '.join(map(repr, f.ACTIVATIONS))}, got {name!r}")
    if node.has(2) and node.shape(2) not in ((weight.shape[1],), (1,), ()):
        raise ShapeError(f"the bias must have shape {(weight.shape[1],)}, got {node.shape(2)}")
    has_residual = node.has(3)
    shape = (*x.shape[:-1], weight.shape[1])
    if has_residual and (node.shape(3) != shape or node.dtype(3) != x.dtype):
        raise ShapeError(f"the residual must be {x.dtype} of shape {shape}, got {node.spec(3)}")
    bias = node.spec(2) if node.has(2) else None
    kernel = _dense(node, x, weight, bias, name, has_residual)
    heads = node.attr("heads", 0)
    if not heads:
        return kernel
    is_direct = getattr(weight.packed, "writes_heads", False) and _is_fused(bias, weight.shape[1], name)
    return _by_heads(kernel, heads, x, weight, is_direct and x.strides is None, node.settings.n_threads)


def _by_heads(kernel: Kernel, heads: int, x: Spec, weight: Spec, is_direct: bool, n_threads: int) -> Kernel:
    """The same with its output (batch, length, width) dealt out to (batch, heads, length, head_dim)."""
    if x.ndim != 3 or weight.shape[1] % heads:
        raise ShapeError(f"{(*x.shape[:-1], weight.shape[1])} cannot be split into {heads} heads")
    batch, length = x.shape[:2]
    head_dim = weight.shape[1] // heads
    out = Spec((batch, heads, length, head_dim), x.dtype)
    inner: Any = kernel.bind
    if is_direct:
        return Kernel([out], lambda ins, outs, scratch: inner(ins, [outs[0].swapaxes(1, 2)], scratch))
    whole = -(-out.nbytes // 64) * 64

    def bind(ins, outs, scratch):
        rows = scratch[: out.nbytes].view(x.dtype).reshape(batch, length, heads * head_dim)
        multiply = inner(ins, [rows], scratch[whole:])
        parts = rows.reshape(batch, length, heads, head_dim).swapaxes(1, 2)
        deal = blocks.elementwise(lambda a, o: np.copyto(o, a), [parts], outs[0], n_threads)

        def run():
            multiply()
            deal()

        return run

    return Kernel([out], bind, scratch=whole + kernel.scratch, transient=kernel.transient)


def _dense(node: Node, x: Spec, weight: Spec, bias: Spec | None, activation: str, has_residual: bool = False) -> Kernel:
    """The kernel of a dense layer; an input or a residual in another order is copied to scratch first."""
    threads = node.settings.n_threads
    inplace: tuple[int, ...] = ()
    if weight.packed is not None:
        inner = _by_tile(x, weight, bias, activation, has_residual, threads)
        has_temporaries = activation not in (*TILE_ACTIVATIONS, *IN_PLACE)
        if has_residual and _is_fused(bias, weight.shape[1], activation):
            inplace = (3,)  # read where it is written, after the product
    else:
        inner = _by_blas(x, weight, bias is not None, activation, has_residual, threads)
        has_temporaries = activation not in IN_PLACE
    out = Spec((*x.shape[:-1], weight.shape[1]), x.dtype)
    places: dict[int, slice] = {}
    size = 0
    for i in (0, 3) if has_residual else (0,):
        if node.spec(i).strides is not None:
            places[i] = slice(size, size + node.spec(i).nbytes)
            size = -(-places[i].stop // 64) * 64

    def bind(ins, outs, scratch):
        ins, calls = list(ins), []
        for i, place in places.items():
            packed = scratch[place].view(x.dtype).reshape(ins[i].shape)
            calls.append(blocks.elementwise(lambda a, o: np.copyto(o, a), [ins[i]], packed, threads))
            ins[i] = packed
        multiply = inner(ins, outs, None)
        if not calls:
            return multiply
        calls.append(multiply)

        def run():
            for call in calls:
                call()

        return run

    temporaries = min(blocks.BLOCK * x.dtype.itemsize * threads, out.nbytes) if has_temporaries else 0
    working = 0 if weight.packed is None else weight.packed.scratch_bytes(math.prod(x.shape[:-1]), threads)
    return Kernel([out], bind, inplace=inplace, scratch=size, transient=4 * temporaries + working)


@op("MatMul", "com.microsoft:FusedMatMul", "com.microsoft:TransposeMatMul")
def _matmul(node: Node) -> Kernel:
    a, b = node.spec(0), node.spec(1)
    if a.dtype != b.dtype:
        raise DTypeError(f"inputs must have one type, got {a.dtype} and {b.dtype}")
    if node.attr("transBatchA", 0) or node.attr("transBatchB", 0):
        raise ModelFormatError("FusedMatMul with transBatchA or transBatchB is not supported")
    alpha = node.attr("alpha", 1.0)
    flip_a, flip_b = node.attr("transA", 0) and a.ndim > 1, node.attr("transB", 0) and b.ndim > 1
    is_dense = alpha == 1 and not flip_a and not flip_b and b.ndim == 2 and a.dtype.kind == "f"
    if b.packed is not None or (is_dense and a.ndim >= 2):
        _check_matrix(a, b)
        return _dense(node, a, b, None, "")
    x, y = a.dummy(), b.dummy()
    x, y = x.swapaxes(-1, -2) if flip_a else x, y.swapaxes(-1, -2) if flip_b else y
    return general_matmul(Spec.of(x), Spec.of(y), alpha, node.settings.n_threads, flip_a, flip_b)


def general_matmul(a: Spec, b: Spec, alpha: float, n_threads: int, flip_a=False, flip_b=False) -> Kernel:
    """Kernel of ``alpha a @ b`` by NumPy's rules; ``flip``: the arrays given have their last axes swapped."""
    if not a.ndim or not b.ndim:
        raise ShapeError(f"cannot multiply {a.shape} by {b.shape}")
    full_a, full_b = (1, *a.shape) if a.ndim == 1 else a.shape, (*b.shape, 1) if b.ndim == 1 else b.shape
    if full_a[-1] != full_b[-2]:
        raise ShapeError(f"cannot multiply {a.shape} by {b.shape}")
    lead = broadcast(full_a[:-2], full_b[:-2])
    shape = lead + full_a[-2:-1] * (a.ndim > 1) + full_b[-1:] * (b.ndim > 1)
    m, k, n = full_a[-2], full_a[-1], full_b[-1]
    many = int(np.prod(lead, dtype=np.int64))

    def bind(ins, outs, scratch):
        x, y = (ins[0].swapaxes(-1, -2) if flip_a else ins[0]), (ins[1].swapaxes(-1, -2) if flip_b else ins[1])
        out = outs[0].reshape((*lead, m, n))
        x, y = x.reshape(full_a) if x.ndim == 1 else x, y.reshape(full_b) if y.ndim == 1 else y
        if many == 1 and x.size == m * k and y.size == k * n and blasable(x) and blasable(y) and alpha == 1:
            return product(x.reshape(x.shape[-2:]), y.reshape(y.shape[-2:]), out.reshape(m, n), n_threads)
        x, y = np.broadcast_to(x, (*lead, m, k)), np.broadcast_to(y, (*lead, k, n))
        # along the batch, blocks of a few matrices; a layout BLAS cannot read is copied a block at a time
        step = max(1, 1_000_000 // max(1, m * k * n))
        places = [np.unravel_index(i, lead) for i in range(many)] if step == 1 else None
        copy_x, copy_y = not blasable(x) and x.dtype.kind == "f", not blasable(y) and y.dtype.kind == "f"

        def multiply(p, q, into):
            np.matmul(np.ascontiguousarray(p) if copy_x else p, np.ascontiguousarray(q) if copy_y else q, into)
            if alpha != 1:
                np.multiply(into, alpha, into)

        if places is None or many == 1:
            return partial(multiply, x, y, out)
        threads = n_threads if single.works and many * m * k * n >= SPLIT else 1
        return blocks.share(lambda i: multiply(x[places[i]], y[places[i]], out[places[i]]), many, threads)

    return Kernel([Spec(shape, a.dtype)], bind, transient=n_threads * (m * k + k * n) * a.dtype.itemsize)


@op("Gemm")
def _gemm(node: Node) -> Kernel:
    a, b = node.spec(0), node.spec(1)
    flip_a, flip_b = node.attr("transA", 0), node.attr("transB", 0)
    alpha, beta = node.attr("alpha", 1.0), node.attr("beta", 1.0)
    if a.ndim != 2 or b.ndim != 2:
        raise ShapeError(f"Gemm multiplies matrices, got {a.shape} and {b.shape}")
    (m, k), (kb, n) = a.shape[::-1] if flip_a else a.shape, b.shape[::-1] if flip_b else b.shape
    if k != kb:
        raise ShapeError(f"cannot multiply {(m, k)} by {(kb, n)}")
    has_bias = node.has(2)
    if has_bias and broadcast(node.shape(2), (m, n)) != (m, n):
        raise ShapeError(f"input 2 must broadcast to {(m, n)}, got {node.shape(2)}")
    threads = node.settings.n_threads

    def bind(ins, outs, scratch):
        x, y, out = ins[0].T if flip_a else ins[0], ins[1].T if flip_b else ins[1], outs[0]
        bias = np.broadcast_to(ins[2], (m, n)) if has_bias else None
        run_product = product(x, y, out, threads)
        if alpha == 1 and not has_bias:
            return run_product

        def run():
            run_product()
            if alpha != 1:
                np.multiply(out, out.dtype.type(alpha), out)
            if bias is not None:
                np.add(out, bias if beta == 1 else bias * out.dtype.type(beta), out)

        return run

    return Kernel([Spec((m, n), a.dtype)], bind)


@op("Einsum")
def _einsum(node: Node) -> Kernel:
    equation = node.attr("equation").replace(" ", "")
    specs = [node.spec(i) for i in range(node.n_inputs)]
    shape = einsum_shape(equation, [s.shape for s in specs])
    path = np.einsum_path(equation, *(s.dummy() for s in specs), optimize="greedy")[0]
    return simple([Spec(shape, specs[0].dtype)], lambda *ins: np.einsum(equation, *ins, optimize=path))


def einsum_shape(equation: str, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape an Einstein sum gives."""
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(shapes):
        raise ShapeError(f"equation {equation!r} names {len(terms)} inputs, got {len(shapes)}")
    lengths: dict[str, int] = {}
    dots: tuple[int, ...] = ()
    for term, shape in zip(terms, shapes):
        before, ellipsis, after = term.partition("...")
        named = len(before) + len(after)
        if named > len(shape) or (not ellipsis and named != len(shape)):
            raise ShapeError(f"equation {equation!r} does not fit shapes {', '.join(map(str, shapes))}")
        if ellipsis:
            dots = broadcast(dots, shape[len(before) : len(shape) - len(after)])
        sides = (*zip(before, shape), *zip(after, shape[len(shape) - len(after) :]))
        for letter, n in sides:
            if lengths.setdefault(letter, n) not in (n, 1) and n != 1:
                raise ShapeError(f"{letter!r} of {equation!r} is both {lengths[letter]} and {n}")
            lengths[letter] = max(lengths[letter], n) if n else 0
    if not arrow:
        letters = sorted(set(left) - set(",."))
        right = ("..." if "..." in left else "") + "".join(c for c in letters if left.count(c) == 1)
    before, ellipsis, after = right.partition("...")
    return (*(lengths[c] for c in before), *(dots if ellipsis else ()), *(lengths[c] for c in after))
