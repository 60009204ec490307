"""From a file's tensors to layers: what a kind of layer expects, renaming rules as data, one check of everything.

What a kind expects is a template: our name of each tensor (the path of fields to it) and its axes by letter names. A
name's length is what most tensors that have it agree on, so nobody has to state sizes, and the odd tensor is found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from pyclattn.errors import ArgumentError, ModelFormatError
from pyclattn.layers.attention import FUSED, MultiHeadAttention
from pyclattn.layers.basic import Embedding, FeedForward, LayerNorm, Linear, RMSNorm
from pyclattn.layers.encoder import Encoder, EncoderLayer

Template = dict[str, tuple[str | int, ...]]  # our name -> axes
Names = Mapping[str, str | None]  # ours -> the file's; None: the file has no such tensor
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Kind:
    """A kind of layer: what it expects of a file, and how it is put together."""

    template: Callable[..., Template]
    build: Callable[..., Any]


def under(prefix: str, template: Template, **axes: str | int) -> Template:
    """A template one level down, with other names for some axes."""
    return {f"{prefix}.{n}": tuple(axes.get(str(a), a) for a in shape) for n, shape in template.items()}


def part(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors of one field, by what follows its name."""
    return {n[len(prefix) + 1 :]: a for n, a in tensors.items() if n.startswith(f"{prefix}.")}


def _linear_template() -> Template:
    return {"weight": ("out", "in"), "bias": ("out",)}


def _linear(tensors: Tensors) -> Linear:
    return Linear(tensors["weight"], tensors.get("bias"))


def _norm_template(norm: str = "layer", epsilon: float = 0) -> Template:
    return {"weight": ("width",), "bias": ("width",)} if norm == "layer" else {"weight": ("width",)}


def _norm(tensors: Tensors, norm: str = "layer", epsilon: float | None = None) -> LayerNorm | RMSNorm:
    more = {} if epsilon is None else {"epsilon": epsilon}
    if norm == "layer":
        return LayerNorm(tensors["weight"], tensors.get("bias"), **more)
    return RMSNorm(tensors["weight"], **more)


def _layer_norm(tensors: Tensors, epsilon: float = 1e-5) -> LayerNorm:
    return LayerNorm(tensors["weight"], tensors.get("bias"), epsilon)


def _rms_norm(tensors: Tensors, epsilon: float = 1e-6) -> RMSNorm:
    return RMSNorm(tensors["weight"], epsilon)


def _feed_forward_template(activation: str = "gelu", is_gated: bool = False) -> Template:
    up = under("up", _linear_template(), out="hidden", **{"in": "width"})
    gate = under("gate", _linear_template(), out="hidden", **{"in": "width"}) if is_gated else {}
    return {**up, **gate, **under("down", _linear_template(), out="width", **{"in": "hidden"})}


def _feed_forward(tensors: Tensors, activation: str = "gelu", is_gated: bool = False) -> FeedForward:
    gate = _linear(part(tensors, "gate")) if is_gated else None
    return FeedForward(_linear(part(tensors, "up")), _linear(part(tensors, "down")), gate, activation)


def _attention_template(fused: str | None = None, shares_query: bool = False, **others: Any) -> Template:
    if fused is not None:
        found = under("qkv", _linear_template(), out="query, key and value", **{"in": "width"})
    else:
        names = ("query", "value") if shares_query else ("query", "key", "value")
        found = {}
        for name in names:
            found |= under(name, _linear_template(), out=f"{name} features", **{"in": "width"})
    return {**found, **under("out", _linear_template(), out="width", **{"in": "joined heads"})}


def _attention(
    tensors: Tensors, n_heads: int, fused: str | None = None, shares_query: bool = False, **more: Any
) -> MultiHeadAttention:
    linears: dict[str, Any] = {
        n: _linear(part(tensors, n)) for n in ("qkv", "query", "key", "value", "out") if f"{n}.weight" in tensors
    }
    if fused is not None:
        return MultiHeadAttention.fused(linears.pop("qkv"), n_heads, layout=fused, **linears, **more)
    return MultiHeadAttention(n_heads, **linears, **more)


_OF_ATTENTION = ("n_heads", "n_kv_heads", "fused", "shares_query", "rotary", "scale", "attention", "name")
_OF_FEED_FORWARD = ("activation", "is_gated")
_OF_NORM = ("norm", "epsilon")


def _some(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {n: config[n] for n in names if n in config}


def _encoder_layer_template(is_pre_norm: bool = False, **config: Any) -> Template:
    norm = _norm_template(**_some(config, _OF_NORM))
    return {
        **under("attention", _attention_template(**_some(config, _OF_ATTENTION))),
        **under("attention_norm", norm),
        **under("feed_forward", _feed_forward_template(**_some(config, _OF_FEED_FORWARD))),
        **under("feed_forward_norm", norm),
    }


def _encoder_layer(tensors: Tensors, is_pre_norm: bool = False, **config: Any) -> EncoderLayer:
    of_norm = _some(config, _OF_NORM)
    return EncoderLayer(
        _attention(part(tensors, "attention"), **_some(config, _OF_ATTENTION)),
        _feed_forward(part(tensors, "feed_forward"), **_some(config, _OF_FEED_FORWARD)),
        _norm(part(tensors, "attention_norm"), **of_norm),
        _norm(part(tensors, "feed_forward_norm"), **of_norm),
        is_pre_norm,
    )


def _encoder_template(n_layers: int, has_norm: bool = False, **config: Any) -> Template:
    layer, norm = _encoder_layer_template(**config), _norm_template(**_some(config, _OF_NORM))
    found: Template = {}
    for i in range(n_layers):
        found |= under(f"layers.{i}", layer)
    return found | (under("norm", norm) if has_norm else {})


def _encoder(tensors: Tensors, n_layers: int, has_norm: bool = False, name: str = "layers.{}.attention", **config: Any):
    layers = [_encoder_layer(part(tensors, f"layers.{i}"), name=name.format(i), **config) for i in range(n_layers)]
    return Encoder(tuple(layers), _norm(part(tensors, "norm"), **_some(config, _OF_NORM)) if has_norm else None)


KINDS: dict[str, Kind] = {
    "linear": Kind(_linear_template, _linear),
    "layer_norm": Kind(lambda epsilon=0: _norm_template(), _layer_norm),
    "rms_norm": Kind(lambda epsilon=0: _norm_template("rms"), _rms_norm),
    "embedding": Kind(lambda: {"weight": ("rows", "width")}, lambda tensors: Embedding(tensors["weight"])),
    "feed_forward": Kind(_feed_forward_template, _feed_forward),
    "attention": Kind(_attention_template, _attention),
    "encoder_layer": Kind(_encoder_layer_template, _encoder_layer),
    "encoder": Kind(_encoder_template, _encoder),
}
_CONFIG = {
    "linear": (),
    "layer_norm": ("epsilon",),
    "rms_norm": ("epsilon",),
    "embedding": (),
    "feed_forward": _OF_FEED_FORWARD,
    "attention": _OF_ATTENTION,
    "encoder_layer": ("is_pre_norm", *_OF_ATTENTION, *_OF_FEED_FORWARD, *_OF_NORM),
    "encoder": ("n_layers", "has_norm", "is_pre_norm", *_OF_ATTENTION, *_OF_FEED_FORWARD, *_OF_NORM),
}
_NEEDED = {"attention": ("n_heads",), "encoder_layer": ("n_heads",), "encoder": ("n_layers", "n_heads")}


def from_weights(
    kind: str,
    weights: Mapping[str, np.ndarray],
    prefix: str = "",
    names: Names | None = None,
    *,
    ignore: Iterable[str] = (),
    **config: Any,
) -> Any:
    """A layer from a file's tensors.

    Parameters
    ----------
    kind : {"linear", "layer_norm", "rms_norm", "embedding", "feed_forward", "attention", "encoder_layer", "encoder"}
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
    **config
        What tensors do not say. attention: ``n_heads``, ``n_kv_heads``, ``fused`` (a layout of
        `MultiHeadAttention.fused`; the projection is then named ``qkv``), ``shares_query`` (queries and keys share
        ``query``), ``rotary``, ``scale``, ``attention``, ``name``; feed_forward: ``activation``, ``is_gated``; norms:
        ``norm`` ("layer" or "rms"), ``epsilon``; encoder_layer: all of these and ``is_pre_norm``; encoder: also
        ``n_layers``, ``has_norm`` (a last ``norm``), and ``name`` with ``{}`` for the layer's number.

    Returns
    -------
    Linear, LayerNorm, RMSNorm, Embedding, FeedForward, MultiHeadAttention, EncoderLayer or Encoder

    Raises
    ------
    ModelFormatError
        Listing all tensors that are missing, unexpected or of another shape.
    ArgumentError
        For an unknown kind or setting, and for sizes that do not go with the settings.

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
    unknown = sorted(set(config) - set(_CONFIG[kind]))
    lacking = [n for n in _NEEDED.get(kind, ()) if n not in config]
    if unknown or lacking:
        said = [f"does not know {', '.join(unknown)}"] * bool(unknown) + [f"needs {', '.join(lacking)}"] * bool(lacking)
        raise ArgumentError(f"{kind} {' and '.join(said)}; its settings: {', '.join(_CONFIG[kind]) or 'none'}")
    if config.get("fused") is not None and config["fused"] not in FUSED:
        raise ArgumentError(f"fused must be None or one of {', '.join(FUSED)}, got {config['fused']!r}")
    template = KINDS[kind].template(**config)
    tensors = find(template, weights, prefix, names or {}, ignore, kind)
    return KINDS[kind].build(tensors, **config)


def find(
    template: Template, weights: Mapping[str, np.ndarray], prefix: str, names: Names, ignore: Iterable[str], kind: str
) -> Tensors:
    """The tensors of a template by our names; one error for all that is wrong."""
    start = f"{prefix}." if prefix else ""
    theirs = {ours: renamed(ours, names) for ours in template}
    wanted = {ours: start + name for ours, name in theirs.items() if name is not None}
    found = {ours: weights[name] for ours, name in wanted.items() if name in weights}
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
