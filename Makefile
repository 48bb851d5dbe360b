# One way to set up, run and check Whence. `make` alone lists the targets.
#
# Everything is installed into .venv beside this file; the stamps inside it hold the text that was last installed from,
# so that a target reinstalls when pyproject.toml or constraints.txt changed and does nothing otherwise.
# pip follows your own configuration (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf).

VENV := .venv
CLIENTS := .venv-clients
ARTHUR := .venv-arthur
SEEKR := .venv-seekr
AUDIT := .venv-audit
PIP_FLAGS ?= --quiet --quiet --disable-pip-version-check
ARGS ?=
UNCOMPILED := /site-packages/(mypy|opentelemetry|peft|playwright|ray|sympy|torch|transformers)/|/tests/
suits = $(1) -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$(call suits,$$python) && echo $$python && break; done)

# Compiled modules are kept: a server that has to compile PyTorch and transformers first starts in three times as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup dev clients demo test check lint types contracts security bench audit image-check openapi python

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: python ## virtual environment with what serving needs; does nothing when nothing changed
	@if $(call stale,$(VENV),serve,pyproject.toml constraints.txt) \
		&& $(call stale,$(VENV),dev,pyproject.toml constraints.txt); then \
		$(call install,$(VENV),serve,pyproject.toml constraints.txt,-c constraints.txt -e .); fi

dev: python
	@if $(call stale,$(VENV),dev,pyproject.toml constraints.txt); then \
		$(call install,$(VENV),dev,pyproject.toml constraints.txt,-c constraints.txt -e '.[dev]'); fi

clients: python
	@if $(call stale,$(CLIENTS),clients,tests/clients/constraints.txt); then \
		$(call install,$(CLIENTS),clients,tests/clients/constraints.txt,-r tests/clients/constraints.txt); fi
	@if $(call stale,$(SEEKR),clients,tests/clients/constraints-seekr.txt); then \
		$(call install,$(SEEKR),clients,tests/clients/constraints-seekr.txt,--no-deps -r tests/clients/constraints-seekr.txt); fi
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then \
		echo 'make: arthurai runs on Python 3.11 alone: the tests with it are left out (PYTHON=python3.11 brings them).'; \
	elif $(call stale,$(ARTHUR),clients,tests/clients/constraints-arthur.txt); then \
		$(call install,$(ARTHUR),clients,tests/clients/constraints-arthur.txt,-r tests/clients/constraints-arthur.txt); fi

demo: setup ## set up and start the server with the demo models (ARGS="--port 9000")
	@exec $(VENV)/bin/whence demo $(ARGS)

openapi: setup ## write docs/openapi.json anew from the application
	@$(VENV)/bin/whence openapi > docs/.openapi.json && mv docs/.openapi.json docs/openapi.json

check: types lint contracts security ## format, lint, types, import contracts and security, without the tests

lint: dev
	@echo '== format' && $(VENV)/bin/python -m ruff format --check .
	@echo '== lint' && $(VENV)/bin/python -m ruff check .

types: dev
	@echo '== types' && $(VENV)/bin/python -m mypy

contracts: dev
	@echo '== import contracts' && $(VENV)/bin/lint-imports

security: dev
	@echo '== security' && $(VENV)/bin/python -m bandit -q -c pyproject.toml -r app explainers storage alembic demo

test: python ## everything that must hold: the checks, then the tests; what CI runs
	@$(MAKE) --no-print-directory --jobs 2 check clients
	@echo '== tests' && OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --dist loadscope --no-loadscope-reorder $(ARGS)
	@echo 'make test: all checks passed'

bench: dev ## run every benchmark; results under benchmarks/results/
	@for file in benchmarks/[a-z]*.py benchmarks/*/__main__.py; do \
		test -e "$$file" || { echo 'make bench: there are no benchmarks yet' >&2; exit 1; }; \
		name=$${file%/__main__.py}; name=$$(basename "$$name" .py); echo "== $$name"; \
		$(VENV)/bin/python -m "benchmarks.$$name" $(ARGS) || exit 1; done

audit: python ## ask PyPI's security advisories about every pinned version (needs pypi.org)
	@if $(call stale,$(AUDIT),audit,Makefile); then $(call install,$(AUDIT),audit,Makefile,pip-audit==2.10.1); fi
	@$(AUDIT)/bin/python -m pip_audit --disable-pip --no-deps --strict --progress-spinner off -r constraints.txt

image-check: ## build the container image without a Docker engine and start the server in it (root, Debian)
	@.ci/image-check

# -- how an environment is made and filled ---------------------------------------------------------------------------

# $(1) environment, $(2) stamp, $(3) the files it was installed from: true when it has to be installed again.
stale = ! { echo '$(CURDIR)'; cat $(3); } | cmp -s - $(1)/.installed-$(2)

# $(4) pip's arguments. An environment whose Python is gone or too old is made anew. pip compiles on one core, and all that
# it installs; so it does not, and what serves, whose confined processes cannot write, is compiled on all: without the
# largest packages, which these never import and of which a server imports a small part.
define install
$(call suits,$(1)/bin/python) && $(1)/bin/python -m pip --version >/dev/null 2>&1 \
	|| $(PYTHON) -m venv --clear $(1) || exit 1; \
echo "Installing into $(1), which takes a few minutes the first time ..."; \
$(1)/bin/python -m pip install $(PIP_FLAGS) --no-compile $(4) || { \
	echo 'make: pip could not install the packages; its reason stands above.' >&2; \
	echo '      Without internet access, point pip at a mirror (PIP_INDEX_URL) or a folder of wheels (PIP_FIND_LINKS);' >&2; \
	echo '      make PIP_FLAGS= shows all that pip does.' >&2; exit 1; }; \
$(if $(filter $(VENV),$(1)),$(1)/bin/python -m compileall -q -j 0 -x '$(UNCOMPILED)' $(1)/lib >/dev/null 2>&1;) \
{ echo '$(CURDIR)'; cat $(3); } > $(1)/.installed-$(2)
endef

python:
	@$(call suits,$(or $(PYTHON),python3)) || { \
		python='$(or $(PYTHON),python3)'; \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "make: $$python lacks its venv module (Debian, Ubuntu: apt install python3-venv)." >&2; \
		else \
			echo 'make: Whence needs Python 3.11 or newer with venv, and found none.' >&2; \
			echo '      Install one, or name it: make PYTHON=/path/to/python3.12 ...' >&2; \
		fi; exit 1; }
