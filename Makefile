# Each target sets up what it needs in .venv, on a fresh machine too. PYTHON names the interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check verify clean

demo: .venv/installed          ## train five models on Colored MNIST and write demo/report.html
	$(BIN)/envariant demo

test: .venv/installed-dev      ## the whole suite, a process for each core
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

check: .venv/installed-dev     ## lint, format, types, and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

verify: .venv/installed-dev    ## slow statistical checks against the published figures
	$(BIN)/python -m pytest -m verify

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ .venv/installed

clean:
	rm -rf .venv demo
