"""``python -m bench scale``: `BatchEncoder` under Ray Data: a killed actor, one actor and two, and the curve beyond.

`corpus` has the documents, `engine` runs them (in this process, and with Ray Data), `curve` is the model of more
machines than one, with its assumptions; `measure` makes rows of it all. Needs ``pip install pyclattn[ray]``.
"""

from bench.scale.measure import main

__all__ = ["main"]
