# One command does everything: `make demo` (or `make test`) sets up .venv first.
# `make help` lists the targets. tools/setup/setup_env.py is what the set-up does.

# Whose mmengine, mmcv, mmdet and mmsegmentation: `make test STACK=onedl` takes the
# maintained continuation, in an environment of its own. The set-up refuses others.
STACK ?= openmmlab
VENV := $(if $(filter openmmlab,$(STACK)),.venv,.venv-$(STACK))

# The Python that .venv is made from: `make demo PYTHON=/path/to/python3.11`.
# Without a choice: that of an existing one, else the first one that is new enough.
ifndef PYTHON
PYTHON := $(shell for python in $(VENV)/bin/python .venv/bin/python \
	python3.11 python3.12 python3.13 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& echo "$$python" && break; done)
endif
NO_PYTHON := No Python 3.11 or newer was found: install one, or name it with PYTHON=...
VENV_PYTHON := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-seg test soak fuzz lint docs clean

help:
	@echo 'make demo      set up if needed, then generate data, train, evaluate, draw'
	@echo 'make demo-seg  the same for segmentation'
	@echo 'make test      set up if needed, then ruff and pytest (PYTEST_ARGS="-k lit")'
	@echo 'make soak      set up if needed, then the tests that take long'
	@echo 'make fuzz      set up if needed, then some thousand hostile files'
	@echo 'make lint      set up if needed, then ruff alone'
	@echo 'make docs      set up if needed, then the documentation: build/docs/index.html'
	@echo 'make setup     create .venv with the pinned stack; does nothing when done'
	@echo 'make clean     remove what the demo and the tests wrote (.venv stays)'
	@echo 'STACK=onedl    the same with the onedl-mm* packages, in .venv-onedl'
	@echo 'PYTHON=...     the interpreter to make .venv from (3.11 or newer)'
	@echo 'MMLIT_DEVICE=cpu|cuda   torch and ops to install (default: by the GPU)'

setup:
	@test -n "$(PYTHON)" || { echo "$(NO_PYTHON)" >&2; exit 1; }
	@"$(PYTHON)" tools/setup/setup_env.py --stack "$(STACK)"

demo: setup
	@$(VENV_PYTHON) tools/demo.py $(DEMO_ARGS)

demo-seg: setup
	@$(VENV_PYTHON) tools/demo.py configs/segmentation/lit-ti_fpn_fpnhead_shapes.py $(DEMO_ARGS)

lint: setup
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .

# Side by side, one process a core: most tests wait for a tool that runs on one.
test: lint
	$(VENV_PYTHON) -m pytest -n auto --maxprocesses 4 --dist worksteal $(PYTEST_ARGS)

# Minutes and more each: whether one hangs is for who waits to say.
soak: setup
	$(VENV_PYTHON) -m pytest -m soak --timeout 0 $(PYTEST_ARGS)

fuzz: setup
	$(VENV_PYTHON) -m pytest -m fuzz --timeout 0 $(PYTEST_ARGS)

# A warning, such as of a link that leads nowhere, is an error.
SITE ?= build/docs
docs: setup
	$(VENV_PYTHON) -m sphinx -W --keep-going -b html docs $(SITE)

clean:
	rm -rf demo/output data/shapes .pytest_cache .ruff_cache build
	find . -name __pycache__ -not -path './.venv*/*' -not -path './.build/*' \
		-prune -exec rm -rf {} +
