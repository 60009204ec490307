"""Folders of every kind of model, beside the models written out in NumPy loops; and folders that are wrong."""

import json

import numpy as np
import pytest

import pyclattn
from pyclattn.errors import ArgumentError, ModelFormatError, ShapeError
from pyclattn.huggingface import names, read_folder
from pyclattn.layers.weights import renamed
from pyclattn.weights import write_safetensors
from tests.layers import naive
from tests.layers.weights import encoder, encoder_layer, linear, norm, random

WIDTH, HIDDEN, HEADS = 16, 24, 2
SIZES = {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": HEADS}
CONFIGS = {
    "bert": {"model_type": "bert", **SIZES},
    "roberta": {"model_type": "roberta", "pad_token_id": 1, "layer_norm_eps": 1e-5, **SIZES},
    "distilbert": {"model_type": "distilbert", "dim": WIDTH, "hidden_dim": HIDDEN, "n_layers": 2, "n_heads": HEADS},
    "albert": {
        "model_type": "albert",
        "hidden_act": "gelu_new",
        "num_hidden_groups": 2,
        **SIZES,
        "num_hidden_layers": 4,
    },
    "vit": {"model_type": "vit", "image_size": [8, 12], "patch_size": 4, "num_channels": 2, **SIZES},
    "deit": {"model_type": "deit", "image_size": 8, "patch_size": [4, 2], **SIZES},
}
RULES = {"bert": names.BERT, "roberta": names.BERT, "distilbert": names.DISTILBERT, "albert": names.ALBERT}


def tensors_of(kind):
    """Random weights of a small model, by our names."""
    if kind in ("vit", "deit"):
        patch, n_tokens, n_patches = ((2, 4, 4), 1, 6) if kind == "vit" else ((3, 4, 2), 2, 8)
        found = {f"encoder.{n}": a for n, a in (encoder() | norm("norm", WIDTH, 7)).items()}
        found |= {
            "patches.weight": random(WIDTH, *patch) / 5,
            "patches.bias": random(WIDTH),
            "cls_token": random(1, 1, WIDTH),
        }
        if kind == "deit":
            found["distillation_token"] = random(1, 1, WIDTH, seed=1)
        return found | {"positions": random(1, n_patches + n_tokens, WIDTH)} | linear("pooler", 10, WIDTH)
    narrow = 6 if kind == "albert" else WIDTH
    found = {"words.weight": random(30, narrow), "positions.weight": random(12, narrow)} | norm(
        "embedding_norm", narrow
    )
    if kind != "distilbert":
        found |= {"types.weight": random(1 if kind == "roberta" else 2, narrow)} | linear("pooler", WIDTH, WIDTH)
    if kind != "albert":
        return found | {f"encoder.{n}": a for n, a in encoder().items()}
    for group in range(2):
        found |= {f"groups.{group}.0.{n}": a for n, a in encoder_layer(seed=50 * group).items()}
    return found | linear("widening", WIDTH, narrow)


def write(folder, kind, prefix="", config=None, tensors=None, more=None):
    """A folder as transformers would save it."""
    rules = RULES.get(kind, names.VIT)
    own = {prefix + renamed(n, rules): a for n, a in (tensors or tensors_of(kind)).items()}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or CONFIGS[kind]))
    write_safetensors(folder / "model.safetensors", own | (more or {}))
    return folder


def text_expected(kind, w, ids, types):
    """One sequence without padding: (hidden, pooled)."""
    epsilon = 1e-5 if kind == "roberta" else 1e-12
    first = 2 if kind == "roberta" else 0
    rows = [w["words.weight"][n] + w["positions.weight"][first + i] for i, n in enumerate(ids)]
    x = np.array(rows, np.float64)
    if "types.weight" in w:
        x += w["types.weight"][types]
    x = naive.layer_norm(x, w["embedding_norm.weight"], w["embedding_norm.bias"], epsilon)
    places = [f"encoder.layers.{i}." for i in range(2)]
    if kind == "albert":
        x = naive.linear(x, w["widening.weight"], w["widening.bias"])
        places = ["groups.0.0.", "groups.0.0.", "groups.1.0.", "groups.1.0."]
    for place in places:
        own = {n.removeprefix(place): a for n, a in w.items() if n.startswith(place)}
        x = naive.encoder_layer(x, own, HEADS, "gelu_tanh" if kind == "albert" else "gelu", epsilon, False)
    return x, pooled(w, x)


def pooled(w, x):
    return np.tanh(naive.linear(x[:1], w["pooler.weight"], w["pooler.bias"]))[0] if "pooler.weight" in w else None


@pytest.mark.parametrize("kind", RULES)
def test_text(tmp_path, kind):
    weights = tensors_of(kind)
    model = pyclattn.load(write(tmp_path / "m", kind, tensors=weights), n_threads=2)
    ids, lengths = np.random.default_rng(0).integers(2, 30, (3, 9)), [9, 5, 1]
    mask = (np.arange(9) < np.array(lengths)[:, None]).astype(np.int64)
    ids[mask == 0] = 1
    types = np.random.default_rng(1).integers(0, 1 if kind == "roberta" else 2, (3, 9))
    feeds = {"input_ids": ids, "attention_mask": mask}
    if kind in ("bert", "albert"):
        feeds["token_type_ids"] = types
    assert [i.name for i in model.get_inputs()] == list(feeds)
    found = model(**feeds)
    assert set(found) == {"last_hidden_state"} | ({"pooler_output"} if "pooler.weight" in weights else set())
    assert [o.shape for o in model.get_outputs()] == [["batch", "length", WIDTH], ["batch", WIDTH]][: len(found)]
    for b, n in enumerate(lengths):
        hidden, pool = text_expected(kind, weights, ids[b, :n], types[b, :n])
        np.testing.assert_allclose(found["last_hidden_state"][b, :n], hidden, atol=3e-5)
        if pool is not None:
            np.testing.assert_allclose(found["pooler_output"][b], pool, atol=3e-5)


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_images(tmp_path, kind):
    w = tensors_of(kind)
    model = pyclattn.load(write(tmp_path / "m", kind, tensors=w))
    (_, channels, height, width), (high, wide) = model.get_inputs()[0].shape, w["patches.weight"].shape[2:]
    pixels, kernels = random(2, channels, height, width), w["patches.weight"].astype(np.float64)
    found = model(pixel_values=pixels)
    for b in range(2):
        rows = [
            [np.sum(pixels[b, :, i : i + high, j : j + wide] * kernel) for kernel in kernels]
            for i in range(0, height, high)
            for j in range(0, width, wide)
        ]
        tokens = [w[n][0] for n in ("cls_token", "distillation_token") if n in w]
        x = np.concatenate([*tokens, np.array(rows) + w["patches.bias"]]) + w["positions"][0]
        for i in range(2):
            place = f"encoder.layers.{i}."
            own = {n.removeprefix(place): a for n, a in w.items() if n.startswith(place)}
            x = naive.encoder_layer(x, own, HEADS, "gelu", 1e-12, True)
        x = naive.layer_norm(x, w["encoder.norm.weight"], w["encoder.norm.bias"], 1e-12)
        np.testing.assert_allclose(found["last_hidden_state"][b], x, atol=3e-5)
        np.testing.assert_allclose(found["pooler_output"][b], pooled(w, x), atol=3e-5)


@pytest.fixture
def ids():
    return np.random.default_rng(0).integers(2, 30, (2, 9))


def test_what_may_be_left_out(tmp_path, ids):
    """As in transformers: no mask is no padding, no types are type 0; in a saved model too."""
    model = pyclattn.load(write(tmp_path / "m", "bert"))
    full = model(input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
    np.testing.assert_array_equal(model(input_ids=ids)["last_hidden_state"], full["last_hidden_state"])
    assert model.estimate(input_ids=(2, 9)) > model.weight_bytes
    model.save(tmp_path / "saved.safetensors")
    again = pyclattn.load(tmp_path / "saved.safetensors")
    np.testing.assert_array_equal(again(input_ids=ids)["pooler_output"], full["pooler_output"])
    with pytest.raises(ArgumentError, match="input_ids"):
        model(attention_mask=np.ones_like(ids))


def test_the_face_of_a_model(tmp_path, ids):
    model = pyclattn.load(write(tmp_path / "m", "albert"), attention={"layers.3.attention": "clustered"})
    assert model.attentions == [f"layers.{i}.attention" for i in range(4)]
    assert [a["method"] for a in model.describe_attentions()] == ["exact"] * 3 + ["clustered"]
    (pool,) = model.run(["pooler_output"], {"input_ids": ids})
    assert pool.shape == (2, WIDTH)
    with pytest.raises(MemoryError):
        pyclattn.load(tmp_path / "m", max_memory=1000)


def test_shared_layers_are_held_once(tmp_path):
    program = read_folder(write(tmp_path / "m", "albert"))
    tensors = tensors_of("albert")
    assert sum(a.ndim == 2 for a in program.constants.values()) == sum(a.ndim == 2 for a in tensors.values())


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_beside_a_head(tmp_path, kind):
    """The encoder of a classifier: its tensors stand under the kind's name, the head's beside it."""
    inputs = pyclattn.load(write(tmp_path / "plain", kind)).get_inputs()
    feeds = {i.name: _feed(i) for i in inputs}
    head = {"classifier.weight": random(3, WIDTH), "cls.predictions.bias": random(3)}
    other = write(tmp_path / "head", kind, prefix=f"{kind}.", more=head)
    for name, array in pyclattn.load(tmp_path / "plain")(**feeds).items():
        np.testing.assert_array_equal(pyclattn.load(other)(**feeds)[name], array)


def _feed(arg):
    shape = [n if isinstance(n, int) else 4 for n in arg.shape]
    return random(*shape) if arg.name == "pixel_values" else np.ones(shape, np.int64)


def test_old_names_and_buffers(tmp_path, ids):
    tensors = tensors_of("bert")
    folder = write(tmp_path / "m", "bert", tensors=tensors, more={"embeddings.position_ids": np.arange(12)[None]})
    expected = pyclattn.load(folder)(input_ids=ids)
    old = {
        renamed(n, names.BERT)
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta"): a
        for n, a in tensors.items()
    }
    write_safetensors(folder / "model.safetensors", old)
    np.testing.assert_array_equal(pyclattn.load(folder)(input_ids=ids)["pooler_output"], expected["pooler_output"])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types_become_float32(tmp_path, ids, dtype):
    tensors = {n: a.astype(np.float16) for n, a in tensors_of("bert").items()}
    found = pyclattn.load(write(tmp_path / "m", "bert", tensors={n: a.astype(dtype) for n, a in tensors.items()}))
    expected = pyclattn.load(
        write(tmp_path / "n", "bert", tensors={n: a.astype(np.float32) for n, a in tensors.items()})
    )
    for name, array in found(input_ids=ids).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected(input_ids=ids)[name])


def test_sharded(tmp_path, ids):
    folder = write(tmp_path / "m", "bert")
    expected = pyclattn.load(folder)(input_ids=ids)["last_hidden_state"]
    tensors = {renamed(n, names.BERT): a for n, a in tensors_of("bert").items()}
    (folder / "model.safetensors").unlink()
    order, where = sorted(tensors), {}
    for i, part in enumerate((order[::2], order[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        write_safetensors(folder / file, {n: tensors[n] for n in part})
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    np.testing.assert_array_equal(pyclattn.load(folder)(input_ids=ids)["last_hidden_state"], expected)


def test_longer_than_the_position_table(tmp_path):
    model = pyclattn.load(write(tmp_path / "m", "bert"))
    with pytest.raises(ShapeError, match="12"):
        model(input_ids=np.ones((1, 13), np.int64))


def test_all_tensors_that_do_not_fit_are_listed(tmp_path):
    tensors = tensors_of("bert")
    del tensors["encoder.layers.1.attention.key.bias"], tensors["words.weight"]
    tensors["pooler.weight"] = random(WIDTH, 3)
    folder = write(tmp_path / "m", "bert", tensors=tensors, more={"encoder.layer.2.output.dense.bias": random(4)})
    with pytest.raises(ModelFormatError) as found:
        pyclattn.load(folder)
    for line in (
        "missing: encoder.layer.1.attention.self.key.bias",
        "missing: embeddings.word_embeddings.weight",
        "unexpected: encoder.layer.2.output.dense.bias (4,)",
        "wrong shape: pooler.dense.weight",
        str(folder),
    ):
        assert line in str(found.value)


BROKEN = {
    "another kind": ({"model_type": "gpt2"}, ("gpt2", "distilbert", "vit")),
    "no kind": ({"model_type": None}, ("None", "bert")),
    "kind of another type": ({"model_type": ["bert"]}, ("bert",)),
    "missing keys": ({"hidden_size": None, "num_attention_heads": None}, ("hidden_size, num_attention_heads",)),
    "relative positions": ({"position_embedding_type": "relative_key"}, ("relative_key", "'absolute'")),
    "a decoder": ({"is_decoder": True}, ("is_decoder",)),
    "activation": ({"hidden_act": "mish"}, ("mish", "gelu_new")),
    "text for a number": ({"num_hidden_layers": "2"}, ("num_hidden_layers", "'2'")),
    "too many layers": ({"num_hidden_layers": 10**9}, ("num_hidden_layers", "1000")),
    "a negative number": ({"num_attention_heads": -1}, ("num_attention_heads", "-1")),
    "epsilon": ({"layer_norm_eps": "small"}, ("layer_norm_eps", "small")),
    "width": ({"hidden_size": 32}, ("word_embeddings.weight", "32")),
    "heads": ({"num_attention_heads": 5}, ("16", "5")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_settings_that_cannot_be(tmp_path, case):
    changes, words = BROKEN[case]
    folder = write(tmp_path / "m", "bert", config={**CONFIGS["bert"], **changes})
    with pytest.raises((ModelFormatError, ArgumentError)) as found:
        pyclattn.load(folder)
    assert all(word in str(found.value) for word in (*words, str(folder))), found.value


@pytest.mark.parametrize(
    "changes", [{"image_size": [8]}, {"image_size": True}, {"patch_size": 0}, {"patch_size": 5}, {"num_channels": 3}]
)
def test_settings_of_images_that_cannot_be(tmp_path, changes):
    with pytest.raises(ModelFormatError, match=next(iter(changes)) if "num_channels" not in changes else "projection"):
        pyclattn.load(write(tmp_path / "m", "vit", config={**CONFIGS["vit"], **changes}))


def test_albert_cannot_ask_for_a_million_layers(tmp_path):
    config = {**CONFIGS["albert"], "num_hidden_layers": 1000, "inner_group_num": 1000}
    with pytest.raises(ModelFormatError, match="inner_group_num"):
        pyclattn.load(write(tmp_path / "m", "albert", config=config))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff", '{"model_type": NaN}'])
def test_a_config_that_is_none(tmp_path, text):
    folder = write(tmp_path / "m", "bert")
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelFormatError, match=r"config\.json"):
        pyclattn.load(folder)


def test_folders_without_what_they_need(tmp_path):
    with pytest.raises(ModelFormatError, match=r"no config\.json"):
        pyclattn.load(tmp_path)
    folder = write(tmp_path / "m", "bert")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match=r"model\.safetensors"):
        pyclattn.load(folder)
    (folder / "config.json").write_bytes(b" " * (17 << 20))
    with pytest.raises(ModelFormatError, match="bytes"):
        pyclattn.load(folder)


def test_no_sequences(tmp_path, ids):
    write(tmp_path, "bert")
    found = pyclattn.load(tmp_path)(input_ids=ids[:0])
    assert {name: array.shape[0] for name, array in found.items()} == {"last_hidden_state": 0, "pooler_output": 0}
