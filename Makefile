# Every target works from a fresh clone with Python 3.11 to 3.13, git and make. What it needs goes into .venv; a second call
# re-uses that until pyproject.toml or constraints.txt changes.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin

# TensorFlow, which KerasHub needs to tokenize, has no build for a later Python.
SUPPORTED := import sys; print((3, 11) <= sys.version_info[:2] <= (3, 13))
UNSUPPORTED = keras_bond needs Python 3.11, 3.12 or 3.13. Received: PYTHON=$(PYTHON), which is $(or $(shell \
	$(PYTHON) -c 'import sys; print(sys.version.split()[0])' 2>/dev/null),not there)

# The constraints pin setuptools too, which builds the package: so it comes first, and builds without isolation.
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
comma := ,
define install
	$(PIP) setuptools
	$(PIP) --no-build-isolation -e '.[$(1)]'
endef

export TF_CPP_MIN_LOG_LEVEL ?= 3

# Most of a test's time is one thread's, spent compiling: so as many processes as cores, with a thread each.
PYTEST := OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 $(BIN)/pytest tests -n auto --dist worksteal

# $(call part,NAME,COMMAND): runs the command, and notes the seconds it took for the end of `make test`.
TIMES := $(VENV)/.times
define part
	@echo "$(2)"; start=$$(date +%s); $(2); status=$$?; echo "$(1) $$(($$(date +%s) - start))" >>$(TIMES); exit $$status
endef

.DEFAULT_GOAL := help
.PHONY: help demo test check lint clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'
	@echo 'PYTHON=... names the interpreter (default: python3), ARGS="..." are handed to `keras-bond demo`.'

demo: $(VENV)/.demo  ## J-BOND on the bundled model, minutes on a CPU; ARGS="--seed 1 --steps 50"
	$(BIN)/keras-bond demo $(ARGS)

test:  ## the checks, then all tests on JAX, TensorFlow and Torch, and what each part took
	@rm -f $(TIMES)
	$(call part,install,$(MAKE) $(VENV)/.test)
	$(call part,lint,$(MAKE) lint)
	$(call part,jax,KERAS_BACKEND=jax $(PYTEST))
	$(call part,tensorflow,KERAS_BACKEND=tensorflow $(PYTEST) -m 'not any_backend')
	$(call part,torch,KERAS_BACKEND=torch $(PYTEST) -m 'not any_backend')
	@awk '{ printf "%s %d s, ", $$1, $$2; all += $$2 } END { printf "in all %d s\n", all }' $(TIMES)

check: lint  ## format, lint, types, the examples in docstrings, the direction of imports
	KERAS_BACKEND=jax $(BIN)/pytest tests/test_examples.py tests/test_imports.py

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## remove the environment, caches and build outputs; results in runs/ stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is as new as the last install of its extras.
$(VENV)/.demo: $(VENV)/.created pyproject.toml constraints.txt
	$(call install,jax$(comma)experiments)
	@touch $@

$(VENV)/.test: $(VENV)/.created pyproject.toml constraints.txt
	$(call install,jax$(comma)tensorflow$(comma)torch$(comma)dev)
	@touch $(VENV)/.demo $@

$(VENV)/.created:
	$(if $(filter True,$(shell $(PYTHON) -c '$(SUPPORTED)' 2>/dev/null)),,$(error $(UNSUPPORTED)))
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@touch $@
