"""XFeat (Potje et al., CVPR 2024): keypoints of an image and what they look like.

The network is a `Program` of convolutions that `pyclattn.Model` runs; batch norms are folded into them here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pyclattn.graph.passes import optimize
from pyclattn.graph.program import Op, Program, Value
from pyclattn.model import Model

# The network halves an image five times.
MULTIPLE = 32
# A cell of 8 x 8 pixels has 64 places for a keypoint; the 65th stands for none.
CELL = 8
THRESHOLD = 0.05
EPSILON = 1e-5


@dataclass(frozen=True)
class Features:
    """What is known of an image: places (N, 2) as x, y in pixels; descriptors (N, 64) of length 1; (width, height)."""

    keypoints: np.ndarray
    descriptors: np.ndarray
    size: tuple[int, int]


class XFeat:
    """The extractor.

    Parameters
    ----------
    weights : mapping of str to array
        Of `xfeat.pt`.
    n_threads : int, optional
    """

    def __init__(self, weights: Mapping[str, np.ndarray], n_threads: int | None = None):
        self._network = Model(optimize(network(weights))[0], n_threads=n_threads)
        self._samplers = {mode: Model(_sampler(mode), n_threads=n_threads) for mode in ("linear", "cubic")}

    def __call__(self, image: np.ndarray, n_keypoints: int) -> Features:
        """The best keypoints of an image (height, width), or (height, width, 3), both multiples of 32."""
        if image.ndim not in (2, 3) or any(n % MULTIPLE or not n for n in image.shape[:2]):
            raise ValueError(f"image must be (height, width) of multiples of {MULTIPLE}, got {image.shape}")
        gray = image.astype(np.float32) if image.ndim == 2 else image.mean(-1, dtype=np.float32)
        maps = self._network(image=gray[None, None])
        heat = maps["heat"][0, 0]
        y, x = np.nonzero((heat == maps["highest"][0, 0]) & (heat > THRESHOLD))
        places = np.stack([x, y], 1).astype(np.float32)
        height, width = heat.shape
        grid = (2 * places / np.float32([width - 1, height - 1]) - 1)[None, None]
        score = heat[y, x] * self._sample("linear", maps["reliability"], grid)[:, 0]
        best = np.argsort(-score, kind="stable")[:n_keypoints]
        descriptors = self._sample("cubic", maps["features"], grid[:, :, best])
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
        return Features(places[best], descriptors, (width, height))

    def _sample(self, mode: str, values: np.ndarray, grid: np.ndarray) -> np.ndarray:
        """A map's values (N, channels) at places (1, 1, N, 2) from -1 to 1."""
        return self._samplers[mode](values=values, grid=grid)["sampled"][0, :, 0].T.copy()


def network(weights: Mapping[str, np.ndarray]) -> Program:
    """From a gray image to features, reliability, and heat with its highest of 5 x 5 neighbours."""
    net = _Net(weights)
    image = net.add("InstanceNormalization", "image", net.constant([1]), net.constant([0]), epsilon=EPSILON)
    skip = net.conv(net.add("AveragePool", image, kernel_shape=[4, 4], strides=[4, 4]), "skip1.1")
    x = net.block(image, "block1", strides=(1, 2, 1, 2))
    x = net.block(net.add("Add", x, skip), "block2", strides=(1, 1))
    x3 = net.block(x, "block3", strides=(2, 1, 1))
    x4 = net.block(x3, "block4", strides=(2, 1, 1))
    x5 = net.block(x4, "block5", strides=(2, 1, 1, 1))
    pyramid = net.add("Add", net.add("Add", x3, net.larger(x4, 2)), net.larger(x5, 4))
    features = net.conv(net.block(pyramid, "block_fusion", strides=(1, 1)), "block_fusion.2")
    reliability = net.conv(net.block(features, "heatmap_head", strides=(1, 1)), "heatmap_head.2")
    cells = net.add("SpaceToDepth", image, blocksize=CELL)
    cells = net.conv(net.block(cells, "keypoint_head", strides=(1, 1, 1)), "keypoint_head.3")
    places = [net.constant([n], np.int64) for n in (0, CELL * CELL, 1)]
    chances = net.add("Slice", net.add("Softmax", cells, axis=1), *places)
    net.add("DepthToSpace", chances, blocksize=CELL, output="heat")
    net.add("MaxPool", "heat", kernel_shape=[5, 5], strides=[1, 1], pads=[2, 2, 2, 2], output="highest")
    net.add("LpNormalization", features, axis=1, p=2, output="features")
    net.add("Sigmoid", reliability, output="reliability")
    return net.program("heat", "highest", "features", "reliability")


class _Net:
    """A program in the making; a value is its name."""

    def __init__(self, weights: Mapping[str, np.ndarray]):
        self.weights, self.ops = weights, []
        self.constants: dict[str, np.ndarray] = {}

    def add(self, kind: str, *inputs: str, output: str = "", **attributes) -> str:
        name = output or f"{kind.lower()}_{len(self.ops)}"
        self.ops.append(Op(kind, inputs, (name,), attributes, name))
        return name

    def constant(self, values, dtype=np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(values, dtype)
        return name

    def conv(self, x: str, name: str, stride: int = 1) -> str:
        """A convolution with its bias, as it stands in the file."""
        return self._conv(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], stride)

    def block(self, x: str, name: str, strides: tuple[int, ...]) -> str:
        """Convolution, batch norm without factors, ReLU: once for each stride."""
        for i, stride in enumerate(strides):
            layer = f"{name}.{i}.layer"
            factor = 1 / np.sqrt(self.weights[f"{layer}.1.running_var"] + np.float32(EPSILON))
            weight = self.weights[f"{layer}.0.weight"] * factor[:, None, None, None]
            x = self.add("Relu", self._conv(x, weight, -self.weights[f"{layer}.1.running_mean"] * factor, stride))
        return x

    def _conv(self, x: str, weight: np.ndarray, bias: np.ndarray, stride: int) -> str:
        pad = weight.shape[2] // 2
        return self.add("Conv", x, self.constant(weight), self.constant(bias), strides=[stride] * 2, pads=[pad] * 4)

    def larger(self, x: str, times: int) -> str:
        """Bilinear, pixels as areas."""
        return self.add("Resize", x, "", self.constant([1, 1, times, times]), mode="linear")

    def program(self, *outputs: str) -> Program:
        image = Value("image", "float32", (1, 1, "height", "width"))
        shown = [Value(name, "float32", (1, "channels", "rows", "columns")) for name in outputs]
        program = Program([image], shown, self.ops, self.constants)
        program.validate()
        return program


def _sampler(mode: str) -> Program:
    """A map's values between its pixels."""
    values, grid = Value("values", "float32", (1, "c", "h", "w")), Value("grid", "float32", (1, 1, "n", 2))
    sampled = Value("sampled", "float32", (1, "c", 1, "n"))
    return Program([values, grid], [sampled], [Op("GridSample", ("values", "grid"), ("sampled",), {"mode": mode})])
