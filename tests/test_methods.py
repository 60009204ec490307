"""What `python -m bench methods` measures is the same encoder, and what it makes of its measurements."""

import numpy as np
import pytest

from bench import encoders, methods, methods_picture
from bench.rows import Row


def test_cast_with_one_cluster_of_all_tokens_is_the_exact_encoder():
    """The two share weights, projections and residuals."""
    length, x = 60, encoders.tokens(60)
    w = encoders.weights(1)
    exact = encoders.exact_attention(w)(x)
    for clustering in ("topk", "sa_topk"):
        cast = encoders.cast_attention(w, length, clustering)(x)
        np.testing.assert_allclose(cast, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [encoders.EXACT, *encoders.METHODS])
def test_every_encoder_runs(name):
    length = 320
    output = encoders.subject(name, length, 2)(encoders.tokens(length))
    share = encoders.METHODS.get(name, {}).get("share", 1)
    assert output.shape == (1, length // share, encoders.DIM)
    assert np.isfinite(output).all()


def test_encoders_differ_in_their_attention():
    length, x = 320, encoders.tokens(320)
    outputs = [encoders.subject(n, length, 2)(x) for n in (encoders.EXACT, *encoders.METHODS) if "Centroid" not in n]
    for i, one in enumerate(outputs):
        assert all(np.abs(one - other).max() > 1e-3 for other in outputs[:i])


@pytest.mark.torch
@pytest.mark.parametrize("name", [encoders.TORCH, encoders.MATRIX])
def test_the_encoder_in_torch_is_ours(name):
    x = encoders.tokens(300)
    np.testing.assert_allclose(
        encoders.subject(name, 300, 2)(x), encoders.subject(encoders.EXACT, 300, 2)(x), rtol=1e-4, atol=1e-5
    )


ROWS = [
    Row("speed", "exact encoder", "1,024", 1.5, detail={"torch": 1.5, "exact": 1.0}),
    Row("speed", "CAST Top-K encoder", "1,024", 3.0, detail={"torch": 3.0, "exact": 2.0}),
    Row("speed", "CAST Top-K encoder", "16,384", 30.0, detail={"torch": 30.0, "exact": 20.0}),
    Row("memory", "CAST Top-K encoder", "1,024", 5e6, detail={"of": {"exact": 0.5, "PyTorch": 0.25}}),
    Row("memory", "PyTorch encoder", "1,024", 5e6, detail={"of": {}}),
    Row("layer", "CAST topk layer", "1,024", 2.0, bar=1.5),
]


def test_table_has_a_line_for_each_method_and_a_column_for_each_length():
    lines = methods.table(ROWS).splitlines()
    columns = [line.split()[-2:] for line in lines if "1,024" in line and "16,384" in line]
    assert columns == [["1,024", "16,384"]] * 2
    cast = [line.split()[3:] for line in lines if line.startswith("  CAST Top-K encoder")]
    assert cast == [["3.00", "30.00"], ["2.00", "20.00"], ["0.25"]]


def test_picture_takes_speed_and_share_of_memory():
    assert methods_picture._curves(ROWS, "speed")["CAST Top-K"] == [(1024, 3.0), (16384, 30.0)]
    assert methods_picture._curves(ROWS, "memory") == {"CAST Top-K": [(1024, 25.0)]}
    assert set(methods_picture.STYLES) == {encoders.EXACT, encoders.MATRIX, *encoders.METHODS}


def test_a_picture_is_drawn(tmp_path):
    methods_picture.draw(tmp_path / "methods.png", ROWS)
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")
