"""What Prometheus reads at /metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from pyclattn.graph.run_report import RunReport

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
REQUESTS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one service, in a registry of its own.

    Examples
    --------
    >>> metrics = Metrics()
    >>> metrics.ran("minilm", n_requests=3, tokens=120, seconds=0.02)
    >>> [line for line in metrics.text().decode().splitlines() if line.startswith("pyclattn_tokens_total")]
    ['pyclattn_tokens_total{model="minilm"} 120.0']
    """

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        ProcessCollector(registry=r)
        model = ["model"]
        self.requests = Counter("pyclattn_requests", "Requests answered.", ["model", "status"], registry=r)
        self.latency = Histogram(
            "pyclattn_request_seconds", "From a request's arrival to its answer.", model, buckets=SECONDS, registry=r
        )
        self.waiting = Histogram("pyclattn_queue_seconds", "In the queue.", model, buckets=SECONDS, registry=r)
        self.running = Histogram("pyclattn_run_seconds", "Of a run.", model, buckets=SECONDS, registry=r)
        self.sharing = Histogram("pyclattn_run_requests", "Requests in a run.", model, buckets=REQUESTS, registry=r)
        self.tokens = Counter("pyclattn_tokens", "Tokens run, padding not counted.", model, registry=r)
        self.gone = Counter("pyclattn_clients_gone", "Clients that left before their answer.", registry=r)
        self.version = Gauge("pyclattn_model_version", "Counts from 1 with each load of its file.", model, registry=r)
        self.not_loaded = Gauge("pyclattn_model_load_failures", "Changed files that could not be loaded.", registry=r)
        self.queue = Gauge("pyclattn_queue_requests", "Requests that wait.", registry=r)
        self.queue_tokens = Gauge("pyclattn_queue_tokens", "Tokens that wait.", registry=r)
        self.error = Gauge(
            "pyclattn_attention_error", "Estimated relative error, mean over heads, of the run last asked.",
            ["model", "attention"], registry=r,
        )  # fmt: skip
        self.fell_back = Counter(
            "pyclattn_attention_made_exact", "Heads made exact, in runs that were asked.", model, registry=r
        )

    def ran(self, model: str, n_requests: int, tokens: int, seconds: float) -> None:
        self.running.labels(model).observe(seconds)
        self.sharing.labels(model).observe(n_requests)
        self.tokens.labels(model).inc(tokens)

    def reported(self, model: str, report: RunReport) -> None:
        """The errors a run's report tells."""
        errors: dict[str, list[float]] = {}
        for attention in report.attentions:
            if attention.errors is not None and attention.errors.size:
                errors.setdefault(attention.name, []).append(float(attention.errors.mean()))
            self.fell_back.labels(model).inc(int(attention.fell_back.sum()))
        for name, found in errors.items():
            self.error.labels(model, name).set(sum(found) / len(found))

    def text(self) -> bytes:
        return generate_latest(self.registry)
