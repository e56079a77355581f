# make demo: the main job for real, on the shipped corpora.   make test: format, lint, types, import rules, tests.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
.PHONY: demo test lint clean

demo: .venv/ready
	deploy/demo.sh

test: .venv/ready
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

.venv/ready: pyproject.toml deploy/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "medrag needs Python 3.11 or newer; say PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	python -m pip install --quiet --upgrade pip
	python -m pip install --quiet torch==2.13.0
	python -m pip install --quiet -c deploy/constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv store
