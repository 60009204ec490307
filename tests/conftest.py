"""Rooms and instruction sets as a fixture, and how hypothesis draws."""

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings

from pyclattn import _dispatch

settings.register_profile(
    "ci",
    derandomize=True,  # the same examples on every run
    deadline=None,  # the first call of a kernel may compile
    max_examples=20,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("explore", settings.get_profile("ci"), derandomize=False, max_examples=1000)
settings.load_profile("ci")


@dataclass(frozen=True)
class Room:
    """A room kernels are taken from, and the instruction set of the compiled ones."""

    backend: str
    isa: str | None = None

    def __str__(self):
        return self.backend if self.isa is None else f"{self.backend}-{self.isa}"

    def forced(self):
        return _dispatch.forced(self.backend, self.isa)


def isa_levels():
    """What this machine and build have. Without the extension: nothing, and `test_rooms` says so."""
    try:
        from pyclattn._ext import isa
    except ImportError:
        return [None]
    return list(isa.available())


ISA_LEVELS = isa_levels()
ROOMS = [Room("reference"), Room("numba"), Room("cython"), *(Room("auto", level) for level in ISA_LEVELS)]


@pytest.fixture(params=ROOMS, ids=str)
def room(request):
    """Runs the test once in every room; kernels the room does not own come from the reference."""
    with request.param.forced():
        yield request.param


@pytest.fixture
def reference():
    """Only the reference room."""
    with _dispatch.forced("reference"):
        yield
