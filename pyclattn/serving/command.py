"""``pyclattn serve``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from math import inf
from pathlib import Path

from pyclattn.errors import ArgumentError, PyclattnError
from pyclattn.functional.precision import CHOICES
from pyclattn.serving.limits import Limits

NEEDED = ("starlette", "uvicorn", "prometheus_client")


def add(commands, to_bytes: Callable[[str], int]) -> None:
    """Add the subcommand; ``to_bytes`` reads "2GB"."""
    parser = commands.add_parser("serve", help="answer requests over HTTP (Open Inference Protocol v2)")
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL",
                        help="files, Hugging Face folders, or folders of models; named by their stems")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="(%(default)s: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (%(default)s)")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                        help="answer requests for this Host too, as behind a proxy")  # fmt: skip
    parser.add_argument("--attention", help="as of pyclattn run")
    parser.add_argument("--precision", default="float32", choices=CHOICES, help="as of pyclattn run (%(default)s)")
    parser.add_argument("--n-threads", type=int, help="of a run (default: the CPUs this process may use)")
    parser.add_argument("--max-memory", type=to_bytes, metavar="BYTES",
                        help="of one model and its run; a number, or with MB or GB behind it")  # fmt: skip
    parser.add_argument("--reload-every", type=float, default=1.0, metavar="SECONDS",
                        help="look for changed files; 0: never (%(default)s)")  # fmt: skip
    parser.add_argument("--report-every", type=int, default=64, metavar="N",
                        help="ask one run of N for the error of its attentions; 0: none (%(default)s)")  # fmt: skip
    no_copy = "map the model files themselves, which processes share: replace them by renaming only"
    parser.add_argument("--no-copy", action="store_true", help=no_copy)
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    group = parser.add_argument_group("limits")
    for field in fields(Limits):
        kind = float if field.type == "float" else to_bytes if field.name.endswith("_bytes") else int
        option = f"--{field.name.replace('_', '-')}"
        group.add_argument(option, type=kind, default=field.default, help="(%(default)s)")
    parser.set_defaults(run=serve)


def serve(arguments: argparse.Namespace) -> None:
    """Load the models, listen, answer."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise PyclattnError(f"serving needs {', '.join(missing)}: pip install pyclattn[serve]")
    limits = Limits(**{field.name: getattr(arguments, field.name) for field in fields(Limits)})
    for option in ("report_every", "reload_every"):
        if not 0 <= getattr(arguments, option) < inf:
            raise ArgumentError(f"--{option.replace('_', '-')} must be at least 0, got {getattr(arguments, option)}")
    if not 0 <= arguments.port < 1 << 16:
        raise ArgumentError(f"--port must be from 0 to 65535, got {arguments.port}")
    from pyclattn.model import load
    from pyclattn.plan import parse_attention
    from pyclattn.serving import logs, server
    from pyclattn.serving.repository import Repository
    from pyclattn.serving.service import Service

    logs.configure(arguments.log_level)
    sock = server.listen(arguments.host, arguments.port)
    attention = None if arguments.attention is None else parse_attention(arguments.attention)
    loader = partial(
        load,
        attention=attention,
        precision=arguments.precision,
        n_threads=arguments.n_threads,
        max_memory=arguments.max_memory,
    )
    repository = Repository(
        arguments.models, loader, shares=limits.max_batch_tokens > 0, copies=not arguments.no_copy, log=logs.log
    )
    repository.open()
    service = Service(repository, limits, report_every=arguments.report_every, poll=arguments.reload_every)
    server.run(service, sock, server.known_hosts(arguments.host, arguments.allow_host))
