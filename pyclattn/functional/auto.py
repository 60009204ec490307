"""Attention by whichever of exact and co-clustered is predicted to be faster on this machine."""

from __future__ import annotations

import numpy as np

from pyclattn import _threads
from pyclattn.arrays import Float32, Float64, Given
from pyclattn.functional import _check, costs
from pyclattn.functional.coclustered import SHORTEST, bias_of, coclustered_attention
from pyclattn.functional.exact import scaled_dot_product_attention

# Arguments of the approximation that exact attention has no use for.
APPROXIMATE = (
    "n_query_clusters", "n_key_clusters", "n_exact", "rank", "query_padding_mask", "return_error", "max_error",
    "on_error",
)  # fmt: skip


def auto_attention(
    query: Given, key: Given, value: Given, *, precision: str = "float32", return_error: bool = False, **options: Given
) -> Float32 | tuple[Float32, Float64]:
    """Co-clustered attention where that is predicted to be faster on this machine, else exact attention.

    Parameters
    ----------
    query, key, value, return_error
        As of `coclustered_attention`.
    precision : str
        Of the products, "float32" or "bfloat16", as of either method.
    **options
        Whatever else it takes.

    Returns
    -------
    float32 array (B, H, L, E), or (H, T, E)
        The same bits for any ``n_threads``, as long as that does not change which method is taken.
    float64 array (B, H), or (n_sequences, H), with ``return_error``
        Zeros where attention was exact.

    Notes
    -----
    The prediction rests on rates of this machine that are measured once (`costs.rates`), here if nothing did so before.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((1, 2, 300, 16), dtype=np.float32)
    >>> out, errors = auto_attention(x, x, x, return_error=True)
    >>> errors  # so short an input is exact
    array([[0., 0.]])
    """
    method = method_for(query, key, value, **options)
    if precision != "float32":
        options["precision"] = precision
    if method == "coclustered":
        return coclustered_attention(query, key, value, return_error=return_error, **options)
    out = exactly(query, key, value, **options)
    n_sequences = len(out) if options.get("offsets") is None else len(options["offsets"]) - 1
    return (out, np.zeros((n_sequences, out.shape[-3]))) if return_error else out


def exactly(query: Given, key: Given, value: Given, **options: Given) -> Float32:
    """Exact attention for the arguments of `coclustered_attention`."""
    if not options:
        return scaled_dot_product_attention(query, key, value)
    padding, bias = options.get("query_padding_mask"), options.pop("key_bias", None)
    if bias is not None:
        options["attn_mask"] = bias_of(bias, np.shape(key), options.get("offsets") is not None)[:, None, None]
    out = scaled_dot_product_attention(query, key, value, **{n: v for n, v in options.items() if n not in APPROXIMATE})
    if padding is not None:
        out.swapaxes(1, 2)[_check.bool_mask("query_padding_mask", padding, (out.shape[0], out.shape[2]))] = 0
    return out


def method_for(query: Given, key: Given, value: Given, **options: Given) -> str:
    """ "exact" or "coclustered": which `auto_attention` takes for these arguments."""
    if _is_short(query) or _is_short(key):
        return "exact"
    q, k, v = (np.shape(x) for x in (query, key, value))
    if len(q) not in (3, 4) or len(k) != len(q) or len(v) != len(q):
        return "exact"  # which tells what is wrong
    lengths = _lengths(q, options.get("query_padding_mask"), options.get("offsets"))
    others = options.get("key_offsets")
    key_lengths = _lengths(k, options.get("key_padding_mask"), options.get("offsets") if others is None else others)
    if len(lengths) != len(key_lengths):
        return "exact"
    given = {name: options[name] for name in ("n_query_clusters", "n_key_clusters", "n_exact") if name in options}
    return costs.faster(lengths, key_lengths, q[-3], q[-1], v[-1], _threads.resolve(options.get("n_threads")), **given)


def _is_short(given: Given) -> bool:
    """Whether no sequence can be long enough to cluster: told at once, since such calls take microseconds."""
    shape: tuple[int, ...] = getattr(given, "shape", ())
    return len(shape) > 2 and shape[-2] < SHORTEST


def _lengths(shape: tuple[int, ...], padding_mask: Given, offsets: Given) -> list[int]:
    """Tokens of each sequence."""
    if offsets is not None:
        return np.diff(np.asarray(offsets)).tolist()
    if padding_mask is None or np.shape(padding_mask) != (shape[0], shape[2]):
        return [shape[2]] * shape[0]
    return (shape[2] - np.count_nonzero(padding_mask, axis=1)).tolist()
