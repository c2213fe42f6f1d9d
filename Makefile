# Everything a newcomer needs: `make demo`, `make test`. Everything a developer adds: `make check`.
PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --constraint deploy/constraints.txt --editable
SERVERS := chromium
# A busy machine makes browsers and servers late: what failed beside others is tried once more by itself, and
# what fails again has failed. Any other end (1 is "tests failed") stays one.
again = { [ $$? = 1 ] && echo "what failed, once more by itself:" && \
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none $(1); }

.PHONY: demo demo-s3 test test-team test-ceph test-models servers check bench clean

# The demo's installation is compiled as it is imported, wherever that is switched off, too.
demo: export PYTHONDONTWRITEBYTECODE =
demo: .venv/installed
	$(BIN)/mixpool demo

demo-s3: .venv/installed-dev
	$(BIN)/python -m tests.demo_on_s3

# Hundreds of processes import what is here: compiled once, wherever that is switched off.
test: export PYTHONDONTWRITEBYTECODE =
test: .venv/installed-dev servers
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder || $(call again)

test-team: export PYTHONDONTWRITEBYTECODE =
test-team: SERVERS := postgresql redis-server
test-team: .venv/installed-dev servers
	$(BIN)/python -m pytest -m team --numprocesses 2 --dist loadfile || $(call again,-m team)

test-ceph: .venv/installed-dev
	command -v radosgw || { apt-get update -q && \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends ceph-mon ceph-osd radosgw; }
	$(BIN)/python -m pytest -m ceph

test-models: .venv/installed-dev
	$(BIN)/python -m pytest -m models

# What tests start beside Python. Who is not root is told what to install; those tests are skipped.
servers:
	@if dpkg --status $(SERVERS) >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ]; then apt-get update -q && \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $(SERVERS); \
	else echo "some tests are skipped; for them: apt-get install $(SERVERS)"; fi

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/installed-dev
	$(BIN)/python -m pytest -m bench
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf .venv demo-store demo-corpus demo-s3 build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Compiling all takes a minute, and what the demo imports ten seconds.
.venv/installed: pyproject.toml deploy/constraints.txt | $(BIN)/python
	$(INSTALL) . --no-compile
	touch $@

# Compiled at once: tests start hundreds of processes. What the demo needs is in it.
.venv/installed-dev: pyproject.toml deploy/constraints.txt | $(BIN)/python
	$(INSTALL) '.[dev]'
	touch .venv/installed $@

# With a pip of today, which finds the versions in less than half the time.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mixpool needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv --upgrade-deps .venv
