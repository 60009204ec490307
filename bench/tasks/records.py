"""GenBank and FASTA records: sequences, features, and transcripts whose start codon is known."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

COMPLEMENT = str.maketrans("ACGTN", "TGCAN")
# A feature's key stands in columns 6 to 20, its location and qualifiers from column 22 on.
KEY, TEXT = slice(5, 21), 21


@dataclass(frozen=True)
class Feature:
    """A stretch of a record: what it is, and the 0-based positions of its bases in reading order."""

    kind: str
    location: str
    qualifiers: dict[str, str] = field(default_factory=dict)

    def exons(self) -> list[tuple[int, int, int]] | None:
        """(start, end, strand) of each piece in reading order, 0-based; None where a piece lies in another record."""
        return _exons(self.location)

    @property
    def is_partial(self) -> bool:
        """Whether it goes on beyond what was sequenced, at either end."""
        return "<" in self.location or ">" in self.location


@dataclass(frozen=True)
class Record:
    """One sequence and its features."""

    name: str
    sequence: str
    features: list[Feature] = field(default_factory=list)

    @property
    def molecule(self) -> str:
        """What was sequenced: mRNA, genomic DNA; nothing is known of a FASTA record."""
        return next((f.qualifiers.get("mol_type", "") for f in self.features if f.kind == "source"), "")


@dataclass(frozen=True)
class Transcript:
    """Spliced RNA and the position of the A of its start codon; its exons in the record it comes from."""

    name: str
    sequence: str
    start: int
    record: Record
    exons: list[tuple[int, int, int]]

    def unspliced(self, length: int) -> tuple[str, int]:
        """(the gene as it is first transcribed, and what follows, ``length`` bases; position of the start codon).

        Shorter where the record ends, or the exons are not in the order of one strand.
        """
        at, strand = _first(self.exons), self.exons[0][2]
        begin, end = (at, at + length) if strand > 0 else (at + 1 - length, at + 1)
        sequence = spliced(self.record.sequence, [(max(0, begin), end, strand)])
        return sequence, abs(_base(self.exons, self.start) - at)

    @property
    def is_whole(self) -> bool:
        """Whether its 5' end was seen, so that something stands before the start codon."""
        return self.start > 0


def _exons(location: str) -> list[tuple[int, int, int]] | None:
    location = location.strip()
    if location.startswith("complement(") and _closes_at_end(location):
        inner = _exons(location[11:-1])
        return None if inner is None else [(start, end, -strand) for start, end, strand in reversed(inner)]
    if location.startswith(("join(", "order(")) and _closes_at_end(location):
        pieces = [_exons(piece) for piece in _split(location[location.index("(") + 1 : -1])]
        return None if None in pieces else [exon for piece in pieces for exon in piece or ()]
    found = re.fullmatch(r"<?(\d+)(?:\.\.>?(\d+))?", location)
    if not found:  # another record (Z84723.1:15736..15872), between two bases (7^8), or of a kind we do not know
        return None
    start = int(found[1])
    return [(start - 1, int(found[2] or start), 1)]


def _closes_at_end(location: str) -> bool:
    """Whether the first bracket that opens is the last that closes."""
    depth = 0
    for i, letter in enumerate(location):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0 and letter == ")":
            return i == len(location) - 1
    return False


def _split(text: str) -> list[str]:
    """Pieces between commas that stand outside of brackets."""
    pieces, depth = [""], 0
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return pieces


def spliced(sequence: str, exons: list[tuple[int, int, int]]) -> str:
    """The bases of exons, joined in reading order.

    Examples
    --------
    >>> spliced("AACCGGTT", [(5, 7, -1), (0, 3, -1)])
    'ACGTT'
    """
    pieces = [
        sequence[start:end] if strand > 0 else sequence[start:end][::-1].translate(COMPLEMENT)
        for start, end, strand in exons
    ]
    return "".join(pieces)


def _first(exons: list[tuple[int, int, int]]) -> int:
    """Position of the base that is read first."""
    start, end, strand = exons[0]
    return start if strand > 0 else end - 1


def _base(exons: list[tuple[int, int, int]], position: int) -> int:
    """Where a base of the spliced sequence stands in the record."""
    for start, end, strand in exons:
        if position < end - start:
            return start + position if strand > 0 else end - 1 - position
        position -= end - start
    raise IndexError(position)


def position_in(exons: list[tuple[int, int, int]], base: int) -> int | None:
    """Where a base of the record stands in the spliced sequence.

    Examples
    --------
    >>> position_in([(5, 7, -1), (0, 3, -1)], 1)
    3
    """
    before = 0
    for start, end, strand in exons:
        if start <= base < end:
            return before + (base - start if strand > 0 else end - 1 - base)
        before += end - start
    return None


# -- files ------------------------------------------------------------------------------------------------------------


def genbank(path: Path) -> Iterator[Record]:
    """The records of a GenBank flat file."""
    lines: list[str] = []
    for line in path.read_text(encoding="latin-1").splitlines():
        if line.startswith("//"):
            yield _record(lines)
            lines = []
        else:
            lines.append(line)


def _record(lines: list[str]) -> Record:
    name = next((line.split()[1] for line in lines if line.startswith("LOCUS")), "")
    starts = {word: i for i, line in enumerate(lines) if (word := line.split(" ")[0]) in ("FEATURES", "ORIGIN")}
    origin = starts.get("ORIGIN", len(lines))
    sequence = "".join("".join(line.split()[1:]) for line in lines[origin + 1 :]).upper().replace("U", "T")
    table = lines[starts["FEATURES"] + 1 : origin] if "FEATURES" in starts else []
    return Record(name, sequence, list(_features(table)))


def _features(table: list[str]) -> Iterator[Feature]:
    found: list[list[str]] = []  # of each feature its key and its lines
    for line in table:
        if line[:5].strip():  # CONTIG or BASE COUNT: the table is over
            break
        if line[KEY].strip():
            found.append([line[KEY].strip()])
        if found:
            found[-1].append(line[TEXT:].strip())
    for kind, *texts in found:
        cut = next((i for i, text in enumerate(texts) if text.startswith("/")), len(texts))
        yield Feature(kind, "".join(texts[:cut]), _qualifiers(texts[cut:]))


def _qualifiers(texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    name = ""
    for text in texts:
        if text.startswith("/"):
            name, _, value = text[1:].partition("=")
            found[name] = value
        elif name:
            found[name] += " " + text
    return {name: value.strip('"') for name, value in found.items()}


def fasta(path: Path) -> Iterator[Record]:
    """The records of a FASTA file."""
    for part in path.read_text(encoding="latin-1").split(">")[1:]:
        title, _, sequence = part.partition("\n")
        yield Record(title.strip(), "".join(sequence.split()).upper().replace("U", "T"))


# -- transcripts ------------------------------------------------------------------------------------------------------


def transcripts(records: Iterator[Record]) -> Iterator[Transcript]:
    """Spliced mRNA with a whole coding sequence: mRNA records, and mRNA features of genomic records.

    An mRNA feature and a CDS belong together if the CDS is what the mRNA's exons leave between its start and its end.
    Kept are those with a start codon ATG, each sequence once.
    """
    seen = set()
    for record in records:
        for transcript in _transcripts(record):
            if transcript.sequence not in seen:
                seen.add(transcript.sequence)
                yield transcript


def _transcripts(record: Record) -> Iterator[Transcript]:
    coding = [(f, exons) for f in record.features if f.kind == "CDS" and not f.is_partial and (exons := f.exons())]
    if record.molecule == "mRNA":
        rnas = [(record.name, [(0, len(record.sequence), 1)])]
    else:
        rnas = [(_title(record, f), exons) for f in record.features if f.kind == "mRNA" and (exons := f.exons())]
    for name, exons in rnas:
        sequence = spliced(record.sequence, exons)
        for _, cds in coding:
            start = position_in(exons, _first(cds))
            if start is None or sequence[start : start + 3] != "ATG":
                continue
            protein = spliced(record.sequence, cds)
            if sequence[start : start + len(protein)] == protein:
                yield Transcript(name, sequence, start, record, exons)
                break


def _title(record: Record, feature: Feature) -> str:
    gene = feature.qualifiers.get("locus_tag") or feature.qualifiers.get("gene") or feature.location
    return f"{record.name} {gene}"
