"""Small models to serve: an encoder of text with a padding mask, and some that may not share runs."""

import numpy as np

from pyclattn.graph.program import Op, Program, Value
from pyclattn.graph.serial import save_program
from pyclattn.huggingface.builder import Builder
from pyclattn.layers import Encoder, EncoderLayer, FeedForward, LayerNorm, Linear, MultiHeadAttention

WIDTH, HEADS, WORDS, POSITIONS = 16, 2, 50, 608


def encoder(
    seed=0, width=WIDTH, n_layers=2, n_positions=POSITIONS, n_words=WORDS, mask="attention_mask", token=1
):  # fmt: skip
    """input_ids and a mask, with ``token`` where there is one, to hidden states and the first token's."""
    rng = np.random.default_rng(seed)

    def random(*shape):
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    def linear(n_in, n_out):
        return Linear(random(n_out, n_in), random(n_out))

    def norm():
        return LayerNorm(np.ones(width, np.float32), np.zeros(width, np.float32))

    layers = []
    for i in range(n_layers):
        parts = [linear(width, width) for _ in range(4)]
        attention = MultiHeadAttention(HEADS, parts[0], None, *parts[1:], name=f"layers.{i}.attention")
        feed_forward = FeedForward(linear(width, 2 * width), linear(2 * width, width))
        layers.append(EncoderLayer(attention, feed_forward, norm(), norm()))
    b = Builder()
    words = b.add("words.rows", "Gather", b.constant("words", random(n_words, width)), "input_ids")
    length = b.add("length", "Gather", b.add("shape", "Shape", "input_ids"), b.constant("one", np.int64(1)))
    places = b.add("places", "Range", b.constant("zero", np.int64(0)), length, "one")
    rows = b.add("places.rows", "Gather", b.constant("positions", random(n_positions, width)), places)
    padding = b.add("padding", "Equal", mask, "zero" if token else "one")
    hidden = b.add("hidden", "Identity", b.encoder(b.add("sum", "Add", words, rows), Encoder(tuple(layers)), padding))
    pooled = b.pooler(hidden, linear(width, width))
    axes = ("batch", "length")
    outputs = [Value(hidden, "float32", (*axes, width)), Value(pooled, "float32", ("batch", width))]
    return b.program([Value(n, "int64", axes) for n in ("input_ids", mask)], outputs)


def text(lengths, seed=0):
    """Feeds of requests of these lengths."""
    rng = np.random.default_rng(seed)
    made = []
    for n in lengths:
        ids = rng.integers(2, WORDS, (1, n))
        made.append({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    return made


def one_op(kind, attributes=None, constants=None, shape=("batch", 4), n_outputs=1):
    """x through one operator to y."""
    constants = constants or {}
    names = ("x", *constants)
    outputs = [f"y{i}" if i else "y" for i in range(n_outputs)]
    value = Value("x", "float32", shape)
    return Program(
        [value], [Value("y", "float32", shape)], [Op(kind, names, tuple(outputs), attributes or {})], constants
    )


def save(path, program):
    """Write a program, replacing what is there by renaming; returns the path."""
    save_program(path, program)
    return path
