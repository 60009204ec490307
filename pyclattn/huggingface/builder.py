"""Layers as operators of a Program."""

from __future__ import annotations

import numpy as np

from pyclattn.graph.program import Op, Program, Value
from pyclattn.layers import Encoder, EncoderLayer, FeedForward, Linear, MultiHeadAttention
from pyclattn.layers.basic import Norm


class Builder:
    """Collects operators and constants; each method adds some and returns the name of their result.

    A Linear of several layers has one constant, so weights that are shared stay shared.
    """

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.constants: dict[str, np.ndarray] = {}
        self._weights: dict[int, tuple[Linear, str, str]] = {}  # the layer is kept, so that its id stays its own

    def program(self, inputs: list[Value], outputs: list[Value], **metadata) -> Program:
        """The whole, checked."""
        program = Program(inputs, outputs, self.ops, self.constants, metadata)
        program.validate()
        return program

    def add(self, name: str, kind: str, /, *inputs: str, **attributes) -> str:
        """One operator, whose result has its name."""
        self.ops.append(Op(kind, inputs, (name,), attributes, name))
        return name

    def constant(self, name: str, array) -> str:
        self.constants[name] = np.asarray(array)
        return name

    def numbers(self, *values: int) -> str:
        """A constant vector of whole numbers."""
        return self.constant("numbers." + "_".join(map(str, values)), np.array(values, np.int64))

    def linear(self, name: str, x: str, layer: Linear, activation: str = "") -> str:
        if id(layer) not in self._weights:
            weight = self.constant(f"{name}.weight", layer.weight.T)
            bias = "" if layer.bias is None else self.constant(f"{name}.bias", layer.bias)
            self._weights[id(layer)] = layer, weight, bias
        _, weight, bias = self._weights[id(layer)]
        given = (x, weight, bias) if bias else (x, weight)
        return self.add(name, "pyclattn:Linear", *given, **({"activation": activation} if activation else {}))

    def norm(self, name: str, x: str, layer: Norm) -> str:
        inputs, bias = [x, self.constant(f"{name}.weight", layer.weight)], getattr(layer, "bias", None)
        if bias is not None:
            inputs.append(self.constant(f"{name}.bias", bias))
        return self.add(name, f"pyclattn:{type(layer).__name__}", *inputs, epsilon=layer.epsilon)

    def attention(self, name: str, x: str, layer: MultiHeadAttention, padding: str) -> str:
        """Self-attention with separate projections; ``padding``: the key padding mask's name, or empty."""
        split = self.numbers(0, 0, layer.n_heads, layer.head_dim)
        heads = []
        for which in ("query", "key", "value"):
            projected = self.linear(f"{name}.{which}", x, getattr(layer, which))
            heads.append(self.add(f"{name}.{which}.heads", "Reshape", projected, split))
        options = {"name": layer.name, "layout": "blhd", "scale": layer.head_dim**-0.5, "is_self": True}
        mixed = self.add(f"{name}.mixed", "pyclattn:Attention", *heads, *(("", padding) if padding else ()), **options)
        joined = self.add(f"{name}.joined", "Reshape", mixed, self.numbers(0, 0, layer.n_heads * layer.head_dim))
        return self.linear(f"{name}.out", joined, layer.out)  # type: ignore[arg-type]

    def feed_forward(self, name: str, x: str, layer: FeedForward) -> str:
        return self.linear(f"{name}.down", self.linear(f"{name}.up", x, layer.up, layer.activation), layer.down)

    def encoder_layer(self, name: str, x: str, layer: EncoderLayer, padding: str) -> str:
        """The residuals and norms of `EncoderLayer.__call__`."""
        attention: MultiHeadAttention = layer.attention  # type: ignore[assignment]  # no folder has another
        parts = (
            ("attention", layer.attention_norm, lambda n, y: self.attention(n, y, attention, padding)),
            ("feed_forward", layer.feed_forward_norm, lambda n, y: self.feed_forward(n, y, layer.feed_forward)),
        )
        for part, norm, inner in parts:
            at = f"{name}.{part}"
            if layer.is_pre_norm:
                x = self.add(f"{at}.sum", "Add", x, inner(at, self.norm(f"{at}_norm", x, norm)))
            else:
                x = self.norm(f"{at}_norm", self.add(f"{at}.sum", "Add", x, inner(at, x)), norm)
        return x

    def encoder(self, x: str, encoder: Encoder, padding: str = "") -> str:
        for i, layer in enumerate(encoder.layers):
            x = self.encoder_layer(f"layers.{i}", x, layer, padding)
        return x if encoder.norm is None else self.norm("norm", x, encoder.norm)

    def pooler(self, hidden: str, layer: Linear, activation: str = "tanh") -> str:
        """Of the first token, as ``pooler_output``."""
        first = self.add("first", "Gather", hidden, self.constant("zero", np.int64(0)), axis=1)
        return self.linear("pooler_output", first, layer, activation)
