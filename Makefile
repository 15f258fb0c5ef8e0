PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
ORIGINAL := .venv-original
DOCS := docs
# Each module's public names: what lies below a package is shown where the package offers it.
MODULES := $(patsubst interp/%.py,interp.%,$(filter-out %__init__.py,$(wildcard interp/*.py))) \
  $(patsubst interp/%/__init__.py,interp.%,$(wildcard interp/*/__init__.py))

.PHONY: test quick long original lint heads docs pictures bench clean

# A process for each core, and one for when another waits; with one thread each, small tensors gain nothing from more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n
WORKERS := $(shell expr $$(nproc) + 1)

test: lint
	$(PYTEST) $(WORKERS) -m "not long and not browser"

# The library's, without those that take over a second; types are checked by `make lint`.
quick: $(INSTALLED)
	$(BIN)/ruff check .
	$(PYTEST) $(WORKERS) -m "not slow and not long" -x -q --ignore=tests/dashboard --ignore=tests/analyses

# What fails while two browsers share a machine is tried once more, alone.
long: $(INSTALLED)
	$(PYTEST) auto -m "long or browser" || \
	  $(PYTEST) 0 -m "long or browser" --last-failed --last-failed-no-failures none

# The classic interface beside TransformerLens, whose needs are not ours.
original: $(ORIGINAL)/installed
	PYTHONPATH=. OMP_NUM_THREADS=1 $(ORIGINAL)/bin/pytest -o addopts=--import-mode=importlib -q \
	  tests/classic/test_against_transformer_lens.py tests/classic/test_notebooks.py

$(ORIGINAL)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(ORIGINAL)
	$(ORIGINAL)/bin/pip install --quiet --constraint constraints.txt torch
	$(ORIGINAL)/bin/pip install --quiet transformer_lens==3.9.0 pytest xarray
	touch $@

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

heads: $(INSTALLED)
	$(BIN)/streamlit run dashboards/heads.py

docs: $(INSTALLED)
	$(BIN)/python -W error -m pdoc --output-directory $(DOCS) interp $(MODULES)

pictures: $(INSTALLED)
	$(BIN)/python -m dashboards.pictures
	$(BIN)/python -m analyses.tour

bench: $(INSTALLED) $(ORIGINAL)/installed
	$(BIN)/python -m tests.bench.imports
	$(BIN)/python -m tests.bench.model
	$(BIN)/python -m tests.bench.generation
	$(BIN)/python -m tests.bench.loading
	$(BIN)/python -m tests.bench.training
	$(BIN)/python -m tests.bench.patching
	$(BIN)/python -m tests.bench.lens
	$(BIN)/python -m tests.bench.heads
	$(BIN)/python -m tests.bench.memories
	$(BIN)/python -m tests.bench.scan_memory
	$(BIN)/python -m tests.bench.weights
	PYTHONPATH=. $(ORIGINAL)/bin/python -m tests.bench.classic
	$(BIN)/python -m tests.bench.dashboard
	INTERP_MANY_SECONDS=120 INTERP_SOAK_ACTIONS=200 $(BIN)/pytest -q -s tests/dashboard/test_many.py tests/dashboard/test_soak.py

# torch first and pinned: asked for by range, it could arrive as another build, gigabytes larger.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv $(ORIGINAL)
