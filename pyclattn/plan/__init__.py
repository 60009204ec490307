"""Which attention runs how: the same everywhere, one by name, or as calibrated by length and head.

A plan is small JSON (docs/calibration.md shows one). What is calibrated stands by attention in length classes: the
tokens a class was measured at, and choices that share the heads among them.
"""

from pyclattn.plan.choice import DEFAULTS, METHODS, PARAMETERS, Choice, parse_attention
from pyclattn.plan.classes import Calibrated, LengthClass
from pyclattn.plan.plan import Plan

__all__ = ["DEFAULTS", "METHODS", "PARAMETERS", "Calibrated", "Choice", "LengthClass", "Plan", "parse_attention"]
