"""Text as token numbers: WordPiece over English prose, and reactions as SMILES. No tokenizer library needed."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import numpy as np

# Atoms, bonds, rings and the arrow of a reaction (the pattern of Schwaller et al., ACS Cent. Sci. 2019).
SMILES = re.compile(r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>>?|\*|\$|%\d\d|\d)")
REACTIONS = (
    "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F",
    "C1COCCO1.CC(C)(C)OC(=O)CONC(=O)NCc1cccc2ccccc12.Cl>>O=C(O)CONC(=O)NCc1cccc2ccccc12",
    "CC(=O)Cl.OCc1ccccc1.c1ccncc1>>CC(=O)OCc1ccccc1",
)


def vocabulary(path: Path) -> dict[str, int]:
    """Token numbers of a vocab.txt or a tokenizer.json."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)["model"]["vocab"]
    return {token: number for number, token in enumerate(text.splitlines())}


def prose(n_sentences: int) -> list[str]:
    """Sentences of English from Python's standard library."""
    from pydoc_data import topics

    text = re.sub(r"\s+", " ", re.sub(r"[*`=|:>_-]{2,}|\.\. \w+::", " ", "\n".join(topics.topics.values())))
    sentences = [sentence for sentence in re.split(r"(?<=[.?!]) (?=[A-Z])", text) if 60 < len(sentence) < 400]
    return sentences[10 : 10 + n_sentences]


def word_pieces(text: str, vocab: dict[str, int], is_lower: bool) -> list[int]:
    """BERT's tokens: words and marks, cut into the longest pieces the vocabulary has.

    Examples
    --------
    >>> vocab = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "un": 3, "##aff": 4, "##able": 5, "!": 6}
    >>> word_pieces("Unaffable!", vocab, True)
    [1, 3, 4, 5, 6, 2]
    """
    if is_lower:
        text = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    found = [vocab["[CLS]"]]
    for word in re.findall(r"\w+|[^\w\s]", text.replace("_", " _ ")):
        found += _pieces(word, vocab)
    return [*found, vocab["[SEP]"]]


def _pieces(word: str, vocab: dict[str, int]) -> list[int]:
    pieces, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = word[start:end] if start == 0 else f"##{word[start:end]}"
            if piece in vocab:
                pieces.append(vocab[piece])
                start = end
                break
        else:
            return [vocab["[UNK]"]]
    return pieces


def smiles(text: str, vocab: dict[str, int]) -> list[int]:
    """Tokens of a reaction."""
    tokens = ["[CLS]", *SMILES.findall(text), "[SEP]"]
    return [vocab.get(token, vocab["[UNK]"]) for token in tokens]


def padded(rows: list[list[int]], longest: int = 128) -> dict[str, np.ndarray]:
    """``input_ids`` and ``attention_mask`` of several texts; padding is token 0."""
    rows = [row[:longest] for row in rows]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}
