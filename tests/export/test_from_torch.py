"""PyTorch modules as files: both exporters, open axes, what does not fit, the command."""

import inspect
import io
import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

import pyclattn
from pyclattn import layers
from pyclattn.errors import ArgumentError, ModelFormatError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from torch import nn  # noqa: E402

from pyclattn_export import cli, convert, from_torch, torch_layers  # noqa: E402
from pyclattn_export.state import load_state  # noqa: E402
from tests.export.everything import OPEN, D, everything, example  # noqa: E402

KINDS = {
    "cast_attention": 1, "clustered_attention": 1, "improved_clustered_attention": 1, "farthest_point_sampling": 1,
    "nearest_neighbors": 1, "random_positions": 1, "mean_pool_tokens": 2,  # of tokens, and of which are there
    "centroid_attention": 4,  # two steps of the pooled ones
}  # fmt: skip


def kinds(path):
    own = {name for name, _ in inspect.getmembers(torch_layers, inspect.isfunction)} | {"random_positions"}
    found = [op.kind.removeprefix("pyclattn:") for op in pyclattn.load(path).program.ops]
    return [kind for kind in found if kind in own]


@pytest.mark.parametrize("exporter", ["dynamo", "script"])
def test_every_operator_at_another_size(exporter, tmp_path):
    module, path = everything().train(), tmp_path / "m.safetensors"
    done = from_torch(module, example(), path, dynamic=dict.fromkeys(example(), OPEN), exporter=exporter)
    assert done.comparison.passed, done.comparison
    assert {difference.shape for difference in done.comparison.differences} == {
        (2, 7), (2, 26, D), (1, 7), (1, 25, D),
    }  # fmt: skip
    assert len(done.report.attentions) == 1
    assert module.training
    assert module.encoder.layers[0].training
    assert Counter(kinds(path)) == KINDS
    model = pyclattn.load(path, n_threads=1)
    assert next((entry.name, entry.shape) for entry in model.get_inputs()) == ("x", ["batch", "length", 5])
    given = example(3, 61, seed=1)
    found = model(**given)
    with torch.no_grad():
        wanted = module.eval()(**{name: torch.from_numpy(x) for name, x in given.items()})
    for name, x in wanted.items():
        np.testing.assert_allclose(found[name], x.numpy(), atol=1e-5)


def test_in_a_network_exported_by_its_owner(tmp_path):
    """torch.onnx.export as anybody calls it, then `convert`."""
    given = [torch.from_numpy(x) for x in list(example().values())[:2]]
    module = everything().eval()
    torch.onnx.export(module, tuple(given), tmp_path / "m.onnx", dynamo=True, verbose=False)
    convert(tmp_path / "m.onnx", tmp_path / "m.safetensors")
    found = pyclattn.load(tmp_path / "m.safetensors")(x=given[0].numpy(), places=given[1].numpy())
    with torch.no_grad():
        np.testing.assert_allclose(next(iter(found.values())), module(*given)["logits"].numpy(), atol=1e-5)


def test_attributes_are_the_functions_arguments():
    """A node carries every argument that is no tensor and is not None, and its absent inputs as empty names."""
    file = io.BytesIO()
    given = torch.randn(2, 9, D), torch.zeros(2, 9, dtype=torch.bool)

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch_layers.CentroidAttention(D, 2, 3, init="random", normalize="inputs", scale=0.5)

        def forward(self, x, mask):
            return self.layer(x, key_padding_mask=mask)

    torch.onnx.export(Masked().eval(), given, file, dynamo=False, verbose=False)
    nodes = [n for n in onnx.load_from_string(file.getvalue()).graph.node if n.domain == "pyclattn"]
    found = {n.op_type: {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute} for n in nodes}
    assert found == {
        "random_positions": {"n_centroids": 3, "seed": 0},
        "centroid_attention": {"normalize": b"inputs", "scale": 0.5},
    }
    assert nodes[-1].input[3] == ""
    assert len(nodes[-1].input) == 6


@pytest.mark.parametrize("exporter", ["dynamo", "script"])
def test_arguments_by_keyword_only_and_numbers_of_numpy(exporter, tmp_path):
    given = {"x": torch.randn(2, 16, D), "key_padding_mask": torch.arange(16)[None] >= torch.tensor([[16], [4]])}
    layer = torch_layers.CentroidAttention(D, 2, np.int64(4), init="mean_pool", grid=[4, 4], scale=np.float64(0.5))
    assert from_torch(layer, given, tmp_path / "m.safetensors", exporter=exporter).comparison.passed


@pytest.mark.parametrize("exporter", ["dynamo", "script"])
def test_fewer_points_than_neighbors(exporter, tmp_path):
    layer, path = torch_layers.CentroidAttention(D, 2, 3, n_neighbors=8).eval(), tmp_path / "m.safetensors"
    given = {"x": torch.randn(2, 9, D), "coordinates": torch.randn(2, 9, 3)}
    assert from_torch(layer, given, path, dynamic=dict.fromkeys(given, OPEN), exporter=exporter).comparison.passed
    few = {name: x[:, :5] for name, x in given.items()}
    with torch.no_grad():
        found = pyclattn.load(path)(**{name: x.numpy() for name, x in few.items()})["output"]
        np.testing.assert_allclose(found, layer(**few).numpy(), atol=1e-5)


class Quartered(nn.Module):
    def forward(self, x):
        return torch_layers.mean_pool_tokens(x, x.shape[1] // 4)


@pytest.mark.parametrize("exporter", ["dynamo", "script"])
def test_a_number_made_of_a_length_is_refused(exporter, tmp_path):
    """torch's last resort, export with strict=True, would write the function's arithmetic down, for one length."""
    with pytest.raises(ModelFormatError, match=r"\): n_centroids of mean_pool_tokens must be a number"):
        from_torch(Quartered(), [torch.zeros(2, 40, D)], tmp_path / "m.safetensors", dynamic={"x": OPEN},
                   exporter=exporter)  # fmt: skip
    if exporter == "dynamo":  # where the length is not open it is a number
        assert from_torch(Quartered(), [torch.randn(2, 40, D)], tmp_path / "m.safetensors").comparison.passed
    with pytest.raises(Exception, match="mean_pool_tokens cannot be exported"):
        torch.export.export(Quartered(), (torch.zeros(2, 40, D),), strict=True)


class Fixed(nn.Module):
    """A length written into the model."""

    def forward(self, x):
        return x.reshape(-1, 6).sum(1).reshape(2, -1)


def test_a_length_written_into_the_model_is_seen(tmp_path):
    with pytest.raises(ModelFormatError, match="one shorter"):
        from_torch(Fixed(), [torch.zeros(2, 12)], tmp_path / "m.safetensors", dynamic={"x": (1,)}, exporter="script")


def test_golden_names_and_a_difference(tmp_path):
    golden, path = tmp_path / "golden.npz", tmp_path / "m.safetensors"
    module = nn.Linear(4, 3)
    done = from_torch(module, {"input": np.ones((2, 4), np.float32)}, path, golden=golden, output_names=["logits"])
    assert done.comparison.passed
    with np.load(golden) as file:
        found = pyclattn.load(path)(input=file["input.input"])["logits"]
        np.testing.assert_allclose(found, file["output.logits"], atol=1e-6)
    from pyclattn_export.torch_modules import compare

    with torch.no_grad():
        module.weight += 0.1
        assert not compare(module, {"input": torch.ones(2, 4)}, {}, path, 1).passed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"example_inputs": {"y": torch.zeros(2, 4)}}, "arguments of Linear.forward"),
        ({"example_inputs": [3]}, "tensors or arrays, got input = int"),
        ({"dynamic": {"z": (0,)}}, "no input: z; the inputs are input"),
        ({"dynamic": {"input": (2,)}}, "axis 2 of 'input' is out of range"),
        ({"output_names": ["a", "b"]}, "has 1 outputs"),
        ({"exporter": "trace"}, "exporter must be one of dynamo, script"),
        ({"module": None}, "module must be a torch.nn.Module, got NoneType"),
        ({"example_inputs": [torch.zeros(2, 5)]}, r"Linear does not run on input \(2, 5\) torch.float32: "),
        ({"example_inputs": [torch.zeros(2, 4).bfloat16()], "module": nn.Linear(4, 3).bfloat16()}, "is bfloat16"),
    ],
)
def test_arguments(change, message, tmp_path):
    given = {"example_inputs": [torch.zeros(2, 4)], "path": tmp_path / "m.safetensors", **change}
    with pytest.raises(ArgumentError, match=message):
        from_torch(**{"module": nn.Linear(4, 3), **given})
    assert not list(tmp_path.iterdir())


class Refused(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x)


def test_what_torch_cannot_export(tmp_path):
    with pytest.raises(ModelFormatError, match="torch cannot export Refused"):
        from_torch(Refused(), [torch.zeros(2, 4)], tmp_path / "m.safetensors")


def test_one_error_for_all_weights(tmp_path):
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    torch.save({"weight": torch.ones(2, 4), "scale": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(ModelFormatError) as error:
        load_state(module, tmp_path / "w.pt")
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        "missing: bias (2,)",
        "unexpected: scale (2,)",
        "wrong shape: weight must be (2, 3), got (2, 4)",
    ]
    assert torch.equal(module.weight, before)


def test_tied_weights_are_wanted_once():
    """As safetensors keeps them: by one of their names."""
    module = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    module["head"].weight = module["embed"].weight
    load_state(module, {"embed.weight": torch.ones(5, 3)})
    assert (module["head"].weight == 1).all()
    module["head"].weight = nn.Parameter(torch.zeros(5, 3))
    with pytest.raises(ModelFormatError, match=r"missing: head\.weight"):
        load_state(module, {"embed.weight": torch.ones(5, 3)})


BUILD = """
import numpy as np
from torch import nn
from pyclattn_export.torch_layers import CASTAttention

def build():
    return nn.Sequential(nn.Linear(5, 16), CASTAttention(16, 2, 3, cluster_size=8))

def with_sample():
    return build(), {"input": np.ones((2, 20, 5), np.float32)}
"""


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(BUILD)
    names = {}
    exec(BUILD, names)
    torch.manual_seed(3)
    module = names["build"]()
    torch.save(module.state_dict(), "w.pt")
    x = np.random.default_rng(0).standard_normal((2, 20, 5), dtype=np.float32)
    np.savez("sample.npz", input=x)
    more = ["--weights", "w.pt", "-o", "m.safetensors", "--dynamic", "input:0=batch,1=length"]
    assert cli.main(["torch", "net.py:build", "--sample", "sample.npz", "--golden", "g.npz", *more]) == 0
    assert "within 0.0001 of the range" in capsys.readouterr().out
    with torch.no_grad():
        wanted = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(pyclattn.load("m.safetensors")(input=x)["output"], wanted, atol=1e-5)
    assert cli.main(["torch", "net.py:with_sample", *more]) == 0
    for given, message in (
        (["net.py:build"], "--sample is needed"),
        (["net.py"], "given as file.py:function"),
        (["net.py:other"], "no function 'other'"),
        (["net.py:with_sample", "--dynamic", "input=1"], "--dynamic is given as"),
    ):
        assert cli.main(["torch", *given, "-o", "m.safetensors"]) == 1
        assert message in capsys.readouterr().err


def fast_transformers_state(dim=24, n_heads=4, head_dim=5, hidden=40, n_layers=2, seed=0):
    """The tensors of its encoder, by the names its modules give them."""
    rng, sizes = np.random.default_rng(seed), {"linear1": (hidden, dim), "linear2": (dim, hidden)}
    sizes |= {f"attention.{n}_projection": (n_heads * head_dim, dim) for n in ("query", "key")}
    sizes |= {f"attention.{n}_projection": (dim, dim) for n in ("value", "out")}
    found = {}
    for i in range(n_layers):
        for name, (n_out, n_in) in sizes.items():
            found[f"layers.{i}.{name}.weight"] = rng.standard_normal((n_out, n_in)) / n_in**0.5
            found[f"layers.{i}.{name}.bias"] = rng.standard_normal(n_out) / 9
        for name in ("norm1", "norm2"):
            found |= {f"layers.{i}.{name}.weight": 1 + rng.random(dim), f"layers.{i}.{name}.bias": rng.random(dim)}
    found |= {"norm.weight": 1 + rng.random(dim), "norm.bias": rng.random(dim)}
    return {name: array.astype(np.float32) for name, array in found.items()}


def fast_transformers_full(state, x, n_heads):
    """Its post-norm encoder with full attention, from its definition."""
    w = {name: torch.from_numpy(array) for name, array in state.items()}
    linear = lambda name, x: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    norm = lambda name, x: nn.functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])
    for i in range(2):
        at = f"layers.{i}"
        q, k, v = (
            linear(f"{at}.attention.{n}_projection", x).view(*x.shape[:2], n_heads, -1)
            for n in ("query", "key", "value")
        )
        weights = torch.softmax(torch.einsum("nlhe,nshe->nhls", q, k) / q.shape[-1] ** 0.5, -1)
        mixed = torch.einsum("nhls,nshd->nlhd", weights, v).reshape(*x.shape[:2], -1)
        x = norm(f"{at}.norm1", x + linear(f"{at}.attention.out_projection", mixed))
        x = norm(f"{at}.norm2", x + linear(f"{at}.linear2", torch.relu(linear(f"{at}.linear1", x))))
    return norm("norm", x)


@pytest.mark.parametrize("attention_type", ["full", "clustered", "improved-clustered"])
def test_fast_transformers(attention_type, tmp_path):
    """The layers, the twin and the file made of it; with every key among the top ones all are full attention."""
    state, x = fast_transformers_state(), np.random.default_rng(1).standard_normal((2, 30, 24), dtype=np.float32)
    how = {"n_heads": 4, "attention_type": attention_type, "clusters": 6, "topk": 30, "bits": 31}
    tensors = {f"net.{name}": torch.from_numpy(array) for name, array in state.items()} | {"head": torch.ones(2)}
    twin = torch_layers.fast_transformers_encoder(tensors, "net", **how).eval()
    found = layers.fast_transformers_encoder(state, **how)(x)
    with torch.no_grad():
        np.testing.assert_allclose(found, twin(torch.from_numpy(x)).numpy(), atol=2e-5)
    if attention_type == "improved-clustered":
        assert from_torch(twin, [x], tmp_path / "m.safetensors", dynamic={"x": OPEN}).comparison.passed
        np.testing.assert_allclose(found, pyclattn.load(tmp_path / "m.safetensors")(x=x)["output"], atol=2e-5)
    full = fast_transformers_full(state, torch.from_numpy(x), 4).numpy()
    assert (np.abs(found - full).max() < 2e-5) == (attention_type != "clustered")


def test_fast_transformers_that_do_not_fit():
    state = fast_transformers_state()
    del state["layers.1.norm1.bias"]
    state |= {"layers.0.linear2.weight": np.ones((3, 3), np.float32), "extra": np.ones(1, np.float32)}
    for make, given in (
        (layers.fast_transformers_encoder, state),
        (torch_layers.fast_transformers_encoder, {name: torch.from_numpy(x) for name, x in state.items()}),
    ):
        with pytest.raises(ModelFormatError) as error:
            make(given, n_heads=4)
        for what in ("missing: layers.1.norm1.bias", "unexpected: extra", "wrong shape: layers.0.linear2.weight"):
            assert what in str(error.value)
    with pytest.raises(ArgumentError, match=r"layers\.0"):
        layers.fast_transformers_encoder({"a": np.ones(1)}, n_heads=4)
    with pytest.raises(ArgumentError, match="attention_type"):
        layers.fast_transformers_encoder(state, n_heads=4, attention_type="linear")


def test_the_page_on_training(tmp_path, monkeypatch):
    """The fragments of docs/training.md, one after the other; they need torch, so `test_docs` only compiles them."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    names = {"__name__": "page"}
    blocks = re.findall(r"^```py\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 3
    for block in blocks:
        exec(compile(block, "docs/training.md", "exec"), names)


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(D, 2, 2 * D, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x, mask):
        return self.encoder(x, src_key_padding_mask=~mask)


def test_torchs_own_encoder_is_compared_at_padding_too(tmp_path):
    """Its fast path, which is not exported, gives zeros there."""
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:] = False
    given = {"x": torch.randn(2, 9, D), "mask": mask}
    before = torch.backends.mha.get_fastpath_enabled()
    done = from_torch(Padded(), given, tmp_path / "m.safetensors", dynamic={"x": (0, 1), "mask": (0, 1)})
    assert done.comparison.passed, done.comparison
    assert [attention.mask for attention in done.report.attentions] == ["key padding"] * 2
    assert torch.backends.mha.get_fastpath_enabled() is before


@pytest.mark.parametrize("exporter", ["dynamo", "script"])
def test_torchs_causal_attention_is_found(exporter, tmp_path):
    class Causal(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    given = {"x": torch.randn(2, 3, 9, D)}
    done = from_torch(Causal(), given, tmp_path / "m.safetensors", dynamic={"x": (0, 2)}, exporter=exporter)
    assert done.comparison.passed, done.comparison
    assert [attention.mask for attention in done.report.attentions] == ["causal"]
