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


def test_parts_are_chosen_by_group_and_length():
    every = list(methods.parts(methods.Settings(2, 3)))
    assert every[:2] == ["speed 1024", "speed 2048"]
    assert methods.due(every, ["memory", "layer"], (4096,)) == ["memory 4096", "layer"]
    assert methods.due(every, None, methods.LENGTHS) == every
    assert {part.split()[0] for part in methods.due(every, None, ())} == set(methods.GROUPS)


def test_a_quick_run_keeps_and_judges_nothing(monkeypatch, tmp_path, capsys):
    kept = tmp_path / "methods.json"
    monkeypatch.setitem(
        methods.GROUPS, "layer", lambda settings: iter([Row("layer", "x", f"1/{settings.divisor}", 1.0, bar=9.0)])
    )
    given = ["--only", "layer", "--json", str(kept), "--picture", str(tmp_path / "p.png")]
    assert methods.main([*given, "--quick"]) == 0
    assert "1/8" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert methods.main(given) == 1
    assert kept.exists()


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
