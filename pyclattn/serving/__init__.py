"""Models over HTTP: ``pyclattn serve`` (extra ``[serve]``: Starlette, uvicorn, prometheus_client).

A request goes through the files in this order: `app` (routes) -> `body` (bytes, within limits) -> `protocol` (Open
Inference Protocol v2, JSON and binary tensors) -> `repository` (the model of that name, reloaded when its file changes)
-> `queue` (bounded) -> `batching` (which requests may share a run, and how) -> `runner` (one run at a time, on all
threads) and back. `limits` has every limit with its default; `metrics` and `logs` watch; `server` starts and drains.

Without HTTP, for batch engines: `batch_encoder` runs the rows of a batch, `columns` makes requests of them.
"""
