# Everything from a clean clone, with Python 3.11 or newer and make. `make help` lists the targets.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help venv demo test fast live stress explore docs validation format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(READY)  ## set up .venv with asid and what its development needs

# One try with pip's own patience, so that a registry that stumbles once does not fail the build.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "asid needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Set PYTHON=python3.12 or such."; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 10 --editable '.[dev]'
	@touch $@

demo: $(READY)  ## a tour: policy none exposes siblings, policy asi does not
	$(BIN)/asid demo

# What computes for minutes and starts no machine goes beside the others, behind them for a CPU; its output comes last.
LONG := tests/explore tests/sim

test: $(READY)  ## format, lint, types, layers and every test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@nice -n 10 $(BIN)/python -m pytest --timeout 180 $(LONG) > $(VENV)/long-tests.log 2>&1 & long=$$!; \
		trap 'kill $$long' INT TERM; \
		$(BIN)/python -m pytest $(LONG:%=--ignore=%); others=$$?; \
		wait $$long; long=$$?; cat $(VENV)/long-tests.log; \
		test $$others -eq 0 || exit $$others; exit $$long

fast: $(READY)  ## the tests that start no process and take no time
	$(BIN)/python -m pytest -m 'not slow and not live and not explore'

live: $(READY)  ## the tests that start real processes
	$(BIN)/python -m pytest -m live

stress: $(READY)  ## 100,000 leaves under kills, stops, NMIs and hotplug
	ASID_STRESS_LEAVES=100000 $(BIN)/python -m pytest -s tests/live/test_live_stress.py

explore: $(READY)  ## every interleaving within the default bounds
	$(BIN)/asid explore

docs: $(READY)  ## write the generated pages of docs/ again
	$(BIN)/asid schema config --markdown > docs/config.md
	$(BIN)/asid schema ops --markdown > docs/protocol.md
	$(BIN)/python -m asid.explore.diagram > docs/states.md
	$(BIN)/python -m asid.report.leaks_page > docs/leaks.md
	$(BIN)/python -m asid.report.costs_page > docs/costs.md
	$(BIN)/python -m asid.report.validation_page > docs/validation.md

validation: $(READY)  ## measure the figures of docs/validation.md anew: some minutes
	$(BIN)/python -m asid.validating > docs/validation/figures.new
	mv docs/validation/figures.new docs/validation/figures.json
	$(MAKE) docs

format: $(READY)  ## let ruff format and sort
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what was built; runs of asid live elsewhere and stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find asid clients tests -name __pycache__ -type d -prune -exec rm -rf {} +
