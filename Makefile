# One command does everything: `make demo` (or `make test`) sets up .venv first.
# `make help` lists the targets.

# Whose mmengine, mmcv, mmdet and mmsegmentation: `make test STACK=onedl` takes the
# maintained continuation, in an environment of its own.
STACK ?= openmmlab
ifeq ($(filter openmmlab onedl,$(STACK)),)
$(error STACK is '$(STACK)': expected openmmlab or onedl)
endif
VENV := $(if $(filter openmmlab,$(STACK)),.venv,.venv-$(STACK))
MMCV := $(if $(filter openmmlab,$(STACK)),mmcv,onedl-mmcv)
PY := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup mim demo demo-seg test test-all soak fuzz lint docs lock licences clean

help:
	@echo 'make demo      set up if needed, then generate data, train, evaluate, draw'
	@echo 'make demo-seg  the same for segmentation'
	@echo 'make test      set up if needed, then ruff and the tests that take seconds'
	@echo '               (PYTEST_ARGS="-k lit" chooses some)'
	@echo 'make test-all  the same with the tests that take longer'
	@echo 'make soak      set up if needed, then the tests that take minutes each'
	@echo 'make fuzz      set up if needed, then some thousand hostile files'
	@echo 'make lint      set up if needed, then ruff alone'
	@echo 'make docs      set up if needed, then the documentation: build/docs/index.html'
	@echo 'make setup     create .venv with the pinned stack; does nothing when done'
	@echo 'make mim       an environment for mim over that, in .build/mim'
	@echo 'make lock      write requirements/*.lock anew, after a change of a *.in'
	@echo 'make licences  write the table of docs/licences.md anew'
	@echo 'make clean     remove what the demo and the tests wrote (.venv stays)'
	@echo 'STACK=onedl    the same with the onedl-mm* packages, in .venv-onedl'
	@echo 'PYTHON=...     the interpreter to make .venv from (3.11 or newer)'
	@echo 'MMLIT_DEVICE=cpu|cuda   torch and ops to install (default: by the GPU)'

# --- the set-up: one stamp a step, so that it does nothing twice and can be interrupted

# The Python that .venv is made from; by default that of an existing one, else the first
# one that is new enough.
ifndef PYTHON
PYTHON := $(shell for python in $(PY) .venv/bin/python python3.11 python3.12 python3.13 \
	python3; do "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1 && echo "$$python" && break; done)
endif
DEVICE := $(or $(MMLIT_DEVICE),$(shell if [ -e /proc/driver/nvidia/version ] || \
	nvidia-smi -L 2>/dev/null | grep -q 'GPU '; then echo cuda; else echo cpu; fi))
ifeq ($(filter cpu cuda,$(DEVICE)),)
$(error MMLIT_DEVICE is '$(DEVICE)': expected cpu or cuda)
endif
# What the steps depend on beside files; empty if this Python does not serve.
KEY := $(shell "$(PYTHON)" -c 'import sys, zlib; v = sys.version_info; v < (3, 11) or \
	print("%d.%d.%d-%s-%x" % (*v[:3], sys.argv[1], zlib.crc32(repr((sys.argv, sys.version, \
	sys.base_prefix)).encode())))' $(DEVICE) "$(CURDIR)" "$(CUDA_HOME)" 2>/dev/null)
STAMPS := $(VENV)/.stamps/$(KEY)

# Runs a command while no other set-up is at work in this checkout. The lock ends with
# the last process that holds it, such as a compiler that a killed set-up left behind.
define LOCKED
import fcntl, os, sys
os.makedirs('.build', exist_ok=True)
lock = os.open('.build/setup.lock', os.O_CREAT | os.O_RDWR)
os.set_inheritable(lock, True)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print('[setup] waiting for another set-up in this checkout', flush=True)
    fcntl.flock(lock, fcntl.LOCK_EX)
os.execvp(sys.argv[1], sys.argv[1:])
endef
export LOCKED
# Another Python's modules, and settings of pip that aim elsewhere, are kept out.
CLEAN := env -u PYTHONPATH -u PYTHONHOME -u PIP_TARGET -u PIP_PREFIX -u PIP_ROOT \
	PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
SUBMAKE = env -u MAKEFLAGS $(MAKE) --no-print-directory STACK=$(STACK) PYTHON="$(PYTHON)"

setup: GOAL = $(STAMPS)/mmlit
mim: GOAL = .build/mim/$(KEY)
setup mim:
	@test -n "$(KEY)" || { echo '[setup] stopped: no Python 3.11 or newer was found' \
	'(PYTHON is "$(PYTHON)"): install one, or name it with PYTHON=...' >&2; exit 1; }
	@$(SUBMAKE) -q $(GOAL) || $(CLEAN) "$(PYTHON)" -c "$$LOCKED" $(SUBMAKE) $(GOAL)

WHO := import sys; print(sys.version, sys.base_prefix)
BASE = $$("$(PYTHON)" -c 'import sys; print(sys._base_executable)')
# A sound .venv of this Python is adopted; `activate` is the last file of a new one.
$(STAMPS)/venv:
	@rm -rf $(VENV)/.stamps
	@[ -f $(VENV)/bin/activate ] && $(PY) -m pip --version >/dev/null 2>&1 && \
	[ "$$($(PY) -c '$(WHO)')" = "$$("$(PYTHON)" -c '$(WHO)')" ] || { \
	echo '[setup] making $(VENV)'; "$(BASE)" -m venv --clear $(VENV); } || { \
	echo '[setup] stopped: a virtual environment could not be created (Debian, Ubuntu:' \
	'sudo apt-get install python3-venv)' >&2; exit 1; }
	@mkdir -p $(@D) && touch $@

# What a killed pip leaves, and takes for an installed package afterwards.
SITE_PACKAGES = $(VENV)/lib/python3*/site-packages
MEND = for info in $(SITE_PACKAGES)/*.dist-info; do [ -f "$$info/RECORD" ] || \
	rm -rf "$$info"; done; rm -rf $(SITE_PACKAGES)/~*
INSTALL = $(PY) -m pip install --no-deps
# Wheels only: a source build takes long and needs tools. These have none.
LOCKED_INSTALL = $(INSTALL) -q --require-hashes --no-build-isolation --only-binary :all: \
	--no-binary fvcore,iopath,onedl-mmdetection,onedl-mmsegmentation
FAILED = { echo '[setup] stopped: pip says above why. If hashes do not match, the package' \
	'index serves other files than PyPI (docs/security.md); if no space is left, free' \
	'about 3 GB; else the same command goes on where this stopped' >&2; exit 1; }

$(STAMPS)/build: requirements/build.lock $(STAMPS)/venv
	@echo '[setup] installing pip and the build tools'
	@$(MEND)
	@$(LOCKED_INSTALL) -r $< || $(FAILED)
	@touch $@

# An OpenCV beside the headless one has the same files: it goes, and they come anew.
OPENCV := $(wildcard $(SITE_PACKAGES)/opencv_python-*.dist-info \
	$(SITE_PACKAGES)/opencv_contrib_python*.dist-info)
$(STAMPS)/packages: requirements/common.lock requirements/$(STACK).lock $(STAMPS)/build $(OPENCV)
	@echo '[setup] installing the packages, a minute or two'
	@$(MEND)
	@$(if $(OPENCV),$(PY) -m pip uninstall -q -y opencv-python opencv-contrib-python \
	opencv-contrib-python-headless opencv-python-headless)
	@$(LOCKED_INSTALL) -r $< -r requirements/$(STACK).lock || $(FAILED)
	@touch $@

TORCH := $(shell sed -n 's/^torch==//p' requirements/torch.txt)
FITS := import sys, torch; sys.exit(torch.__version__.partition("+")[0] != "$(TORCH)" \
	or bool(torch.version.cuda) != ("$(DEVICE)" == "cuda"))
$(STAMPS)/torch: requirements/torch.txt $(STAMPS)/packages
	@$(MEND)
	@$(PY) -c '$(FITS)' 2>/dev/null || { $(PY) -m pip uninstall -q -y torch; \
	echo '[setup] installing torch $(TORCH) for $(DEVICE)'; $(INSTALL_TORCH); }
	@touch $@
CPU_INDEX := https://download.pytorch.org/whl/cpu
ifeq ($(DEVICE),cuda)
INSTALL_TORCH = $(PY) -m pip install -c requirements/build.in -c requirements/common.in \
	torch==$(TORCH) || $(FAILED)
else ifeq ($(shell uname),Linux)
# PyPI's own has CUDA, several GB. An index out of reach answers late or never.
INSTALL_TORCH = $(INSTALL) torch==$(TORCH)+cpu || { \
	echo "[setup] not there; trying PyTorch's own index, $(CPU_INDEX)"; $(INSTALL) \
	--timeout 15 --retries 1 --index-url $(CPU_INDEX) torch==$(TORCH)+cpu; } || { \
	echo '[setup] stopped: neither the index of pip nor $(CPU_INDEX) gave' \
	'torch==$(TORCH)+cpu. Make one reachable, or install a CPU torch of that version' \
	'into $(VENV), or take the CUDA build (several GB) with MMLIT_DEVICE=cuda; then' \
	'run the same command again' >&2; exit 1; }
else
INSTALL_TORCH = $(INSTALL) torch==$(TORCH) || $(FAILED)
endif

$(STAMPS)/mmcv: requirements/$(MMCV).lock $(STAMPS)/torch
	@$(MEND)
	@$(PY) tools/setup/build_mmcv.py --lock $< $(if $(filter cuda,$(DEVICE)),--cuda)
	@touch $@

$(STAMPS)/mmlit: setup.py pyproject.toml mmlit/version.py $(STAMPS)/mmcv
	@$(INSTALL) -q --no-build-isolation --config-settings editable_mode=compat -e . || $(FAILED)
	@touch $@
	@echo '[setup] complete: source $(VENV)/bin/activate'

# openmim brings old versions of what .venv has newer: an environment of its own, whose
# packages come first, and behind them those of .venv.
PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))
.build/mim/$(KEY): requirements/mim.lock $(STAMPS)/mmlit
	@echo '[setup] making .build/mim'
	@"$(BASE)" -m venv --clear .build/mim
	@.build/mim/bin/python -m pip install -q --no-deps --require-hashes \
	--only-binary :all: -r $< || $(FAILED)
	@$(PY) -c '$(PURELIB)' > "$$(.build/mim/bin/python -c '$(PURELIB)')/stack.pth"
	@.build/mim/bin/python -c 'import mim.commands, mmcv.ops, mmdet'
	@touch $@

# --- what it is for

demo: setup
	@$(PY) tools/demo.py $(DEMO_ARGS)

demo-seg: setup
	@$(PY) tools/demo.py configs/segmentation/lit-ti_fpn_fpnhead_shapes.py $(DEMO_ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# Side by side, one process a core: most tests wait for a tool that runs on one.
PYTEST := $(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal --durations=15
test: lint
	$(PYTEST) -m 'not slow and not soak and not fuzz' $(PYTEST_ARGS)

test-all: lint $(if $(filter openmmlab,$(STACK)),mim)
	$(PYTEST) -m 'not soak and not fuzz' $(PYTEST_ARGS)

# Minutes and more each: whether one hangs is for who waits to say.
soak: setup
	$(PY) -m pytest -m soak --timeout 0 $(PYTEST_ARGS)

fuzz: setup
	$(PY) -m pytest -m fuzz --timeout 0 $(PYTEST_ARGS)

# A warning, such as of a link that leads nowhere, is an error.
SITE ?= build/docs
docs: setup
	$(PY) -m sphinx -W --keep-going -b html docs $(SITE)

# The lists are closed, so nothing is resolved: the hashes are those of all files of each
# release, for all platforms.
lock:
	"$(PYTHON)" -m venv .build/uv
	.build/uv/bin/python -m pip install -q uv==0.13.9
	for list in requirements/*.in; do .build/uv/bin/uv pip compile -q --upgrade \
	--no-deps --generate-hashes --no-annotate --no-emit-index-url --python-version 3.11.7 \
	-b requirements/build.in --custom-compile-command 'make lock' \
	"$$list" -o "$${list%.in}.lock" || exit; done

# From what is installed; the text above the table stays.
licences: mim
	$(MAKE) setup STACK=onedl
	"$(PYTHON)" -m venv .build/licences
	.build/licences/bin/python -m pip install -q pip-licenses==5.5.5
	{ sed '/^|---/q' docs/licences.md; for env in .venv .venv-onedl .build/mim; do \
	.build/licences/bin/pip-licenses --python $$env/bin/python --from=mixed --format=csv \
	--with-system --ignore-packages mmlit || exit; done | sed -n -e 's/+cpu//' \
	-e 's/^"\([^"]*\)","\([^"]*\)","\([^"]*\)"\{0,1\}$$/| \1 | \2 | \3 |/p' | grep -v '^| Name ' | \
	LC_ALL=C sort -fu; } > .build/licences.md
	mv .build/licences.md docs/licences.md

clean:
	rm -rf demo/output data/shapes .pytest_cache .ruff_cache build
	find . -name __pycache__ -not -path './.venv*/*' -not -path './.build/*' \
		-prune -exec rm -rf {} +
