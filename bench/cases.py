"""The one table of cases: shapes, masks and options. Benchmarks and tests draw on it.

Bars hold at the sizes written here. `Case.scaled` makes a case small, to try the machinery.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from pyclattn.arrays import Bool, Float32

# The published settings (Vyas et al. 2020): 100 clusters, 32 keys a cluster, 63 bits, 10 iterations.
PUBLISHED = {"n_clusters": 100, "n_bits": 63, "n_iterations": 10}


@dataclass(frozen=True)
class Inputs:
    """Query, key and value, and which keys are padding (True), or None."""

    query: Float32
    key: Float32
    value: Float32
    key_padding_mask: Bool | None

    @property
    def n_bytes(self) -> int:
        arrays = (self.query, self.key, self.value, self.key_padding_mask)
        return sum(a.nbytes for a in arrays if a is not None)


@dataclass(frozen=True)
class Case:
    """One problem: ``length`` queries and ``key_length`` keys (as many by default) of ``head_dim``.

    ``padding`` leaves out a quarter of the keys, at the end or scattered. ``structure="random"`` is standard normal;
    "structured" has rows in groups that drift along the sequence, and logits with a standard deviation of about 3, as
    trained layers have.
    """

    length: int
    key_length: int | None = None
    batch: int = 1
    n_heads: int = 12
    n_kv_heads: int | None = None
    head_dim: int = 64
    value_dim: int | None = None
    padding: str = "none"
    is_causal: bool = False
    structure: str = "random"
    clustered: dict[str, Any] = field(default_factory=lambda: dict(PUBLISHED))
    seed: int = 0

    @property
    def n_keys(self) -> int:
        return self.length if self.key_length is None else self.key_length

    @property
    def width(self) -> int:
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def flops(self) -> int:
        """Multiplications and additions of exact attention without a mask."""
        return 2 * self.batch * self.n_heads * self.length * self.n_keys * (self.head_dim + self.width)

    @property
    def output_bytes(self) -> int:
        return 4 * self.batch * self.n_heads * self.length * self.width

    def scaled(self, divisor: int) -> Case:
        """The same case over a shorter sequence."""
        if divisor == 1:
            return self
        shorter = None if self.key_length is None else max(8, self.key_length // divisor)
        return replace(self, length=max(8, self.length // divisor), key_length=shorter)

    @cached_property
    def planes(self) -> Float32:
        """Hyperplanes given to the clustered variants where results are compared."""
        rng = np.random.default_rng([self.seed, 1])
        return rng.standard_normal((self.clustered["n_bits"], self.head_dim + 1), dtype=np.float32)

    def inputs(self) -> Inputs:
        """The arrays, the same at every call."""
        rng = np.random.default_rng(self.seed)
        n_kv_heads = self.n_heads if self.n_kv_heads is None else self.n_kv_heads
        shapes = (
            (self.batch, self.n_heads, self.length, self.head_dim),
            (self.batch, n_kv_heads, self.n_keys, self.head_dim),
            (self.batch, n_kv_heads, self.n_keys, self.width),
        )
        make = _structured if self.structure == "structured" else _random
        query, key, value = make(rng, shapes)
        return Inputs(query, key, value, self._padding_mask(rng))

    def _padding_mask(self, rng: np.random.Generator) -> Bool | None:
        if self.padding == "none":
            return None
        mask = np.arange(self.n_keys) >= self.n_keys - self.n_keys // 4
        if self.padding == "scattered":
            rng.shuffle(mask)
        return np.ascontiguousarray(np.broadcast_to(mask, (self.batch, self.n_keys)))


def _random(rng: np.random.Generator, shapes: tuple[tuple[int, ...], ...]) -> list[Float32]:
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def _structured(rng: np.random.Generator, shapes: tuple[tuple[int, ...], ...]) -> list[Float32]:
    """48 groups; queries and keys of a group point the same way, its values are alike, and all drift slowly."""
    n_groups, arrays = 48, []
    prototypes: dict[int, Float32] = {}
    for shape in shapes:
        *_, length, width = shape
        if width not in prototypes:
            prototypes[width] = rng.standard_normal((n_groups, width), dtype=np.float32)
        x = rng.standard_normal(shape, dtype=np.float32)
        x *= np.float32(0.7)
        members = rng.integers(0, n_groups, length)
        x += np.float32(1.3) * prototypes[width][members]
        drift = np.sin(np.linspace(0, np.pi, length, dtype=np.float32))
        x += np.float32(0.3) * drift[:, None]
        arrays.append(x)
    return arrays


EXACT = [Case(n) for n in (1024, 2048, 4096, 8192, 16384)]
HEAD_DIMS = [Case(4096, head_dim=d) for d in (16, 32, 36, 96, 128)]
PADDED = [Case(4096, padding="end"), Case(4096, padding="scattered")]
CAUSAL = Case(8192, is_causal=True)
IMPROVED = [Case(n) for n in (4096, 16384, 32768)]
LONG = Case(16384)
LONG_STRUCTURED = replace(LONG, structure="structured")
GROWTH = [Case(n) for n in (16384, 32768, 65536, 131072)]

# Where results are compared with the definition in float64, and their bits among numbers of threads: every option once.
AGREEMENT = {
    "random": Case(4096),
    "structured": Case(4096, structure="structured"),
}
OPTIONS = {
    "padded": Case(1500, n_heads=3, padding="end", structure="structured"),
    "scattered": Case(1500, n_heads=3, padding="scattered", structure="structured"),
    "causal": Case(1111, n_heads=2, is_causal=True, structure="structured"),
    "cross": Case(700, key_length=1900, n_heads=2, head_dim=36, value_dim=20),
    "grouped heads": Case(1200, n_heads=6, n_kv_heads=2, head_dim=32),
    "batch": Case(900, batch=3, n_heads=2, head_dim=128),
}
BITS = {
    "long": Case(20000, n_heads=2, structure="structured"),
    "wide": Case(2500, batch=2, structure="structured", padding="scattered"),
}
