"""Real weights on real data: both models beside their twins in PyTorch, and the figures they are known for."""

import numpy as np
import pytest

from bench.tasks import genomics, matching
from bench.tasks.fetch import LIGHTERGLUE, TIS_TRANSFORMER, XFEAT, fetch
from bench.tasks.photographs import WALL, pair
from bench.tasks.tis_transformer import tokens_of
from pyclattn import load_weights

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def wall():
    return pair(WALL)


def test_extractor_and_matcher(wall):
    import torch

    from bench.tasks import torch_twins

    extract, match = matching.networks()
    features = [extract(image, 2048) for image in (wall.first, wall.second)]
    extractor, matcher = fetch(XFEAT, LIGHTERGLUE)
    with torch.inference_mode():
        twins = [torch_twins.xfeat(load_weights(extractor), image, 2048) for image in (wall.first, wall.second)]
    for own, (keypoints, descriptors) in zip(features, twins):
        theirs = {tuple(place): row for place, row in zip(keypoints.tolist(), descriptors.numpy())}
        both = [i for i, place in enumerate(own.keypoints.tolist()) if tuple(place) in theirs]
        assert len(both) > 2040  # the last ones are equally good
        wanted = [theirs[tuple(place)] for place in own.keypoints[both].tolist()]
        np.testing.assert_allclose(own.descriptors[both], wanted, atol=1e-4)
    twin = torch_twins.LighterGlue(load_weights(matcher, prefix="matcher.", strip="matcher."))
    given = [[torch.from_numpy(getattr(f, name)) for f in features] for name in ("keypoints", "descriptors")]
    pairs, chances = match(*features)
    wanted, theirs = twin(*given, [f.size for f in features])
    assert matching.f1(pairs, wanted.numpy()) > 0.995
    known = dict(zip(map(tuple, wanted.tolist()), theirs.tolist()))
    apart = [abs(chance - known[tuple(p)]) for p, chance in zip(pairs.tolist(), chances) if tuple(p) in known]
    assert max(apart) < 5e-3


def test_matching_as_good_as_it_is_known_to_be(wall):
    run = matching.prepare(
        {"attention": "exact", "n_threads": None, "n_keypoints": 4096}, {"first": wall.first, "second": wall.second}
    )
    outputs = run()
    found = matching.score(wall, outputs, outputs["pairs"], outputs["pairs"])
    assert found.share >= 0.72
    assert 1450 < found.n_matches < 1550


def test_tis_transformer_and_its_known_start_codons():
    from bench.tasks import torch_twins

    (path,) = fetch(TIS_TRANSFORMER)
    twin = torch_twins.TisTransformer(load_weights(path, key="state_dict", objects="placeholder"))
    model, found = genomics.network(), genomics.labelled()
    assert len(found) == 35
    scores = [model(t.sequence) for t in found]
    assert genomics.n_first(scores, [t.start for t in found]) >= 28
    for transcript, own in list(zip(found, scores))[:6]:
        np.testing.assert_allclose(own, twin(tokens_of(transcript.sequence)).numpy(), atol=1e-4)
