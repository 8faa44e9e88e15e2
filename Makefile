# make demo    train the text-to-SQL model on this machine, then answer a question from a real SQLite database
#              QUESTION="..." asks another one, DB=FILE.sqlite asks another database
# make test    every test          make check   lint, format, types, vulnerabilities    make bench   benchmarks
# make docs    the pages as a site, build/docs/index.html; a dead link is an error
# make torture DRAWS=20            attacks on trainings, 20 tries of most; writes the table of docs/resume-anywhere.md
#
# make PYTHON=/path/to/python      another interpreter (3.10 or newer); VENV=DIR another environment than .venv
# make TORCH_INDEX=URL             another source of torch, for example https://download.pytorch.org/whl/cpu:
#                                  on Linux without a GPU that build is much smaller than PyPI's

# The first that is there and new enough; pyenv's and Microsoft's placeholders fail and are passed over.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && echo $$name && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test check bench docs torture

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

# Half of the cores: threads that fight for busy ones crawl; more than four do not help a model this small.
# FLAGS are further flags of the training.
DEMO ?= runs/demo
QUESTION ?= show the crime books published after 2010
DB ?= demo:bookshop

demo: $(VENV)/.installed
	@echo "This trains a small model on generated questions: about 7 minutes on two CPU cores. Relay evaluates it at four"
	@echo "steps and at the end. The score is execution_accuracy, the share of questions whose SQL returns the right rows:"
	@echo "seen, on databases of the training data; held_out, on databases that the model has never seen."
	@export OMP_NUM_THREADS=$$($(BIN)/python -c 'import os; print(max(1, min(4, (os.cpu_count() or 2) // 2)))') && \
	$(BIN)/relay train --recipe text2sql --output_dir $(DEMO) --resume_from_checkpoint auto $(FLAGS)
	@$(BIN)/relay report $(DEMO) --text
	@echo "relay predict --checkpoint $(DEMO)/final --db $(DB) --question \"$(QUESTION)\""
	@$(BIN)/relay predict --checkpoint $(DEMO)/final --db "$(DB)" --question "$(QUESTION)"

test: $(VENV)/.tested
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest

check: $(VENV)/.tested
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(PIP) pip-audit || true
	@$(BIN)/python .ci/audit.py

# BENCH="loop start" runs some of them. What only tabular's benchmark compares is installed beside the environment.
BENCH ?=
PEERS := build/peers

bench: $(VENV)/.tested $(if $(if $(BENCH),$(filter tabular,$(BENCH)),all),$(PEERS)/.installed)
	@OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/$(PEERS) $(BIN)/python -m tests.benchmarks $(BENCH) --write docs/benchmarks.md

# skrub imports matplotlib; the packages that both lack are named, so that no other torch or numpy comes with them.
$(PEERS)/.installed: $(VENV)/.tested
	@$(PIP) --no-deps --target $(PEERS) tabstar==1.2.2 skrub matplotlib contourpy cycler fonttools kiwisolver pillow pyparsing
	@touch $@

docs: $(VENV)/.tested
	@$(BIN)/python -m sphinx -W --keep-going --quiet -b html docs build/docs
	@echo build/docs/index.html

DRAWS ?= 20
SEED ?= 0

torture: $(VENV)/.tested
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture --draws $(DRAWS) --seed $(SEED) --write docs/resume-anywhere.md

# One line where an interpreter is too old: $(call new_enough,python,what to do)
new_enough = $(1) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	{ echo "error: Relay needs Python 3.10 or newer; $(1) is $$($(1) --version 2>&1): $(2)" >&2; exit 2; }

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: No Python 3.10 or newer was found: install one, or type" \
		"make PYTHON=/path/to/python" >&2; exit 2; }
	@$(call new_enough,$(PYTHON),type make PYTHON=/path/to/python)
	@$(PYTHON) -m venv $(VENV) || { rm -f $(BIN)/python; echo "$(PYTHON) cannot make a virtual environment;" \
		"on Debian and Ubuntu type: sudo apt install python3-venv" >&2; exit 2; }

# The stamps are as new as the last install: nothing is asked of pip until what they depend on changes.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@$(call new_enough,$(BIN)/python,remove the folder $(VENV))
	@echo "Installing into $(VENV); the first time this takes a few minutes."
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@$(if $(HASHES),$(PIP) --require-hashes --no-deps -r $(HASHES))
	@$(PIP) -e .
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	@$(PIP) -e '.[test]'
	@touch $@
