# Two commands on a fresh machine: `make demo` and `make test`. Nothing is needed but python3 with venv.
# For work on the code: `make dev` makes the environment alone, `make fast` runs the quick tests, `make lint` the linters,
# `make rtx` asks NVIDIA's compiler for GeForce RTX, which it installs by itself in a folder of its own (NVIDIA's licence),
# `make browser` tries pages of `resdeploy report` in Debian's Chromium (apt-get install chromium) and axe-core (npm),
# `make acceptance` what takes minutes of simulation and of real networks, `make wheels` builds what is published and tries
# it on every Python, `make docs` writes what docs/architecture.md takes from the code.
# WHEELS_ARGS reaches tests/wheels/try_wheels.py, PIP_ARGS reaches pip, e.g. PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" for torch without CUDA.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= cpu,data,dev
PIP_ARGS ?=
WHEELS_ARGS ?=
BIN := $(VENV)/bin

.PHONY: demo dev fast test acceptance wheels rtx browser lint docs clean
# Tests start hundreds of interpreters: what they import is compiled once.
unexport PYTHONDONTWRITEBYTECODE
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/resdeploy run quickstart

dev: $(VENV)/.dev

fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --fast

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

acceptance: $(VENV)/.dev $(VENV)/.triton
	TRITONCLIENT_PYTHON=$(abspath $(VENV)/triton/bin/python) $(BIN)/python -m pytest --acceptance -n 2 --dist loadfile

rtx: $(VENV)/.rtx
	PYTHONPATH=$(abspath $(VENV)/rtx) $(BIN)/python -m pytest tests/rtx

browser: $(VENV)/.browser
	AXE=$(abspath $(VENV)/browser/node_modules/axe-core/axe.min.js) $(BIN)/python -m pytest tests/browser

wheels:
	$(PYTHON) tests/wheels/try_wheels.py --pip-args="$(PIP_ARGS)" $(WHEELS_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff check --preview --select PLW1514 resdeploy benchmarks  # text is UTF-8, whatever the locale
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml setup.py constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[cpu,data]'
	touch $@

$(VENV)/.dev: pyproject.toml setup.py constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

# Apart from what `make test` sees: there the backend is not installed.
$(VENV)/.rtx: constraints.txt $(VENV)/.dev
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt --no-deps --upgrade --target $(VENV)/rtx \
	  tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings
	touch $@

$(VENV)/.browser: tests/browser/package.json $(VENV)/.dev
	@command -v chromium > /dev/null || { echo "make browser needs Chromium: apt-get install chromium"; exit 1; }
	mkdir -p $(VENV)/browser
	cp $< $(VENV)/browser
	npm install --prefix $(VENV)/browser --ignore-scripts --no-package-lock --no-audit --no-fund
	touch $@

# Triton's protobuf is older than onnx's.
$(VENV)/.triton: constraints.txt | $(VENV)/bin/python
	$(PYTHON) -m venv $(VENV)/triton
	$(VENV)/triton/bin/python -m pip install $(PIP_ARGS) 'tritonclient[grpc]==2.73.0'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
