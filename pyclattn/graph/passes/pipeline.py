"""The passes in their one order."""

from __future__ import annotations

from pyclattn.graph.passes.activations import fuse_activations
from pyclattn.graph.passes.attention import fold_output_layouts, fuse_attention
from pyclattn.graph.passes.convolutions import fold_batch_norms
from pyclattn.graph.passes.edit import Editor, bodies
from pyclattn.graph.passes.fold import fold, share
from pyclattn.graph.passes.linear import fuse_linear, scale_weights
from pyclattn.graph.passes.normalise import normalise
from pyclattn.graph.passes.norms import fuse_norms
from pyclattn.graph.passes.quantised import fuse_integer_products
from pyclattn.graph.passes.report import Report
from pyclattn.graph.passes.rotary import fuse_rotary
from pyclattn.graph.passes.shapes import Shapes
from pyclattn.graph.program import Op, Program

# Each round of folding can uncover more; exported models settle within five.
MOST_ROUNDS = 12


def optimize(program: Program, *, float_attention: bool = False) -> tuple[Program, Report]:
    """Fold, fuse and find attention.

    Parameters
    ----------
    program : Program
        Left as it is.
    float_attention : bool
        In a model whose scores and probabilities are rounded to 8 bits, pass over that rounding, so that its
        attention can be replaced. The model then computes something else: a little nearer to what it was before it
        was quantised.

    Returns
    -------
    Program
        Computes the same; the names of inputs and outputs stay.
    Report
        Every attention found, and every Softmax that stays with the reason.

    Examples
    --------
    >>> import numpy as np
    >>> from pyclattn.graph.program import Value
    >>> x, y = Value("x", "float32", ("n", 4)), Value("y", "float32", ("n", 2))
    >>> ops = [Op("MatMul", ("x", "w"), ("p",)), Op("Add", ("p", "b"), ("s",)), Op("Relu", ("s",), ("y",))]
    >>> constants = {"w": np.ones((4, 2), np.float32), "b": np.zeros(2, np.float32)}
    >>> small, report = optimize(Program([x], [y], ops, constants))
    >>> [op.kind for op in small.ops], small.ops[0].attributes
    (['pyclattn:Linear'], {'activation': 'relu'})
    """
    report = Report(n_ops_before=count_ops(program))
    result = _copy(program)
    _optimize(result, report, float_attention)
    report.n_ops_after = count_ops(result)
    return result, report


def count_ops(program: Program) -> int:
    """Operators in a program and its bodies."""
    return sum(1 + sum(map(count_ops, bodies(op))) for op in program.ops)


def _optimize(
    program: Program,
    report: Report,
    float_attention: bool,
    outer: Editor | None = None,
    outer_known: Shapes | None = None,
) -> None:
    editor = Editor(program, outer)
    # before small weights are folded; products of activations wait until attention has been looked for
    fuse_integer_products(editor, Shapes(editor, outer_known), of_weights=True)
    known = _settle(editor, outer_known)
    normalise(editor, known, report)
    known = _settle(editor, outer_known)
    fuse_norms(editor, known)
    fuse_activations(editor)
    known = _settle(editor, outer_known)
    fuse_rotary(editor, known)
    known = _settle(editor, outer_known)
    fuse_attention(editor, known, report, float_attention)
    _settle(editor, outer_known)
    fold_output_layouts(editor)
    known = _settle(editor, outer_known)
    fuse_integer_products(editor, known)
    fold_batch_norms(editor)
    scale_weights(editor, known)
    known = _settle(editor, outer_known)
    fuse_linear(editor, known)
    known = _settle(editor, outer_known)
    for op in program.ops:
        for body in bodies(op):
            _optimize(body, report, float_attention, editor, known)


def _settle(editor: Editor, outer_known: Shapes | None) -> Shapes:
    """Fold until nothing changes."""
    editor.finish()
    for _ in range(MOST_ROUNDS):
        fold(editor, Shapes(editor, outer_known))
        folded = editor.finish()
        share(editor)
        if not editor.finish() and not folded:
            break
    return Shapes(editor, outer_known)


def _copy(program: Program) -> Program:
    """A program whose lists and attributes may be edited; constants are shared."""
    ops = []
    for op in program.ops:
        attributes = {name: _copy(v) if isinstance(v, Program) else v for name, v in op.attributes.items()}
        ops.append(Op(op.kind, op.inputs, op.outputs, attributes, op.name))
    return Program(list(program.inputs), list(program.outputs), ops, dict(program.constants), dict(program.metadata))
