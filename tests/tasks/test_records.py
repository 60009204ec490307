"""GenBank and FASTA files read as they are written; transcripts as their features say."""

import numpy as np
import pytest

from bench.tasks import genomics, records
from bench.tasks.tis_transformer import tokens_of

SEQUENCE = "".join(np.array(list("ACGT"))[np.random.default_rng(0).integers(0, 4, 200)])
SEQUENCE = SEQUENCE[:30] + "ATG" + SEQUENCE[33:90] + "CAT" + SEQUENCE[93:]  # ATG at 30; on the other strand at 92


def genbank(features, sequence=SEQUENCE, molecule="genomic DNA"):
    """A flat file of one record."""
    lines = [
        "LOCUS       TEST1  200 bp    DNA     linear   PRI 01-JAN-2000",
        "FEATURES             Location/Qualifiers",
    ]
    lines += ["     source          1..200", f'                     /mol_type="{molecule}"']
    for kind, location, *qualifiers in features:
        lines.append(f"     {kind:<16}{location[0] if isinstance(location, list) else location}")
        lines += [" " * 21 + more for more in (location[1:] if isinstance(location, list) else [])]
        lines += [" " * 21 + text for text in qualifiers]
    lines.append("ORIGIN      ")
    for i in range(0, len(sequence), 60):
        row = sequence[i : i + 60].lower()
        lines.append(f"{i + 1:>9} " + " ".join(row[j : j + 10] for j in range(0, 60, 10)))
    return "\n".join([*lines, "//", ""])


def read(tmp_path, text):
    path = tmp_path / "x.gb"
    path.write_text(text)
    return list(records.genbank(path))


def test_a_record_is_read(tmp_path):
    text = genbank([("CDS", ["join(31..60,", "101..130)"], '/gene="g"', '/note="two', 'lines"')])
    first, second = read(tmp_path, text + text.replace("TEST1", "TEST2"))
    assert (first.name, second.name) == ("TEST1", "TEST2")
    assert first.sequence == SEQUENCE
    assert first.molecule == "genomic DNA"
    source, cds = first.features
    assert source.kind == "source"
    assert cds.location == "join(31..60,101..130)"
    assert cds.qualifiers == {"gene": "g", "note": "two lines"}


@pytest.mark.parametrize(
    ("location", "exons"),
    [
        ("5", [(4, 5, 1)]),
        ("<3..>8", [(2, 8, 1)]),
        ("complement(3..8)", [(2, 8, -1)]),
        ("join(1..4,complement(10..12))", [(0, 4, 1), (9, 12, -1)]),
        ("complement(join(1..4,10..12))", [(9, 12, -1), (0, 4, -1)]),
        ("join(complement(10..12),complement(1..4))", [(9, 12, -1), (0, 4, -1)]),
        ("order(1..2,4..5)", [(0, 2, 1), (3, 5, 1)]),
        ("join(1..4,Z84723.1:15..20)", None),
        ("7^8", None),
        ("complement(1..2),complement(4..5)", None),
    ],
)
def test_locations(location, exons):
    feature = records.Feature("CDS", location)
    assert feature.exons() == exons
    assert feature.is_partial == ("<" in location)


@pytest.mark.parametrize("seed", range(5))
def test_splicing_and_places_agree_base_by_base(seed):
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.choice(200, 8, replace=False)).reshape(4, 2).tolist()
    exons = [(a, b, 1) for a, b in cuts] if seed % 2 else [(a, b, -1) for a, b in cuts[::-1]]
    other = dict(zip("ACGT", "TGCA"))
    letters = []
    for start, end, strand in exons:
        own = range(start, end) if strand > 0 else range(end - 1, start - 1, -1)
        for place in own:
            assert records.position_in(exons, place) == len(letters)
            letters.append(SEQUENCE[place] if strand > 0 else other[SEQUENCE[place]])
    assert records.spliced(SEQUENCE, exons) == "".join(letters)
    assert records.position_in(exons, 200) is None


def found(tmp_path, *features, **more):
    return list(records.transcripts(iter(read(tmp_path, genbank(features, **more)))))


def test_transcripts_of_both_strands(tmp_path):
    forward = ("mRNA", "join(21..60,101..150)", '/gene="f"'), ("CDS", "join(31..60,101..130)", '/gene="f"')
    (transcript,) = found(tmp_path, *forward)
    assert transcript.name == "TEST1 f"
    assert transcript.sequence == SEQUENCE[20:60] + SEQUENCE[100:150]
    assert transcript.start == 10
    assert transcript.is_whole
    backward = ("mRNA", "complement(join(21..40,71..103))"), ("CDS", "complement(join(25..40,71..93))")
    (transcript,) = found(tmp_path, *backward)
    assert transcript.start == 10
    assert transcript.sequence[10:13] == "ATG"


@pytest.mark.parametrize(
    "features",
    [
        [("mRNA", "join(21..60,101..150)")],  # nothing is known to be coded
        [("mRNA", "join(21..60,101..150)"), ("CDS", "31..70")],  # coded is what is not in the transcript
        [("mRNA", "join(21..60,101..150)"), ("CDS", "32..60")],  # begins with TG
        [("mRNA", "join(21..60,101..150)"), ("CDS", "<31..60")],  # begins elsewhere
        [("mRNA", "join(21..60,Z1.1:1..5)"), ("CDS", "31..60")],
    ],
)
def test_what_is_no_labelled_transcript(tmp_path, features):
    assert found(tmp_path, *features) == []


def test_equal_transcripts_count_once_and_mrna_records_are_transcripts(tmp_path):
    rna = ("mRNA", "21..150")
    assert len(found(tmp_path, rna, rna, ("CDS", "31..60"))) == 1
    (transcript,) = found(tmp_path, ("CDS", "31..60"), molecule="mRNA")
    assert (transcript.sequence, transcript.start) == (SEQUENCE, 30)


def test_genes_begin_with_their_transcript(tmp_path):
    (forward,) = found(tmp_path, ("mRNA", "join(11..20,25..60)"), ("CDS", "31..60"))
    assert forward.start == 16
    assert forward.unspliced(100) == (SEQUENCE[10:110], 20)
    (backward,) = found(tmp_path, ("mRNA", "complement(join(21..95,99..103))"), ("CDS", "complement(61..93)"))
    sequence, start = backward.unspliced(50)
    assert sequence == records.spliced(SEQUENCE, [(53, 103, -1)])
    assert (backward.start, start) == (7, 10)
    assert sequence[start : start + 3] == "ATG"
    assert len(backward.unspliced(150)[0]) == 103
    assert genomics.genes([forward, backward], 150) == [(SEQUENCE[10:160], 20)]


def test_fasta(tmp_path):
    path = tmp_path / "x.fa"
    path.write_text(">one first\nACG\nuacn\n>two\nGG\n")
    assert [(r.name, r.sequence) for r in records.fasta(path)] == [("one first", "ACGTACN"), ("two", "GG")]


def test_letters_and_tokens():
    assert tokens_of("GATTACANX").tolist() == [5, 3, 0, 1, 1, 0, 2, 0, 4, 4, 6]
