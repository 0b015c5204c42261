# Each target prepares what it needs by itself; a second run starts at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := .venv-torch
TORCH_VERSION := 2.13.0

.PHONY: help demo serve test test-torch lint bench protos locks clean

help:
	@echo "make demo    train three heads on real data, ask the gateway, measure through it, stop"
	@echo "make serve   run the local stack with the demo heads until Ctrl-C"
	@echo "make test    all tests        make lint   style, types, stubs, images"
	@echo "make test-torch   tests of the PyTorch engines, in an environment of their own"
	@echo "make bench   the quick set of measurements, in ten minutes at most"
	@echo "make protos  stubs from .proto files        make locks  requirements/*.txt from pyproject.toml"

demo: $(VENV)/.run
	@$(BIN)/trunkline demo

serve: $(VENV)/.run
	@exec $(BIN)/trunkline up --demo-heads

test: $(VENV)/.dev
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(ARGS)

test-torch: $(TORCH)/.done
	@HF_HUB_OFFLINE=1 $(TORCH)/bin/python -m pytest tests/torch $(ARGS)

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m clients.wire.generate --check
	@for file in deploy/*.Dockerfile; do $(BIN)/hadolint $$file || exit 1; done
	@$(BIN)/python -m tests.compose

bench: $(VENV)/.dev
	@$(BIN)/python -m perf quick

protos: $(VENV)/.dev
	@$(BIN)/python -m clients.wire.generate

locks: $(VENV)/.dev
	@PATH="$(abspath $(BIN)):$$PATH" sh requirements/compile.sh

clean:
	@rm -rf $(VENV) $(TORCH)

# The environment: pip brings uv (hash-pinned), uv brings the rest, every file of it checked against its hash.
$(VENV)/.bootstrap: requirements/bootstrap.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with PYTHON=… (this is $$($(PYTHON) --version 2>&1))"; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "the venv module of Python is missing; install it (Debian: python3-venv)"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt || \
		{ echo "packages could not be installed; check that the package index can be reached and the disk has 3 GB free, and run this again"; exit 1; }
	@touch $@

define install
	@echo "installing packages ($(1))"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements/$(1).txt || \
		{ echo "packages could not be installed; check that the package index can be reached and the disk has 3 GB free, and run this again"; exit 1; }
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@
endef

$(VENV)/.run: requirements/all.txt pyproject.toml $(VENV)/.bootstrap
	$(call install,all)

$(VENV)/.dev: requirements/dev.txt pyproject.toml $(VENV)/.bootstrap
	$(call install,dev)
	@touch $(VENV)/.run

# PyTorch is pinned by version only: its builds for the CPU and for each CUDA are different files, and which one this machine
# takes is for its package index to say. All else is checked against hashes.
$(TORCH)/.done: requirements/torch.txt Makefile $(VENV)/.bootstrap
	@echo "making $(TORCH)"
	@$(PYTHON) -m venv $(TORCH)
	@$(TORCH)/bin/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH_VERSION) && \
		$(BIN)/uv pip install --quiet --python $(TORCH)/bin/python --no-deps --require-hashes -r requirements/torch.txt || \
		{ echo "packages could not be installed; check that the package index can be reached and the disk has 3 GB free, and run this again"; exit 1; }
	@touch $@
