# make demo   the quickstart on bundled data; everything it makes lands in demo/
# make test   the tests
# make lint   style, formatting and types: ruff and mypy
# make docs   the documentation, in docs/_build/html
# make tutorials  execute the notebooks again and keep their outputs
# make clean  remove the environment and whatever the others left behind

PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test lint docs tutorials clean

demo: .venv/installed
	$(BIN)/python -m sclatent.demo

test: .venv/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: .venv/installed-dev
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

docs: .venv/installed-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

tutorials: .venv/installed-test
	$(BIN)/python tutorials/execute.py

# The stamps are written last, so an environment whose installation was cut short is made again.
.venv/installed: pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "PYTHON=$(PYTHON) is not a command: install Python 3.11, or name an interpreter: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "PYTHON=$(PYTHON) does not run, or is older than Python 3.11: name another one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c "import ensurepip, venv" || { echo "PYTHON=$(PYTHON) cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3.11-venv)" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

clean:
	rm -rf .venv demo docs/_build docs/api/generated docs/tutorials build dist .pytest_cache .ruff_cache .mypy_cache lightning_logs
	find sclatent tests -name __pycache__ -type d -prune -exec rm -rf {} +
