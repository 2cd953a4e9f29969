# Needs Python 3.11 to 3.13 and make; everything else goes into $(VENV).
#
#   PYTHON=python3.13   the interpreter to use; otherwise the first of CANDIDATES that runs and suits
#   VENV=build/py313    where to install, to keep several interpreters side by side
#   WORKERS=0           how many processes share the tests, which mostly wait; 0: this one
#   ARGS="-k pool -x"   more arguments for pytest, trunkline compare or the benchmarks

VENV ?= .venv
WORKERS ?= 3
CANDIDATES = python3 python3.13 python3.12 python3.11
SUITS = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))

RUN = $(VENV)/bin/python -m
PIP = $(RUN) pip --disable-pip-version-check -qq

MADE = $(VENV)/.made
DEMO = $(VENV)/.installed-demo
DEV = $(VENV)/.installed-dev

# A caller's path would put other modules before the installed ones.
unexport PYTHONPATH
# pyright's launcher would ask the package index for a newer release at each run.
export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1

# An environment holds absolute paths: one that was made in another folder, with another
# interpreter than the one asked for, or whose interpreter is gone, is made anew.
ifneq ($(shell test -x $(VENV)/bin/python && sed -n 1p $(MADE) 2>/dev/null),$(CURDIR))
.PHONY: $(MADE)
else ifneq ($(PYTHON),)
ifneq ($(shell sed -n 2p $(MADE)),$(PYTHON))
.PHONY: $(MADE)
endif
endif

.PHONY: help demo test lint bench conformance-cards fault-table bench-quick soak storms venv clean

help:
	@echo "make demo    run a 20-call agent through every backend, cold and pooled, and compare"
	@echo "make test    lint, then all the tests"
	@echo "make lint    ruff, mypy and pyright"
	@echo "make bench   measure side by side with other clients, in under ten minutes; needs nginx"
	@echo "make bench-quick   every figure that has a bar, in a minute; fails below the bars"
	@echo "make fault-table   play every fault against every client and write docs/faults.md (5 minutes)"
	@echo "make soak    mixed traffic, faults, cancels and restarts for SECONDS=600; fails if anything is wrong"
	@echo "make storms  thousands of cancelled calls, and POSTs that race with closing connections"
	@echo "make conformance-cards    write docs/conformance.md anew: every backend's report card"
	@echo "make venv    install everything the other targets need into $(VENV)"
	@echo "make clean   remove .venv, builds and caches"
	@echo
	@sed -n '/^#   /s/^#   /  /p' Makefile

demo: $(DEMO)
	$(VENV)/bin/trunkline compare $(ARGS)

test: lint
	$(RUN) pytest -q -n $(WORKERS) $(ARGS)

lint: $(DEV)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) pyright --pythonpath $(VENV)/bin/python

bench: $(DEV)
	$(RUN) benchmarks full $(ARGS)

bench-quick: $(DEV)
	$(RUN) benchmarks quick $(ARGS)

fault-table: $(DEV)
	$(RUN) tests.faults.table

soak: $(DEV)
	$(RUN) tests.faults.soak $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

storms: $(DEV)
	$(RUN) tests.faults.storms
	$(RUN) tests.faults.races

# The last one is a stranger's, and is installed for this only. niquests brings a fork of urllib3, which
# puts itself in urllib3's place unless it is told not to when it is built; the card is of urllib3.
conformance-cards: $(DEV)
	@URLLIB3_NO_OVERRIDE=1 $(PIP) install --force-reinstall --no-deps --no-binary urllib3-future urllib3-future
	@$(PIP) install --force-reinstall --no-deps 'urllib3>=2.5,<3'
	@$(PIP) install ./examples/backend_urllib3
	-$(RUN) trunkline.testing.conformance aiohttp httpx httpx2 pyreqwest urllib3 \
	    --loops asyncio --patience 3 --markdown docs/conformance.md
	@$(PIP) uninstall --yes trunkline-urllib3

venv: $(DEV)

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE):
	@for python in $(or $(PYTHON),$(CANDIDATES)); do \
	    "$$python" -c '$(SUITS)' >/dev/null 2>&1 && break; python=; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "None of these is a Python 3.11, 3.12 or 3.13 with venv and pip: $(or $(PYTHON),$(CANDIDATES))" >&2; \
	    echo "Install one, or name one: make PYTHON=/path/to/python3.12 ... (on Debian and Ubuntu, venv is in python3-venv)" >&2; \
	    exit 1; \
	fi; \
	echo "Installing into $(VENV) (once), with $$("$$python" -V) ..."; \
	rm -rf $(VENV) && "$$python" -m venv $(VENV)
	@printf '%s\n' "$(CURDIR)" "$(PYTHON)" > $@

$(DEMO): $(MADE) pyproject.toml
	@echo "Installing trunkline and its extras into $(VENV) ..."
	@$(PIP) install --editable '.[all]'
	@touch $@

# pip reads dependency groups from 25.1 on; the one that comes with Python may be older.
$(DEV): $(DEMO)
	@echo "Installing the checkers and the SDKs into $(VENV) ..."
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PIP) install --group dev --group sdk
	@touch $@
