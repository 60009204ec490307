"""Every JIT option of the library, and what kernels need that Numba has not: tasks drawn atomically, bits counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from pyclattn.kernels._cache import Store

# nogil: threads are ours (`pyclattn._threads`); never parallel=True, whose thread layers abort or deadlock in a host
# with threads of its own. No fastmath: it would assume away infinities and NaN.
_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": False, "boundscheck": False, "error_model": "numpy"}


def jit(signature: str) -> Callable[[Callable], Callable]:
    """Compile with the library's options, or take what was compiled before."""

    def compile_(function: Callable) -> Callable:
        kernel = numba.njit(**_OPTIONS)(function)
        kernel._cache = Store(function)
        kernel.compile(signature)
        kernel.disable_compile()
        return kernel

    return compile_


def inline(function: Callable) -> Callable:
    """A piece of a kernel, compiled into its callers."""
    return numba.njit(cache=False, **_OPTIONS)(function)


@intrinsic
def draw(typingctx, counter):
    """The counter's value, which becomes one more: atomic, any number of threads may draw."""

    def codegen(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), codegen


@intrinsic
def popcount(typingctx, x):
    """Bits set in an unsigned 64-bit number."""

    def codegen(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), codegen
