"""Files torch.save wrote, against torch.load: bit for bit."""

import numpy as np
import pytest

from pyclattn.errors import ModelFormatError
from pyclattn.weights import load_weights, read_checkpoint

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

FLOATS = ("float16", "float32", "float64", "bfloat16")
EIGHT_BITS = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
NAMES = (
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", *FLOATS, *EIGHT_BITS,
    "complex32", "complex64", "complex128",
)  # fmt: skip
FORMS = [True, False]  # zip, legacy


def wanted(tensor):
    """The array a tensor should be: types NumPy lacks widened by torch."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.dtype == torch.complex32:
        return tensor.to(torch.complex64).numpy()
    name = str(tensor.dtype).split(".")[1]
    return (tensor.float() if name == "bfloat16" or name in EIGHT_BITS else tensor).numpy()


def same(found, tensors):
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        array = wanted(tensor)
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.fixture
def save(tmp_path):
    def write(value, is_zip=True):
        torch.save(value, tmp_path / "w.pt", _use_new_zipfile_serialization=is_zip)
        return tmp_path / "w.pt"

    return write


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("is_zip", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_every_type(save, name, is_zip):
    tensors = {"w": numbers(6, 5).to(getattr(torch, name)), "scalar": torch.tensor(3).to(getattr(torch, name))}
    same(load_weights(save(tensors, is_zip)), tensors)


@pytest.mark.parametrize("is_zip", FORMS)
@pytest.mark.parametrize("name", ["bfloat16", *EIGHT_BITS])
def test_every_bit_pattern(save, name, is_zip):
    bits = torch.arange(2**16 if name == "bfloat16" else 256).to(torch.uint16 if name == "bfloat16" else torch.uint8)
    tensors = {"w": bits.view(getattr(torch, name))}
    same(load_weights(save(tensors, is_zip)), tensors)


@pytest.mark.parametrize("is_zip", FORMS)
def test_layouts(save, is_zip):
    w = numbers(8, 6)
    tensors = {
        "w": w, "tied": w, "turned": w.t(), "part": w[1:7:2, ::3], "expanded": w[:1].expand(100, 6), "row": w[3],
        "parameter": torch.nn.Parameter(w.clone()), "last": numbers(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "empty": torch.zeros(0, 3), "none": torch.zeros(3, 0), "conj": torch.view_as_complex(numbers(3, 2)).conj(),
        "negative": torch.view_as_complex(numbers(3, 2)).conj().imag,
    }  # fmt: skip
    found = load_weights(save(tensors, is_zip))
    same(found, tensors)
    assert np.shares_memory(found["w"], found["tied"])
    assert np.shares_memory(found["w"], found["part"])


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.norm = torch.nn.BatchNorm1d(16)
        self.register_buffer("mask", torch.ones(3), persistent=False)


@pytest.mark.parametrize("is_zip", FORMS)
def test_training_checkpoints(save, is_zip):
    net = torch.nn.DataParallel(Net())
    optimizer = torch.optim.AdamW(net.parameters())
    optimizer.zero_grad()
    net.module.layer(numbers(1, 4, 16)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3, "global_step": 1000, "pytorch-lightning_version": "2.0.0", "state_dict": net.state_dict(),
        "optimizer_states": [optimizer.state_dict()], "loops": {"a": {"b": [1, 2]}}, "rng": torch.get_rng_state(),
        "hyper_parameters": {"device": torch.device("cpu"), "dtype": torch.float16, "shape": torch.Size([1, 2])},
    }  # fmt: skip
    path = save(checkpoint, is_zip)
    same(load_weights(path), dict(net.state_dict()))
    same(load_weights(path, strip="module."), dict(net.module.state_dict()))
    tree = read_checkpoint(path)
    assert tree["hyper_parameters"] == {"device": "cpu", "dtype": "torch.float16", "shape": (1, 2)}
    for index, state in optimizer.state_dict()["state"].items():
        same(tree["optimizer_states"][0]["state"][index], state)


@pytest.mark.parametrize("is_zip", FORMS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_modules_saved_whole(save, is_zip):
    net = Net()
    path = save(net, is_zip)
    with pytest.raises(ModelFormatError, match=r"\.Net"):
        load_weights(path)
    same(load_weights(path, objects="placeholder"), dict(net.state_dict()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    torch.jit.script(net).save(tmp_path / "w.pt")
    found = load_weights(tmp_path / "w.pt", objects="placeholder")
    assert set(found) == set(net.state_dict())
    for name, tensor in net.state_dict().items():
        assert found[name].tobytes() == tensor.numpy().tobytes()


@pytest.mark.parametrize("is_zip", FORMS)
def test_numpy_beside_tensors(save, is_zip):
    value = {"a": np.arange(6.0).reshape(2, 3), "n": np.float64(0.5), "w": numbers(3), "i": np.int64(3)}
    tree = read_checkpoint(save(value, is_zip))
    assert (tree["n"], type(tree["n"]), tree["i"]) == (0.5, np.float64, 3)
    np.testing.assert_array_equal(tree["a"], value["a"])


@pytest.mark.parametrize("is_zip", FORMS)
@pytest.mark.filterwarnings("ignore")
def test_tensors_no_array_can_hold(save, is_zip):
    for kind, tensor in {
        "quantised": torch.quantize_per_tensor(numbers(3, 2), 0.1, 0, torch.qint8),
        "sparse": numbers(3, 2).to_sparse(),
    }.items():
        path = save({"q": tensor, "w": numbers(2)}, is_zip)
        with pytest.raises(ModelFormatError, match=f"tensor 'q': a {kind}"):
            load_weights(path)
        assert list(load_weights(path, prefix="w")) == ["w"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_zip", FORMS)
def test_pickle_protocols(tmp_path, protocol, is_zip):
    tensors = {"w": numbers(3, 2), "b": numbers(300)}
    path = tmp_path / "w.pt"
    torch.save(tensors, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    same(load_weights(path), tensors)


def test_many_tensors(save):
    """Memo indices of more than a byte."""
    tensors = {f"layers.{i}.w": numbers(3) + i for i in range(2000)}
    same(load_weights(save(tensors)), tensors)
