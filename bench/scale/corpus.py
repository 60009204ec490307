"""The model, and the documents: passages of English of several lengths, as token numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.tasks.exported import MINILM
from bench.tasks.fetch import fetch
from bench.tasks.words import prose, vocabulary, word_pieces
from pyclattn import _config

# Lengths are spread like a bell on a logarithmic axis: median 32 tokens, two in three between 15 and 68.
MEDIAN, SPREAD = 32.0, 0.75
LEAST, MOST = 6, 512


def model() -> Path:
    """all-MiniLM-L6-v2 as a Hugging Face folder, put together from the files that were fetched."""
    folder = _config.cache_dir() / "files" / "minilm"
    folder.mkdir(parents=True, exist_ok=True)
    for file in fetch(*MINILM):
        link = folder / file.name
        if not link.exists():
            link.symlink_to(file)
    return folder


def corpus(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns ``doc``, 0 to n - 1, and ``input_ids``: each a passage that starts anywhere in the text."""
    vocab = vocabulary(fetch(*MINILM)[2])
    stream = np.array([token for text in prose(2000) for token in word_pieces(text, vocab, True)[1:-1]])
    rng = np.random.default_rng(seed)
    lengths = np.clip(MEDIAN * np.exp(SPREAD * rng.standard_normal(n)), LEAST, MOST).astype(np.int64)
    ids = np.empty(n, object)
    for i, (length, start) in enumerate(zip(lengths, rng.integers(0, len(stream) - MOST, n))):
        ids[i] = np.array([vocab["[CLS]"], *stream[start : start + length - 2], vocab["[SEP]"]])
    return {"doc": np.arange(n), "input_ids": ids}


def n_tokens(columns: dict[str, np.ndarray]) -> int:
    return sum(map(len, columns["input_ids"]))
