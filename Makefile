# make demo: the main job for real, on the shipped corpora.   make test: format, lint, types, import rules, tests.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
TOOLS := chromium fonts-noto-cjk nginx-light openssl prometheus rsync shellcheck
.PHONY: demo test lint clean

demo: .venv/ready
	deploy/demo.sh

test: .venv/ready .venv/tools
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

# programs that some tests drive: installed where that can be done, and skipped by name where not
.venv/tools: .venv/ready
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(TOOLS) >/dev/null; \
	else echo "tests that need one of these programs are skipped where it is missing: $(TOOLS)"; fi
	touch $@

clean:
	rm -rf .venv store
