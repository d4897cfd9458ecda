# Works where Python 3.11 or newer and make are: all else is installed by pip into $(VENV),
# at the versions in constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --constraint constraints.txt --editable
SOURCES = pyproject.toml constraints.txt
# Tests that run at a time; a file's tests stay together, since they share what they start. Those
# that start Ray run alone: they take all cores. With ARGS, one of both may have none to run. A process
# that a test ends is not started again, as pytest-xdist would then wait for it for ever.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest
NONE = || test $$? = 5 -a -n "$(ARGS)"

.DEFAULT_GOAL := help
.PHONY: help demo test test-heavy check rules clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/runtime.done ## install, then the whole way on synthetic images, into demo/
	$(BIN)/fetal demo

test: $(VENV)/test.done ## install, then all tests but the heavy ones (ARGS="-k split" selects)
	$(PYTEST) -m "not heavy and not ray" -n $(WORKERS) --dist loadfile \
		--max-worker-restart 0 $(ARGS) $(NONE)
	$(PYTEST) -m "not heavy and ray" $(ARGS) $(NONE)

test-heavy: $(VENV)/test.done ## install, then the tests that only continuous integration runs
	$(PYTEST) -m heavy $(ARGS)

check: $(VENV)/dev.done ## install, then lint, formatting, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

RULES = deploy/kubernetes/base/platform/prometheusrules.yaml
rules: ## copy the alert rules into the Kubernetes manifests
	sed -n '1,/^spec:/p' $(RULES) >$(RULES).new
	sed '/^#/d; s/^./  &/' deploy/monitoring/alerts.yml >>$(RULES).new
	mv $(RULES).new $(RULES)

clean: ## remove the environment and all caches; demo/ and runs/ stay
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		.import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/runtime.done: $(SOURCES) | $(BIN)/pip
	$(INSTALL) .
	@touch $@

$(VENV)/test.done: $(SOURCES) | $(BIN)/pip
	$(INSTALL) ".[test]"
	@touch $(VENV)/runtime.done $@

$(VENV)/dev.done: $(SOURCES) | $(BIN)/pip
	$(INSTALL) ".[dev]"
	@touch $(VENV)/runtime.done $(VENV)/test.done $@

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { \
		echo "error: no $(PYTHON) found. Install Python 3.11 or newer," \
			"or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed." \
			"Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $(PYTHON) has no module venv or ensurepip. On Debian and Ubuntu:" \
			"apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
