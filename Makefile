# Two commands do everything on a fresh machine: `make demo` (the main job) and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SECONDS ?= 60
SOURCES := $(wildcard pyclattn/_ext/*.pyx pyclattn/_ext/*.pxd pyclattn/_ext/*.h pyclattn/_ext/*_*.c)

.PHONY: demo test lint docs wheel fuzz bench report parity ray clean

$(VENV)/built: setup.py pyproject.toml $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test,demo]"
	touch $@

$(VENV)/dev: $(VENV)/built
	$(BIN)/python -m pip install --quiet cython ruff cython-lint mypy
	touch $@

demo: $(VENV)/built
	$(BIN)/python -m bench.tasks.saliency

test: $(VENV)/built
	$(BIN)/python -m pytest -m "not torch and not ray"

lint: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PATH="$(BIN):$$PATH" $(BIN)/cython-lint pyclattn/_ext
	$(BIN)/mypy

# The site, in out/site; a warning is an error.
docs: $(VENV)/built
	$(BIN)/python -m pip install --quiet mkdocs-material "mkdocstrings[python]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir out/site

# dist/: sdist and wheel; the wheel is tested installed, and as a guest in a bare container.
wheel:
	$(PYTHON) packaging/wheel.py

# Hostile files against the three readers; `python tests/fuzz --help` has more.
fuzz: $(VENV)/built
	$(BIN)/python tests/fuzz --seconds $(SECONDS)

bench: $(VENV)/built
	$(BIN)/python -m pip install --quiet -e ".[bench]"
	$(BIN)/python -m bench attention --json bench/results/attention.json --readme

# Everything measured so far as one page: docs/report.md and out/report/index.html.
report: $(VENV)/built
	$(BIN)/python -m bench report

parity: $(VENV)/built
	$(BIN)/python -m pip install --quiet "torch==2.13.0" "transformers>=5" onnxscript
	$(BIN)/python -m pytest -m torch
	$(BIN)/python -m bench.parity
	$(BIN)/python -m bench.weights

# The batch encoder under Ray Data: tests, then 10,000 documents with an actor killed.
ray: $(VENV)/built
	$(BIN)/python -m pip install --quiet --editable ".[ray]"
	$(BIN)/python -m pytest -m ray
	$(BIN)/python -m bench scale

clean:
	rm -rf $(VENV) build *.egg-info pyclattn/_ext/*.so
