"""TIS Transformer (Clauwaert et al., NAR Genomics and Bioinformatics 2023) in one page of layers.

Reads a transcript, one token a nucleotide, and gives each the probability that translation starts there. Three heads of
a layer see the whole transcript, five see their own window of 256 nucleotides and its neighbours. Trained with FAVOR+,
an approximation of softmax; here with the softmax it approximates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import pyclattn
from pyclattn.layers import Angles, Embedding, FeedForward, LayerNorm, Linear, MultiHeadAttention, Rotary, from_weights
from pyclattn.layers.attention import Heads

N_LAYERS, N_HEADS, N_GLOBAL, HEAD_DIM, WINDOW = 8, 8, 3, 16, 256
# The model's sines end there; two places are for the marks of begin and end.
LONGEST = 30_000
BEGIN, END, UNKNOWN = 5, 6, 4


def tokens_of(sequence: str) -> np.ndarray:
    """Token numbers (length + 2,) of a sequence of A, C, G, T; any other letter is unknown.

    Examples
    --------
    >>> tokens_of("ATCGN")
    array([5, 0, 1, 2, 3, 4, 6])
    """
    table = np.full(256, UNKNOWN)
    table[[ord(letter) for letter in "ATCG"]] = range(4)
    return np.concatenate([[BEGIN], table[np.frombuffer(sequence.encode("ascii"), np.uint8)], [END]])


@dataclass(frozen=True, eq=False)
class Layer:
    """Pre-norm attention of two kinds of heads, pre-norm feed-forward."""

    norm: LayerNorm
    whole: MultiHeadAttention
    windows: MultiHeadAttention
    out: Linear
    feed_forward_norm: LayerNorm
    feed_forward: FeedForward

    @classmethod
    def of(cls, weights: Mapping[str, np.ndarray], number: int) -> Layer:
        prefix = f"transformer.net.layers.{number}"
        query, key, value, out = (
            from_weights("linear", weights, f"{prefix}.0.fn.to_{n}") for n in ("q", "k", "v", "out")
        )
        cut, end = N_GLOBAL * HEAD_DIM, N_HEADS * HEAD_DIM

        def heads(n: int, start: int, stop: int, **more) -> MultiHeadAttention:
            parts = {n: p.rows(start, stop) for n, p in (("query", query), ("key", key), ("value", value))}
            return MultiHeadAttention(n, **parts, **more)

        return cls(
            from_weights("layer_norm", weights, f"{prefix}.0.norm"),
            heads(N_GLOBAL, 0, cut, name=f"{number}.global"),
            heads(N_HEADS - N_GLOBAL, cut, end),
            out,
            from_weights("layer_norm", weights, f"{prefix}.1.norm"),
            from_weights("feed_forward", weights, f"{prefix}.1.fn.fn", {"up": "w1", "down": "w2"}),
        )

    def __call__(self, x: np.ndarray, angles: Angles, local_angles: Angles, attention, n_threads) -> np.ndarray:
        """x (1, N, 48)."""
        y = self.norm(x, n_threads=n_threads)
        far = self.whole(y, angles=angles, attention=attention, n_threads=n_threads)
        near = windowed(self.windows.heads(y, angles=local_angles, n_threads=n_threads), WINDOW, n_threads)
        x = self.out(np.concatenate([far, near], -1), add=x, n_threads=n_threads)
        return self.feed_forward(self.feed_forward_norm(x, n_threads=n_threads), add=x, n_threads=n_threads)


def windowed(heads: Heads, width: int, n_threads: int | None = None) -> np.ndarray:
    """Exact attention (1, N, H D) of each window's queries to the keys of that window and its two neighbours."""
    length = heads.query.shape[2]
    n = -(-length // width)

    def padded(x: np.ndarray, begin: int) -> np.ndarray:
        room = np.zeros((x.shape[1], begin + n * width + begin, x.shape[3]), np.float32)
        room[:, begin : begin + length] = x[0]
        return room

    def views(x: np.ndarray, n_keys: int) -> np.ndarray:
        """(windows, H, n_keys, D); neighbours overlap, nothing is copied."""
        head, row, feature = x.strides
        shape = (n, x.shape[0], n_keys, x.shape[2])
        return np.lib.stride_tricks.as_strided(x, shape, (width * row, head, row, feature), writeable=False)

    is_padding = np.ones((n + 2) * width, bool)
    is_padding[width : width + length] = False
    is_padding = np.lib.stride_tricks.sliding_window_view(is_padding, 3 * width)[::width]
    query = views(padded(heads.query, 0), width)
    key, value = (views(padded(x, width), 3 * width) for x in (heads.key, heads.value))
    found = pyclattn.scaled_dot_product_attention(query, key, value, key_padding_mask=is_padding, n_threads=n_threads)
    return found.transpose(0, 2, 1, 3).reshape(1, n * width, -1)[:, :length]


class TisTransformer:
    """The model.

    Parameters
    ----------
    weights : mapping of str to array
        The checkpoint's ``state_dict``.
    attention : str, mapping or Plan
        Of the heads that see everything, as `pyclattn.load` takes it; they are named ``0.global``, ``1.global`` ...
    n_threads : int, optional
    """

    attentions = tuple(f"{i}.global" for i in range(N_LAYERS))

    def __init__(self, weights: Mapping[str, np.ndarray], attention="exact", n_threads: int | None = None):
        self.attention, self.n_threads = attention, n_threads
        self.embedding = Embedding(weights["nuc_emb.weight"])
        self.positions = weights["pos_emb.emb"]
        # sines and cosines as they lie in the file: the first half of the columns, and the second
        self.sines = weights["layer_pos_emb.emb"]
        self.local = Rotary.of(HEAD_DIM)
        self.layers = [Layer.of(weights, i) for i in range(N_LAYERS)]
        self.head = from_weights("linear", weights, "ff_1"), from_weights("linear", weights, "ff_2")

    def __call__(self, sequence: str) -> np.ndarray:
        """Probability (length,) of each nucleotide to be the first of the start codon."""
        if not 0 < len(sequence) <= LONGEST:
            raise ValueError(f"sequence must have 1 to {LONGEST:,} nucleotides, got {len(sequence):,}")
        n = len(sequence) + 2
        half = HEAD_DIM // 2
        angles = Angles(self.sines[:n, half:], self.sines[:n, :half], "interleaved")
        local_angles = self.local.angles(n)
        x = (self.embedding(tokens_of(sequence)) + self.positions[:n])[None]
        for layer in self.layers:
            x = layer(x, angles, local_angles, self.attention, self.n_threads)
        up, down = self.head
        no, yes = down(up(x, activation="relu", n_threads=self.n_threads), n_threads=self.n_threads)[0, 1:-1].T
        return 1 / (1 + np.exp(np.clip(no - yes, -80, 80)))
