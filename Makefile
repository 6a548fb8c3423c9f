# `make demo` and `make test` need only Python 3.11 or newer; everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: help demo test lint types docs format check bench clean

help:
	@echo "make demo    install into $(VENV) and run the embedded model"
	@echo "make test    install what tests need and run them"
	@echo "make check   lint, types and tests, as CI does"
	@echo "make docs    build the documentation as a site in ./site"
	@echo "make format  put the code into its standard form"
	@echo "make bench   compare load time, prefill and decode with transformers"
	@echo "make clean   remove $(VENV) and caches"

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Quarterdeck needs Python 3.11 or newer; run make PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and by its exact version: a range may pull in a build with gigabytes of GPU libraries
$(VENV)/installed: $(VENV)/made pyproject.toml constraints.txt setup.py $(wildcard src/quarterdeck/kernels/native/*)
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	$(PIP) --editable '.[test,dev]'
	@touch $@

demo: $(VENV)/installed
	@echo '> quarterdeck run --task text-generation "Plants create energy through a process known as"'
	@$(BIN)/quarterdeck run --task text-generation --max-tokens 40 "Plants create energy through a process known as"
	@echo
	@echo '> quarterdeck run "Hello! Who are you?"'
	@$(BIN)/quarterdeck run --max-tokens 60 "Hello! Who are you?"

test: $(VENV)/installed-for-tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-for-tests
	$(BIN)/mypy

$(VENV)/installed-for-docs: $(VENV)/installed
	$(PIP) --editable '.[docs]'
	@touch $@

docs: $(VENV)/installed-for-docs
	$(BIN)/mkdocs build --strict --quiet

check: lint types docs test

format: $(VENV)/installed-for-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed-for-tests
	$(BIN)/python benchmarks/compare_transformers.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist site
