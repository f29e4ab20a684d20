# make train: the whole line on the embedded host. make test: everything that CI runs.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --constraint requirements/constraints.txt
# Extra arguments of ansible-playbook: make train ARGS="--tags style -e trainer_hp_num_train_epochs=3"
ARGS ?=
# Files of tests at a time, each file in one process. One more than the cores of a small machine: they often wait.
JOBS ?= 3
SPREAD = -n $(JOBS) --dist loadfile
# An inventory of ours unless ARGS names one.
inventory = $(if $(filter -i% --inventory%,$(ARGS)),,-i inventory/$(1).yml)

.DEFAULT_GOAL := help
.PHONY: help train trust lab molecule test lint types unit integration bench bench-gpu tables lock clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

train: $(VENV)/.controller ## the whole line on the embedded host
	@$(BIN)/ansible-playbook $(call inventory,embedded) playbooks/train_all.yml $(ARGS)

trust: $(VENV)/.controller ## show the key of the host REMOTE_HOST, ask, and trust it
	@$(BIN)/ansible-playbook $(call inventory,remote) playbooks/trust.yml $(ARGS)

lab: $(VENV)/.dev ## a host to play with over SSH, until Ctrl-C (root only)
	@$(BIN)/python -m tests.lab $(ARGS)

molecule: $(VENV)/.dev ## scenarios of the roles on lab hosts (ROLE=checkout: one; ARGS=converge: a step; root only)
	@for role in $(or $(ROLE),$(notdir $(wildcard roles/*))); do (cd roles/$$role && PATH="$(CURDIR)/$(BIN):$$PATH" \
	  MOLECULE_EPHEMERAL_DIRECTORY="$(CURDIR)/.stagegate/molecule/$$role" \
	  molecule --base-config ../../.config/molecule/config.yml $(or $(ARGS),test)) || exit; done

test: lint types unit integration ## everything that CI runs

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/ansible-config validate -t all
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint --offline --strict

types: $(VENV)/.dev
	@$(BIN)/mypy

unit: $(VENV)/.dev
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest $(SPREAD) tests/unit tests/consistency

integration: $(VENV)/.dev
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest $(SPREAD) tests/integration

bench: $(VENV)/.dev ## measure the trainer without a GPU; writes benchmarks/results/cpu.md (ARGS=--long: more rounds)
	@$(BIN)/python benchmarks/suite.py $(ARGS)

bench-gpu: $(VENV)/.dev ## measure on this CUDA host; writes benchmarks/results/gpu.md (ARGS="--minutes 10 --folder DIR")
	@$(BIN)/python benchmarks/gpu.py $(ARGS)

tables: $(VENV)/.controller ## write the generated tables of the README anew
	@$(BIN)/python tests/consistency/readme.py --write

lock: ## write requirements/constraints.txt and trainer.lock anew (ARGS=--upgrade: with newer versions)
	@rm -rf .stagegate/lock && $(PYTHON) -m venv .stagegate/lock
	@.stagegate/lock/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/lock.txt
	@.stagegate/lock/bin/python requirements/lock.py $(ARGS)
	@rm -rf .stagegate/lock

clean: ## remove the environment, the embedded host and the collected outputs
	rm -rf $(VENV) .stagegate outputs

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)

# Stamps: an environment is filled anew when what is pinned has changed.
$(VENV)/.controller: $(BIN)/python requirements/controller.txt requirements/constraints.txt
	@echo "installing the controller's requirements into $(VENV) ..."
	@$(PIP) -r requirements/controller.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.controller requirements/trainer.txt requirements/dev.txt
	@echo "installing everything that tests need into $(VENV) ..."
	@$(PIP) -r requirements/dev.txt
	@touch $@
