"""``python tests/fuzz [reader ...] --seconds N``: mutate valid files for a time and report what a reader does wrong.

Without ``--atheris`` the mutations are our own and deterministic in ``--seed``; inputs that are refused at a place not
seen before join the seeds. With it, atheris guides them by coverage (one target at a time).
Findings are written to ``out/fuzz/`` and named; each is to become a case of tests/abuse.
"""

import argparse
import faulthandler
import hashlib
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from mutations import mutated, mutated_header
from seeds import SEEDS, TOKENS
from targets import TARGETS

from pyclattn.errors import PyclattnError

READERS = {"pytorch": ("pytorch", "pickles"), "safetensors": ("safetensors",), "onnx": ("onnx",)}
SLOW = 2.0  # seconds an input of a few kB may take
MAX_SEEDS = 4000
MEMORY = 6 << 30
BURST = 256  # executions between looks at the clock


class Campaign:
    """One target: its corpus, its random numbers, what it found."""

    def __init__(self, name, seed, out):
        self.name, self.run, self.tokens = name, TARGETS[name], TOKENS[name]
        self.rng = Random(f"{seed} {name}")
        self.seeds = SEEDS[name]()  # half of all draws; the rest are what was found
        self.corpus = list(self.seeds)
        self.mutate = mutated_header if name == "safetensors" else mutated
        self.known = set()
        self.out = out
        self.executions = self.accepted = 0
        self.findings = {}

    def burst(self, seconds):
        """Run for a time."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(BURST):
                draw = self.rng.random
                pool = self.seeds if draw() < 0.5 else self.corpus
                data, other = pool[int(draw() * len(pool))], self.corpus[int(draw() * len(self.corpus))]
                self.once(self.mutate(data, other, self.tokens, self.rng))

    def once(self, data):
        self.executions += 1
        begin = time.perf_counter()
        try:
            is_accepted = self.run(data)
            self.accepted += is_accepted
            feature = "accepted" if is_accepted else TRACE.last
        except Exception as error:
            self.finding(data, f"{type(error).__name__}: {error}", traceback.format_exc())
            return
        if time.perf_counter() - begin > SLOW:
            self.finding(data, "slow", f"{time.perf_counter() - begin:.1f} s")
        if feature not in self.known:
            self.known.add(feature)
            if len(self.corpus) < MAX_SEEDS:
                self.corpus.append(data)

    def finding(self, data, words, trace):
        place = trace.strip().splitlines()[-2:][0].strip()
        if place in self.findings:
            return
        self.findings[place] = words
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{self.name}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        print(f"FINDING {self.name}: {words[:200]} -> {path}\n{trace}", flush=True)


class Trace:
    """Which refusal a run ended in: the lines that raised, read off the error by a patched constructor."""

    last = None

    def __init__(self):
        original = PyclattnError.__init__

        def init(error, *args, **keywords):
            original(error, *args, **keywords)
            frames, frame = [], sys._getframe(1)
            while frame is not None and len(frames) < 6:
                frames.append((frame.f_code.co_name, frame.f_lineno))
                frame = frame.f_back
            self.last = tuple(frames)

        PyclattnError.__init__ = init


TRACE = Trace()


def guided(name, arguments):
    """Hand a target to atheris, which does not return."""
    import atheris

    folder = Path("out/fuzz/corpus") / name
    folder.mkdir(parents=True, exist_ok=True)
    for data in SEEDS[name]():
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], str(folder), *arguments], TARGETS[name])
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    parser.add_argument("reader", nargs="*", choices=[[], *READERS], help=f"of {', '.join(READERS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=60, help="for all readers together")
    parser.add_argument("--executions", type=int, help="stop when so many are done")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", metavar="TARGET", help=f"one of {', '.join(TARGETS)}: guided by coverage")
    options, rest = parser.parse_known_args()
    faulthandler.enable()
    # What a reader takes beyond this is a MemoryError, which is a finding.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    if options.atheris:
        return guided(options.atheris, rest or [f"-max_total_time={options.seconds:.0f}"])
    names = [name for reader in options.reader or READERS for name in READERS[reader]]
    campaigns = [Campaign(name, options.seed, Path("out/fuzz")) for name in names]
    begin, turn = time.perf_counter(), min(5.0, options.seconds / len(names))
    reported = begin
    while time.perf_counter() - begin < options.seconds:
        for campaign in campaigns:
            campaign.burst(turn)
        if time.perf_counter() - reported > 60:
            reported = time.perf_counter()
            print(summary(campaigns, reported - begin), flush=True)
        if options.executions and sum(c.executions for c in campaigns) >= options.executions:
            break
    print(summary(campaigns, time.perf_counter() - begin))
    return 1 if any(campaign.findings for campaign in campaigns) else 0


def summary(campaigns, seconds):
    parts = [
        f"{c.name} {c.executions:,} ({c.accepted:,} accepted, {len(c.corpus)} seeds, {len(c.findings)} findings)"
        for c in campaigns
    ]
    total = sum(c.executions for c in campaigns)
    return f"{total:,} executions in {seconds:.0f} s, {total / seconds:,.0f}/s: {'; '.join(parts)}"


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # mapped files and plug-ins have nothing to say at exit
