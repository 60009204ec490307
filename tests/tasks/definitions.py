"""The tasks' models in float64, straight from their definitions, and random weights for them."""

import math

import numpy as np
from scipy.special import erf


def random_weights(shapes, seed):
    """Weights of plausible size; variances of batch norms are positive."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape)
        if name.endswith("running_var"):
            values = 0.5 + values**2
        elif len(shape) > 1:
            values *= math.sqrt(2 / math.prod(shape[1:]))
        else:
            values *= 0.1
        found[name] = values.astype(np.float32)
    return found


def linear_shapes(name, n_out, n_in):
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def norm_shapes(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


# -- parts ------------------------------------------------------------------------------------------------------------


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T.astype(float) + w[f"{name}.bias"]


def norm(w, name, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def attention(query, key, value, seen=True):
    """Of one head: (N, D), (M, D), (M, E), and which keys (N, M) a query sees."""
    return softmax(np.where(seen, query @ key.T / math.sqrt(query.shape[1]), -np.inf)) @ value


def turn(x, angles, pairs):
    """Each pair of features (a, b) of row i becomes (a + b j) exp(j angles[i])."""
    x = np.array(x, float)
    for p, (i, j) in enumerate(pairs):
        z = (x[:, i] + 1j * x[:, j]) * np.exp(1j * angles[:, p])
        x[:, i], x[:, j] = z.real, z.imag
    return x


def neighbours(width):
    return [(2 * i, 2 * i + 1) for i in range(width // 2)]


def halves(width):
    return [(i, i + width // 2) for i in range(width // 2)]


# -- LighterGlue ------------------------------------------------------------------------------------------------------


def lighterglue_weights(seed=0):
    shapes = {"posenc.Wr.weight": (48, 2), **linear_shapes("input_proj", 96, 64)}
    for i in range(6):
        own, cross = f"transformers.{i}.self_attn", f"transformers.{i}.cross_attn"
        shapes |= linear_shapes(f"{own}.Wqkv", 288, 96) | linear_shapes(f"{own}.out_proj", 96, 96)
        for part in ("to_qk", "to_v", "to_out"):
            shapes |= linear_shapes(f"{cross}.{part}", 96, 96)
        for block in (own, cross):
            shapes |= linear_shapes(f"{block}.ffn.0", 192, 192) | norm_shapes(f"{block}.ffn.1", 192)
            shapes |= linear_shapes(f"{block}.ffn.3", 96, 192)
        shapes |= linear_shapes(f"log_assignment.{i}.matchability", 1, 96)
        shapes |= linear_shapes(f"log_assignment.{i}.final_proj", 96, 96)
    weights = random_weights(shapes, seed)
    weights["log_assignment.5.final_proj.weight"] *= 3  # or no point would prefer another
    return weights


def lighterglue(w, places, descriptors, sizes):
    """The matrix of log probabilities (N, M)."""
    angles = []
    for points, size in zip(places, sizes):
        size = np.array(size, float)
        angles.append((points - size / 2) / (size.max() / 2) @ w["posenc.Wr.weight"].T.astype(float))
    x = [linear(w, "input_proj", d.astype(float)) for d in descriptors]

    def mix(x, message, name):
        hidden = linear(w, f"{name}.ffn.0", np.concatenate([x, message], 1))
        return x + linear(w, f"{name}.ffn.3", gelu(norm(w, f"{name}.ffn.1", hidden)))

    for i in range(6):
        name = f"transformers.{i}.self_attn"
        for n in (0, 1):
            qkv = linear(w, f"{name}.Wqkv", x[n])
            query, key, value = qkv[:, 0::3], qkv[:, 1::3], qkv[:, 2::3]
            query, key = (turn(a, angles[n], neighbours(96)) for a in (query, key))
            x[n] = mix(x[n], linear(w, f"{name}.out_proj", attention(query, key, value)), name)
        name = f"transformers.{i}.cross_attn"
        points, values = ([linear(w, f"{name}.{part}", a) for a in x] for part in ("to_qk", "to_v"))
        messages = [attention(points[n], points[1 - n], values[1 - n]) for n in (0, 1)]
        x = [mix(x[n], linear(w, f"{name}.to_out", messages[n]), name) for n in (0, 1)]
    last = "log_assignment.5"
    a, b = (linear(w, f"{last}.final_proj", v) / 96**0.25 for v in x)
    known = [-np.log1p(np.exp(-linear(w, f"{last}.matchability", v)[:, 0])) for v in x]
    return double_softmax(a, b, *known)


def double_softmax(a, b, known_a, known_b):
    scores = np.asarray(a, float) @ np.asarray(b, float).T
    return np.log(softmax(scores, 1)) + np.log(softmax(scores, 0)) + known_a[:, None] + known_b


def mutual(scores, least):
    """Pairs, by looking at every row and column."""
    pairs = []
    for i, own in enumerate(scores):
        j = int(own.argmax())
        if scores[:, j].argmax() == i and math.exp(own[j]) > least:
            pairs.append([i, j])
    return np.array(pairs).reshape(-1, 2)


# -- TIS Transformer --------------------------------------------------------------------------------------------------


def sines(n, width):
    turns = np.outer(np.arange(n), 10000.0 ** (-np.arange(0, width, 2) / width))
    return np.concatenate([np.sin(turns), np.cos(turns)], 1)


def tis_weights(seed=0, n_places=700):
    shapes = {"nuc_emb.weight": (8, 48), **linear_shapes("ff_1", 96, 48), **linear_shapes("ff_2", 2, 96)}
    for i in range(8):
        name = f"transformer.net.layers.{i}"
        shapes |= norm_shapes(f"{name}.0.norm", 48) | norm_shapes(f"{name}.1.norm", 48)
        for part in ("q", "k", "v"):
            shapes |= linear_shapes(f"{name}.0.fn.to_{part}", 128, 48)
        shapes |= linear_shapes(f"{name}.0.fn.to_out", 48, 128)
        shapes |= linear_shapes(f"{name}.1.fn.fn.w1", 192, 48) | linear_shapes(f"{name}.1.fn.fn.w2", 48, 192)
    tables = {"pos_emb.emb": sines(n_places, 48), "layer_pos_emb.emb": sines(n_places, 16)}
    return {**random_weights(shapes, seed), **{n: t.astype(np.float32) for n, t in tables.items()}}


def tis(w, tokens, window=256):
    """Probability of each token but the first and the last."""
    n = len(tokens)
    x = w["nuc_emb.weight"][tokens].astype(float) + sines(n, 48)
    turns = np.outer(np.arange(n), 10000.0 ** (-np.arange(0, 16, 2) / 16))
    for i in range(8):
        name = f"transformer.net.layers.{i}"
        y = norm(w, f"{name}.0.norm", x)
        heads = []
        for h in range(8):
            q, k, v = (linear(w, f"{name}.0.fn.to_{part}", y)[:, 16 * h : 16 * h + 16] for part in "qkv")
            pairs = neighbours(16) if h < 3 else halves(16)
            q, k = turn(q, turns, pairs), turn(k, turns, pairs)
            heads.append(attention(q, k, v) if h < 3 else windows(q, k, v, window))
        x = x + linear(w, f"{name}.0.fn.to_out", np.concatenate(heads, 1))
        hidden = gelu(linear(w, f"{name}.1.fn.fn.w1", norm(w, f"{name}.1.norm", x)))
        x = x + linear(w, f"{name}.1.fn.fn.w2", hidden)
    return softmax(linear(w, "ff_2", np.maximum(linear(w, "ff_1", x), 0)))[1:-1, 1]


def windows(q, k, v, width):
    """Each query sees the keys of its own window of places and of the two beside it."""
    own = np.arange(len(q)) // width
    return np.concatenate(
        [attention(q[i : i + 1], *(a[abs(own - own[i]) <= 1] for a in (k, v))) for i in range(len(q))]
    )


# -- XFeat ------------------------------------------------------------------------------------------------------------

BLOCKS = {
    "block1": [(1, 4, 3), (4, 8, 3), (8, 8, 3), (8, 24, 3)],
    "block2": [(24, 24, 3)] * 2,
    "block3": [(24, 64, 3), (64, 64, 3), (64, 64, 1)],
    "block4": [(64, 64, 3)] * 3,
    "block5": [(64, 128, 3), (128, 128, 3), (128, 128, 3), (128, 64, 1)],
    "block_fusion": [(64, 64, 3)] * 2,
    "heatmap_head": [(64, 64, 1)] * 2,
    "keypoint_head": [(64, 64, 1)] * 3,
}
SINGLE = {"skip1.1": (24, 1), "block_fusion.2": (64, 64), "heatmap_head.2": (1, 64), "keypoint_head.3": (65, 64)}


def xfeat_weights(seed=0):
    shapes = {}
    for name, layers in BLOCKS.items():
        for i, (n_in, n_out, size) in enumerate(layers):
            shapes[f"{name}.{i}.layer.0.weight"] = (n_out, n_in, size, size)
            shapes[f"{name}.{i}.layer.1.running_mean"] = shapes[f"{name}.{i}.layer.1.running_var"] = (n_out,)
    for name, (n_out, n_in) in SINGLE.items():
        shapes |= {f"{name}.weight": (n_out, n_in, 1, 1), f"{name}.bias": (n_out,)}
    return random_weights(shapes, seed)


def conv(x, weight, stride):
    """x (C, H, W) by weight (M, C, k, k), zeros around: a sum over the kernel's places."""
    k, (_, height, width) = weight.shape[2], x.shape
    x = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    return sum(
        np.einsum(
            "mc,chw->mhw", weight[:, :, i, j].astype(float), x[:, i : i + height : stride, j : j + width : stride]
        )
        for i in range(k)
        for j in range(k)
    )


def larger(x, times):
    """Bilinear between pixels' middles, the border repeated."""
    for axis in (1, 2):
        n = x.shape[axis]
        at = np.clip((np.arange(n * times) + 0.5) / times - 0.5, 0, n - 1)
        low = np.minimum(at.astype(int), n - 2) if n > 1 else np.zeros(n * times, int)
        part = np.expand_dims(at - low, [a for a in range(3) if a != axis])
        high = np.minimum(low + 1, n - 1)
        x = np.take(x, low, axis) * (1 - part) + np.take(x, high, axis) * part
    return x


def xfeat_maps(w, gray):
    """(features (64, H / 8, W / 8), reliability (H / 8, W / 8), heat (H, W)) of a gray image."""
    height, width = gray.shape
    x = ((gray - gray.mean()) / np.sqrt(gray.var() + 1e-5))[None]

    def single(x, name):
        return conv(x, w[f"{name}.weight"], 1) + w[f"{name}.bias"][:, None, None]

    def block(x, name, strides):
        for i, stride in enumerate(strides):
            layer = f"{name}.{i}.layer"
            mean, variance = (w[f"{layer}.1.running_{n}"][:, None, None].astype(float) for n in ("mean", "var"))
            x = np.maximum((conv(x, w[f"{layer}.0.weight"], stride) - mean) / np.sqrt(variance + 1e-5), 0)
        return x

    image = x
    quarter = image.reshape(1, height // 4, 4, width // 4, 4).mean((2, 4))
    x = block(block(image, "block1", (1, 2, 1, 2)) + single(quarter, "skip1.1"), "block2", (1, 1))
    x3 = block(x, "block3", (2, 1, 1))
    x4 = block(x3, "block4", (2, 1, 1))
    x5 = block(x4, "block5", (2, 1, 1, 1))
    features = single(block(x3 + larger(x4, 2) + larger(x5, 4), "block_fusion", (1, 1)), "block_fusion.2")
    reliability = single(block(features, "heatmap_head", (1, 1)), "heatmap_head.2")[0]
    cells = image.reshape(height // 8, 8, width // 8, 8).transpose(1, 3, 0, 2).reshape(64, height // 8, width // 8)
    chances = softmax(single(block(cells, "keypoint_head", (1, 1, 1)), "keypoint_head.3"), 0)[:64]
    heat = chances.reshape(8, 8, height // 8, width // 8).transpose(2, 0, 3, 1).reshape(height, width)
    return features / np.linalg.norm(features, axis=0), 1 / (1 + np.exp(-reliability)), heat
