"""From a file's tensors to layers: renaming rules as data, and one check of everything.

The length of an axis that has a name is what most tensors with that axis agree on, so nobody has to state sizes, and
the odd tensor is found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from pyclattn.errors import ArgumentError, ModelFormatError
from pyclattn.functional._check import whole
from pyclattn.layers.attention import FUSED
from pyclattn.layers.kinds import KINDS, Template, Tensors

Names = Mapping[str, str | None]  # ours -> the file's; None: the file has no such tensor


def from_weights(
    kind: str,
    weights: Mapping[str, np.ndarray],
    prefix: str = "",
    names: Names | None = None,
    *,
    ignore: Iterable[str] = (),
    **settings: Any,
) -> Any:
    """A layer from a file's tensors.

    Parameters
    ----------
    kind : {"linear", "layer_norm", "rms_norm", "embedding", "feed_forward", "attention", \
"clustered_attention", "cast_attention", "centroid_attention", "encoder_layer", "encoder"}
    weights : mapping of str to array
        As `pyclattn.load_weights` gives it.
    prefix : str
        What the names of the layer's tensors begin with, up to the last dot: ``"encoder.block.3"``.
    names : mapping of str to str or None, optional
        Renaming rules, ours to the file's: ``{"attention.out": "attn.proj", "attention.query.bias": None}``. A rule
        stands for a name or for all that begins with it; of several the longest counts. ``{}`` in both stands for
        each layer's number. None: the file has no such tensors, nor does the layer. Our names are paths of fields:
        ``layers.0.attention.query.weight``.
    ignore : iterable of str
        Patterns (``*`` and ``?``) of tensors under the prefix that are no part of the layer, without the prefix.
    **settings
        What tensors do not say. attention: ``n_heads``, ``n_kv_heads``, ``fused`` (a layout of
        `MultiHeadAttention.fused`; the projection is then named ``qkv``), ``shares_query`` (queries and keys share
        ``query``), ``rotary``, ``scale``, ``attention``, ``name``; feed_forward: ``activation``, ``is_gated``; norms:
        ``norm`` ("layer" or "rms"), ``epsilon``; clustered_attention, cast_attention and centroid_attention: the
        fields of `ClusteredAttention`, `CASTAttention` and `CentroidAttention` that are no tensors; encoder_layer:
        all of attention's, feed_forward's and the norms', ``is_pre_norm``, and ``attention_kind`` ("attention",
        "clustered_attention" or "cast_attention") with that kind's settings; encoder: also ``n_layers``, ``has_norm``
        (a last ``norm``), and ``name`` with ``{}`` for the layer's number.

    Returns
    -------
    Linear, LayerNorm, RMSNorm, Embedding, FeedForward, MultiHeadAttention, ClusteredAttention, CASTAttention,
    CentroidAttention, EncoderLayer or Encoder

    Raises
    ------
    ModelFormatError
        Listing all tensors that are missing, unexpected or of another shape.
    ArgumentError
        For an unknown kind or setting, for sizes that do not go with the settings, and for a tensor that ``names``
        leaves out and the layer needs.

    Examples
    --------
    >>> import numpy as np
    >>> weights = {"mlp.fc1.weight": np.ones((8, 4), np.float32), "mlp.fc2.weight": np.ones((4, 9), np.float32)}
    >>> names = {"up": "fc1", "down": "fc2", "down.bias": None}
    >>> from_weights("feed_forward", weights, "mlp", names)
    Traceback (most recent call last):
    ...
    pyclattn.errors.ModelFormatError: the tensors are not those of feed_forward at 'mlp':
      missing: mlp.fc1.bias (hidden)
      wrong shape: mlp.fc2.weight must be (width, hidden) = (4, 8), got (4, 9)
    """
    if kind not in KINDS:
        raise ArgumentError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    known = KINDS[kind]
    _check_settings(kind, settings)
    tensors = find(known.template(settings), weights, prefix, names or {}, ignore, kind)
    return known.build(tensors, settings)


def _check_settings(kind: str, settings: Mapping[str, Any]) -> None:
    known = KINDS[kind]
    unknown = sorted(set(settings) - set(known.settings))
    lacking = [n for n in known.needed if n not in settings]
    if unknown or lacking:
        said = [f"does not know {', '.join(unknown)}"] * bool(unknown) + [f"needs {', '.join(lacking)}"] * bool(lacking)
        raise ArgumentError(f"{kind} {' and '.join(said)}; its settings: {', '.join(known.settings) or 'none'}")
    choices = {
        "fused": (None, *FUSED), "norm": ("layer", "rms"),
        "attention_kind": ("attention", "clustered_attention", "cast_attention"),
    }  # fmt: skip
    for name, allowed in choices.items():
        if name in settings and settings[name] not in allowed:
            raise ArgumentError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {settings[name]!r}")
    for name in ("n_layers", "n_heads"):
        if name in settings:
            whole(name, settings[name], 1)


def find(
    template: Template, weights: Mapping[str, np.ndarray], prefix: str, names: Names, ignore: Iterable[str], kind: str
) -> Tensors:
    """The tensors of a template by our names; one error for all that is wrong."""
    start = f"{prefix}." if prefix else ""
    theirs = {ours: renamed(ours, names) for ours in template}
    wanted = {ours: start + name for ours, name in theirs.items() if name is not None}
    found = Tensors({ours: weights[name] for ours, name in wanted.items() if name in weights})
    known, ignored = set(wanted.values()), tuple(ignore)
    unexpected = [
        n
        for n in weights
        if n.startswith(start) and n not in known and not any(fnmatchcase(n[len(start) :], p) for p in ignored)
    ]
    lengths = _lengths(template, found)
    problems = [f"missing: {n} ({_axes(template[o])})" for o, n in wanted.items() if o not in found]
    problems += [f"unexpected: {n} {tuple(weights[n].shape)}" for n in unexpected]
    for ours, array in found.items():
        shape = tuple(a if isinstance(a, int) else lengths.get(a, -1) for a in template[ours])
        if array.shape != shape:
            sizes = ", ".join("?" if n < 0 else str(n) for n in shape)
            problems.append(
                f"wrong shape: {wanted[ours]} must be ({_axes(template[ours])}) = ({sizes}), got {tuple(array.shape)}"
            )
    if problems:
        where = f" at {prefix!r}" if prefix else ""
        raise ModelFormatError("\n  ".join([f"the tensors are not those of {kind}{where}:", *problems]))
    return found


def renamed(name: str, rules: Names) -> str | None:
    """The file's name of a tensor: the longest rule that fits its beginning; the rest stays."""
    parts = name.split(".")
    numbers = [p for p in parts if p.isdigit()]
    general = ["{}" if p.isdigit() else p for p in parts]
    for end in range(len(parts), 0, -1):
        for head in (".".join(parts[:end]), ".".join(general[:end])):
            if head in rules:
                rule = rules[head]
                return rule if rule is None else ".".join([rule.format(*numbers), *parts[end:]]).strip(".")
    return name


def _lengths(template: Template, found: Tensors) -> dict[str, int]:
    """Length of each named axis: what most tensors say."""
    votes: dict[str, Counter] = {}
    for ours, array in found.items():
        if array.ndim == len(template[ours]):
            for axis, n in zip(template[ours], array.shape):
                if isinstance(axis, str):
                    votes.setdefault(axis, Counter())[n] += 1
    return {axis: counter.most_common(1)[0][0] for axis, counter in votes.items()}


def _axes(axes: tuple[str | int, ...]) -> str:
    return ", ".join(map(str, axes))
