"""Twins beside the functions and layers of pyclattn: the same numbers, the same clusters, gradients that are right."""

import compare
import inputs
import naive_cast
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import pyclattn
from pyclattn import layers
from pyclattn.functional.cast import memberships
from pyclattn.layers import from_weights

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from pyclattn_export import torch_layers as twins  # noqa: E402
from pyclattn_export.torch_layers import cast as twin_cast  # noqa: E402
from pyclattn_export.torch_layers import points as twin_points  # noqa: E402

TOLERANCE = 1e-5
TIE = 2e-6  # affinities nearer than this are decided by rounding
LENGTHS = st.lists(st.integers(1, 70), min_size=1, max_size=3)
SEEDS = st.integers(0, 1000)


def as_tensor(x):
    return torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray) else x


def both(name, *arrays, **options):
    """The function of pyclattn and its twin on the same arrays."""
    found = getattr(pyclattn, name)(*arrays, **options)
    twin = getattr(twins, name)(*map(as_tensor, arrays), **{n: as_tensor(x) for n, x in options.items()})
    return found, twin.numpy()


def mask_of(lengths):
    """None where nothing is padding, as most callers have it."""
    return None if len(set(lengths)) == 1 else inputs.padding(len(lengths), max(lengths), lengths)


def cast_arrays(batch, n, seed, n_clusters=5, heads=2, dim=8):
    rng = np.random.default_rng(seed)
    tensors = inputs.tensors("random", batch=batch, heads=heads, n=n, dim=dim, width=dim + 3, seed=seed)
    surrogates = rng.standard_normal((n_clusters, heads, dim), dtype=np.float32)
    return (*tensors, surrogates, rng.standard_normal((batch, n), dtype=np.float32))


CAST = [
    (clustering, attention, gate_temperature)
    for clustering in ("topk", "sa_topk")
    for attention in ("softmax", "laplace")
    for gate_temperature in (True, False)
]


@pytest.mark.parametrize(("clustering", "attention", "gate_temperature"), CAST)
@given(lengths=LENGTHS, extra=st.integers(0, 5), scale=st.sampled_from([None, 0.9]), seed=SEEDS)
def test_cast(clustering, attention, gate_temperature, lengths, extra, scale, seed):
    padding, n = mask_of(lengths), max(lengths)
    arrays = cast_arrays(len(lengths), n, seed)
    options = {
        "cluster_size": -(-n // 5) + extra, "clustering": clustering, "attention": attention,
        "key_padding_mask": padding, "scale": scale,
    }  # fmt: skip
    *_, margin = naive_cast.cast_attention(
        *arrays, **{n.replace("key_padding_mask", "key_padding"): x for n, x in options.items()}
    )
    assume(margin > TIE)
    query, key, _, surrogates, gate = arrays
    own = memberships(query, key, surrogates, gate, **options)
    np.testing.assert_array_equal(twin_memberships(arrays, **options), own)
    found, twin = both("cast_attention", *arrays, gate_temperature=gate_temperature, **options)
    assume(np.abs(twin).max() > 1e-3)  # Laplace's weights add up to nothing in particular, in a short input to 1e-10
    compare.assert_close(found, twin, TOLERANCE)


def twin_memberships(arrays, cluster_size, clustering, attention, key_padding_mask, scale):
    """(B, N, C), from the slots of the twin's clusters."""
    query, key, _, surrogates, gate = (as_tensor(x) for x in arrays)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    weigh = {"softmax": twin_cast._softmax, "laplace": twin_cast._laplace}[attention]
    share = torch.sigmoid(gate)[:, None, :, None]
    of_query, of_key = (weigh(torch.einsum("bhnd,chd->bhnc", x, surrogates) * scale, None) for x in (query, key))
    affinity = (share * of_query + (1 - share) * of_key).sum(1)
    members, taken = twin_cast.clusters(affinity, cluster_size, clustering, as_tensor(key_padding_mask))
    found = np.zeros(affinity.shape, bool)
    batch, cluster, slot = np.nonzero(taken.numpy())
    found[batch, members.numpy()[batch, cluster, slot], cluster] = True
    return found


@given(
    n=st.integers(1, 40), n_clusters=st.integers(1, 7), extra=st.integers(0, 3), digits=st.integers(0, 3), seed=SEEDS
)
def test_sa_topk_all_at_once_is_one_by_one(n, n_clusters, extra, digits, seed):
    """Rounded affinities tie often: to the first token, and to the first cluster."""
    affinity = np.random.default_rng(seed).random((1, n, n_clusters)).round(digits)
    padding = np.random.default_rng(seed + 1).random((1, n)) < 0.2
    size = min(n, -(-n // n_clusters) + extra)
    members, taken = twin_cast.clusters(torch.from_numpy(affinity), size, "sa_topk", torch.from_numpy(padding))
    want, _ = naive_cast.sa_topk_members(affinity[0], np.flatnonzero(~padding[0]).tolist(), size)
    assert [sorted(m[t].tolist()) for m, t in zip(members[0], taken[0])] == want


@pytest.mark.parametrize("normalize", ["centroids", "inputs", "both"])
@pytest.mark.parametrize("is_near", [False, True], ids=["all", "neighbors"])
@given(lengths=LENGTHS, n_centroids=st.integers(1, 12), holes=st.sampled_from([0, 0.3]), seed=SEEDS)
def test_centroid(normalize, is_near, lengths, n_centroids, holes, seed):
    rng, n, batch = np.random.default_rng(seed), max(lengths), len(lengths)
    m = min(n_centroids, n)
    query, key, value = inputs.tensors("random", batch=batch, heads=3, n=m, n_keys=n, dim=8, width=5, seed=seed)
    options = {"normalize": normalize, "key_padding_mask": mask_of(lengths)}
    options["centroid_padding_mask"] = inputs.padding(batch, m, holes=holes, seed=seed) if holes else None
    if is_near:
        near = np.argsort(rng.random((batch, m, n)), axis=-1)[..., : min(n, 6)]
        options["neighbors"] = np.where(rng.random(near.shape) < holes, -1, near)
    found, twin = both("centroid_attention", query, key, value, **options)
    compare.assert_close(found, twin, TOLERANCE)


@given(lengths=LENGTHS, n_centroids=st.integers(1, 12), coarse=st.booleans(), seed=SEEDS)
def test_points_to_the_last_bit(lengths, n_centroids, coarse, seed):
    """On a coarse grid most distances tie."""
    rng, n = np.random.default_rng(seed), max(lengths)
    points = rng.standard_normal((len(lengths), n, 3), dtype=np.float32)
    points = points.round() if coarse else points
    m, padding = min(n_centroids, n), mask_of(lengths)
    found, twin = both("farthest_point_sampling", points, n_centroids=m, key_padding_mask=padding)
    np.testing.assert_array_equal(found, twin)
    centers = np.take_along_axis(points, np.maximum(found, 0)[..., None], 1)
    found, twin = both("nearest_neighbors", centers, points, n_neighbors=min(n, 9), key_padding_mask=padding)
    np.testing.assert_array_equal(found, twin)
    found, twin = both("mean_pool_tokens", points, n_centroids=m, key_padding_mask=padding)
    compare.assert_close(found, twin, TOLERANCE)


CLUSTERED = [("clustered_attention", {}), *(("improved_clustered_attention", {"topk": k}) for k in (1, 6, 100))]


@pytest.mark.parametrize(
    ("name", "more"), [*CLUSTERED, ("improved_clustered_attention", {"topk": 6, "is_causal": True})]
)
@given(lengths=LENGTHS, n_clusters=st.integers(1, 9), clustering=st.sampled_from(["lsh", "kmeans"]), seed=SEEDS)
def test_clustered(name, more, lengths, n_clusters, clustering, seed):
    arrays, padding = (
        inputs.tensors("blobs", batch=len(lengths), heads=2, n=max(lengths), width=5, seed=seed),
        mask_of(lengths),
    )
    options = {
        "n_clusters": n_clusters,
        "n_bits": 31,
        "n_iterations": 5,
        "clustering": clustering,
        "seed": seed,
        **more,
    }
    found, twin = both(name, *arrays, key_padding_mask=padding, query_padding_mask=padding, **options)
    compare.assert_close(found, twin, TOLERANCE)


def numpy_state(module):
    return {name: x.detach().numpy() for name, x in module.state_dict().items()}


def run(module, *given, **options):
    with torch.no_grad():
        return module.eval()(*map(as_tensor, given), **{n: as_tensor(x) for n, x in options.items()}).numpy()


def tokens(lengths, seed=0, dim=24):
    return np.random.default_rng(seed).standard_normal((len(lengths), max(lengths), dim), dtype=np.float32)


@pytest.mark.parametrize("lengths", [[60], [60, 41, 7]], ids=["whole", "padded"])
@pytest.mark.parametrize(("clustering", "attention", "gate_temperature"), CAST)
def test_cast_layer(clustering, attention, gate_temperature, lengths):
    torch.manual_seed(0)
    options = {
        "cluster_size": 13, "clustering": clustering, "attention": attention, "gate_temperature": gate_temperature,
    }  # fmt: skip
    twin = twins.CASTAttention(24, 4, 5, **options)
    layer = from_weights("cast_attention", numpy_state(twin), **options)
    x, padding = tokens(lengths), mask_of(lengths)
    compare.assert_close(layer(x, key_padding_mask=padding), run(twin, x, padding), TOLERANCE)


STARTS = [
    {"init": "farthest"},
    {"init": "farthest", "n_neighbors": 9, "normalize": "both"},
    {"init": "mean_pool", "n_steps": 3, "eps": 0.5},
    {"init": "mean_pool", "has_class_token": True},
    {"init": "random", "seed": 3, "n_neighbors": 7, "normalize": "inputs"},
    {"init": "random", "has_class_token": True, "n_steps": 2},
]


@pytest.mark.parametrize("lengths", [[60], [60, 41, 5]], ids=["whole", "padded"])
@pytest.mark.parametrize("options", STARTS, ids=lambda options: " ".join(map(str, options.values())))
def test_centroid_layer(options, lengths):
    torch.manual_seed(0)
    twin = twins.CentroidAttention(24, 4, 8, **options)
    layer = from_weights("centroid_attention", numpy_state(twin), n_heads=4, n_centroids=8, **options)
    x, padding, places = tokens(lengths), mask_of(lengths), tokens(lengths, 1, 3)
    found = layer(x, places, key_padding_mask=padding)
    compare.assert_close(found, run(twin, x, places, key_padding_mask=padding), TOLERANCE)


def test_centroids_of_patches_and_given_ones():
    torch.manual_seed(0)
    x = tokens([36, 36])
    twin = twins.CentroidAttention(24, 4, 9, init="mean_pool", grid=(6, 6))
    weights = numpy_state(twin)
    layer = from_weights("centroid_attention", weights, n_heads=4, n_centroids=9, init="mean_pool", grid=(6, 6))
    want = run(twin, x)
    compare.assert_close(layer(x), want, TOLERANCE)
    start = twin.begin(torch.from_numpy(x))
    twin.init = "given"
    with torch.no_grad():
        np.testing.assert_array_equal(twin(torch.from_numpy(x), start=start).numpy(), want)


@pytest.mark.parametrize("lengths", [[60], [60, 41, 7]], ids=["whole", "padded"])
@pytest.mark.parametrize("options", [{}, {"topk": 6}, {"topk": 6, "clustering": "kmeans", "seed": 4}])
def test_clustered_layer(options, lengths):
    torch.manual_seed(0)
    options = {"n_clusters": 7, "n_bits": 31, **options}
    twin = twins.ClusteredAttention(24, 4, **options)
    layer = from_weights("clustered_attention", numpy_state(twin), n_heads=4, **options)
    assert isinstance(layer, layers.ClusteredAttention)
    x, padding = tokens(lengths), mask_of(lengths)
    compare.assert_close(layer(x, key_padding_mask=padding), run(twin, x, padding), TOLERANCE)


ATTENTIONS = {
    "attention": (lambda: twins.MultiHeadAttention(24, 4), {}),
    "clustered_attention": (lambda: twins.ClusteredAttention(24, 4, 7, topk=5), {"n_clusters": 7, "topk": 5}),
    "cast_attention": (lambda: twins.CASTAttention(24, 4, 5, cluster_size=13), {"cluster_size": 13}),
}
FEED_FORWARDS = [("relu", False), ("gelu", False), ("gelu", True), ("silu", True)]  # the gated: GEGLU and SwiGLU


@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize(("activation", "is_gated"), FEED_FORWARDS)
@pytest.mark.parametrize("is_pre_norm", [False, True], ids=["post-norm", "pre-norm"])
def test_encoder(kind, activation, is_gated, is_pre_norm):
    torch.manual_seed(0)
    attention, options = ATTENTIONS[kind]
    norm = "rms" if is_gated else "layer"
    made = [
        twins.EncoderLayer(
            attention(), twins.FeedForward(24, 50, activation=activation, is_gated=is_gated), is_pre_norm=is_pre_norm,
            norm=norm, epsilon=1e-5, dropout=0.1,
        )
        for _ in range(2)
    ]  # fmt: skip
    twin = twins.Encoder(made, twins.encoder.NORMS[norm](24, eps=1e-5))
    encoder = from_weights(
        "encoder", numpy_state(twin), n_layers=2, n_heads=4, attention_kind=kind, activation=activation,
        is_gated=is_gated, is_pre_norm=is_pre_norm, norm=norm, epsilon=1e-5, has_norm=True, **options,
    )  # fmt: skip
    lengths = [60, 41]
    x, padding = tokens(lengths), mask_of(lengths)
    compare.assert_close(encoder(x, key_padding_mask=padding), run(twin, x, padding), TOLERANCE, ~padding)


GRADIENTS = {
    "cast topk": lambda q, k, v, s, g: twins.cast_attention(q, k, v, s, g, cluster_size=5),
    "cast sa_topk laplace": lambda q, k, v, s, g: twins.cast_attention(
        q, k, v, s, g, cluster_size=5, clustering="sa_topk", attention="laplace"
    ),
    "centroids": lambda q, k, v, s, g: twins.centroid_attention(q[:, :, :4], k, v, normalize="both"),
    "neighbors": lambda q, k, v, s, g: twins.centroid_attention(
        q[:, :, :3], k, v, neighbors=torch.tensor([[[0, 3, 5], [3, 1, -1], [5, 2, 0]]])
    ),
    "clustered": lambda q, k, v, s, g: twins.clustered_attention(q, k, v, n_clusters=3),
    "improved": lambda q, k, v, s, g: twins.improved_clustered_attention(q, k, v, n_clusters=3, topk=4),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name):
    """Beside differences of the outputs, in float64."""
    arrays = [
        torch.from_numpy(x.astype(np.float64)).requires_grad_() for x in cast_arrays(1, 11, 5, n_clusters=3, dim=4)
    ]
    assert torch.autograd.gradcheck(GRADIENTS[name], arrays, fast_mode=True)


def test_it_trains():
    """A few steps bring the loss down; the surrogates and the gate are among what learns."""
    torch.manual_seed(0)
    layer = twins.CASTAttention(16, 2, 4, cluster_size=10)
    before = {name: x.clone() for name, x in layer.state_dict().items()}
    x, y = torch.randn(4, 30, 16), torch.randn(4, 30, 16)
    optimizer, losses = torch.optim.Adam(layer.parameters(), 1e-2), []
    for _ in range(25):
        loss = (layer(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    assert all(not torch.equal(x, before[name]) for name, x in layer.state_dict().items())


def test_random_positions_are_pyclattns():
    from pyclattn.functional.centroid import random_positions

    padding = inputs.padding(3, 20, [20, 9, 2])
    for mask in (None, padding):
        own = np.broadcast_to(random_positions(20, 5, 7, mask), (3, 5))
        found = twin_points.random_positions(torch.zeros(3, 20, 1), 5, 7, as_tensor(mask))
        np.testing.assert_array_equal(found.numpy(), own)


X = torch.randn(1, 9, 12)
HEADS = torch.randn(1, 2, 9, 4)
BAD = {
    "clustering": (lambda: twins.CASTAttention(12, 3, 4, cluster_size=5, clustering="sa"), "clustering | 'sa'"),
    "attention": (lambda: twins.CASTAttention(12, 3, 4, cluster_size=5, attention="relu"), "attention | 'relu'"),
    "cluster_size": (lambda: twins.CASTAttention(12, 3, 4, cluster_size=0), "cluster_size | 0"),
    "heads": (lambda: twins.CASTAttention(12, 5, 4, cluster_size=5), "n_heads | divisor of dim = 12 | 5"),
    "heads of exact": (lambda: twins.MultiHeadAttention(12, 5), "n_heads | 12 | 5"),
    "no room": (
        lambda: twins.CASTAttention(12, 3, 4, cluster_size=2, clustering="sa_topk")(X),
        "cluster_size must be at least 3 | 9 tokens in 4 clusters | got 2",
    ),
    "init": (lambda: twins.CentroidAttention(12, 3, 4, init="nowhere"), "init | 'nowhere'"),
    "normalize": (lambda: twins.CentroidAttention(12, 3, 4, normalize="rows"), "normalize | 'rows'"),
    "heads of centroids": (lambda: twins.CentroidAttention(12, 5, 4), "n_heads | 12 | 5"),
    "coordinates": (lambda: twins.CentroidAttention(12, 3, 4)(X), "'farthest' | coordinates | None"),
    "start": (lambda: twins.CentroidAttention(12, 3, 4, init="given")(X), "start"),
    "far": (lambda: twins.CentroidAttention(12, 3, 10)(X, X[..., :3]), "n_centroids | 10 of 9"),
    "drawn": (lambda: twins.CentroidAttention(12, 3, 10, init="random")(X), "n_centroids | 10 of 9"),
    "pooled": (lambda: twins.CentroidAttention(12, 3, 10, init="mean_pool")(X), "n_centroids | 10 of 9"),
    "grid": (lambda: twins.CentroidAttention(12, 3, 4, init="mean_pool", grid=(3, 3))(X), "n_centroids | 3 x 3 | 4"),
    "more centroids": (lambda: twins.centroid_attention(HEADS, HEADS[:, :, :8], HEADS[:, :, :8]), "9 > 8"),
    "activation": (lambda: twins.FeedForward(12, 20, activation="tanhh"), "activation | 'silu' | 'tanhh'"),
    "norm": (
        lambda: twins.EncoderLayer(twins.MultiHeadAttention(12, 3), twins.FeedForward(12, 20), norm="batch"),
        "norm | 'rms' | 'batch'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    """Refused while it is trained, not first when it is run in pyclattn."""
    make, said = BAD[name]
    with pytest.raises(pyclattn.errors.ArgumentError) as error:
        make()
    for word in said.split(" | "):
        assert word in str(error.value), (word, str(error.value))


def test_room_for_what_is_there_only():
    """Padding takes no places."""
    layer = twins.CASTAttention(12, 3, 4, cluster_size=2, clustering="sa_topk")
    padding = torch.arange(9)[None] >= 8
    own = from_weights("cast_attention", numpy_state(layer), cluster_size=2, clustering="sa_topk")
    compare.assert_close(own(X.numpy(), key_padding_mask=padding.numpy()), run(layer, X, padding), TOLERANCE)


def test_coordinates_of_padding_are_never_looked_from():
    """The first token is padding, and there are fewer tokens than centroids."""
    layer, places = twins.CentroidAttention(12, 3, 4, n_neighbors=2), torch.randn(1, 9, 3)
    padding = (torch.arange(9) < 7)[None]
    want = layer.begin(X, places, key_padding_mask=padding)
    wild = places.masked_fill(padding[..., None], torch.nan)
    found = layer.begin(X, wild, key_padding_mask=padding)
    assert want.indices.tolist() == [[7, 8, -1, -1]]
    assert torch.equal(found.neighbors, want.neighbors)
    own = from_weights("centroid_attention", numpy_state(layer), n_heads=3, n_centroids=4, n_neighbors=2)
    start = own.begin(X.numpy(), wild.numpy(), key_padding_mask=padding.numpy())
    np.testing.assert_array_equal(start.neighbors, found.neighbors.numpy())
