# Every target installs what it needs into .venv, also on a fresh machine. PYTHON names the interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check docs verify clean

demo: .venv/installed          ## train five models on Colored MNIST and write demo/report.html
	$(BIN)/envariant demo

test: .venv/installed-dev      ## run the whole test suite, one process per core
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

check: .venv/installed-dev     ## check lint, formatting, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: .venv/installed-docs     ## build the site in docs/_build/html and execute its examples
	$(BIN)/sphinx-build --fail-on-warning --keep-going --builder html docs docs/_build/html

verify: .venv/installed-dev    ## compare with the published figures, and inject faults
	$(BIN)/python -m pytest -m verify

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ .venv/installed

.venv/installed-docs: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@ .venv/installed

clean:
	rm -rf .venv demo docs/_build docs/api docs/auto_examples docs/benchmarks
