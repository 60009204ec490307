"""The fuzzer itself: it begins with files the readers take, and notices what goes wrong."""

import importlib.util
from pathlib import Path

import pytest
from mutations import mutated
from seeds import SEEDS
from targets import TARGETS


@pytest.fixture
def fuzz(tmp_path):
    """The module behind ``python tests/fuzz``."""
    spec = importlib.util.spec_from_file_location("fuzz_main", Path(__file__).with_name("__main__.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Seeds that show a refusal: a storage of a quantised type, a tensor of one.
REFUSED = {"pytorch": 2, "pickles": 1, "safetensors": 0, "onnx": 0}


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_are_accepted(name):
    seeds = SEEDS[name]()
    assert len(seeds) >= 4
    assert [TARGETS[name](seed) for seed in seeds].count(False) == REFUSED[name]


@pytest.mark.parametrize("name", SEEDS)
def test_a_short_campaign_finds_nothing(fuzz, name, tmp_path):
    campaign = fuzz.Campaign(name, 0, tmp_path)
    for _ in range(300):
        campaign.once(mutated(campaign.seeds[0], campaign.seeds[-1], campaign.tokens, campaign.rng))
    assert campaign.executions == 300
    assert campaign.findings == {}


def test_findings_are_noticed_once_and_kept(fuzz, tmp_path):
    campaign = fuzz.Campaign("pickles", 0, tmp_path)

    def wrong(data):
        raise IndexError("what no reader may raise")

    campaign.run = wrong
    campaign.once(b"a")
    campaign.once(b"b")
    assert len(campaign.findings) == 1
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"a"]
