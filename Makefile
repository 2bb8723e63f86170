# Everything a newcomer needs: `make run`, `make test`. `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup run up test check check-types check-rest bench protos lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(READY) ## install everything into .venv

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Parley needs Python 3.11 or newer as $(PYTHON); name another one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "This Python can't make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Setting up .venv (once, about a minute)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

run: $(READY) ## quote, start, watch and export the example batch (on the sandbox where no ANTHROPIC_API_KEY is set)
	@$(BIN)/parley demo

up: $(READY) ## start both services (and the sandbox where no key is set) and leave them running
	@$(BIN)/parley up

test: $(READY) ## run all tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(READY) ## the one gate: lint, types, layers, contract, unit tests with all branches of the domains
	@$(MAKE) --no-print-directory --jobs 2 --output-sync check-types check-rest
	@echo "check: all passed"

check-types: $(READY)
	@$(BIN)/pyright --pythonpath $(BIN)/python

check-rest: $(READY)
	@mkdir -p build
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/lint-imports --no-cache > build/layers.log 2>&1 || { cat build/layers.log; exit 1; }
	@$(BIN)/python protos/generate.py --check
	@$(BIN)/python protos/generate.py --image build/contract.binpb
	@$(BIN)/buf lint build/contract.binpb --config buf.yaml
	@$(BIN)/buf breaking build/contract.binpb --against protos/released.binpb --config buf.yaml
	@rm -f build/.coverage*
	@COVERAGE_FILE=build/.coverage $(BIN)/coverage run -m pytest -q -n 2 tests/unit
	@COVERAGE_FILE=build/.coverage $(BIN)/coverage combine --quiet
	@COVERAGE_FILE=build/.coverage $(BIN)/coverage report --skip-covered

bench: $(READY) ## measure against a plain script, on the same sandbox, in the same run
	@$(BIN)/python -m benchmarks

protos: $(READY) ## regenerate the committed stubs from protos/
	@$(BIN)/python protos/generate.py

lock: $(READY) ## lock the dependencies anew, with hashes
	@uv pip compile pyproject.toml --group dev --universal --generate-hashes --no-emit-index-url --no-header \
	  --python-version 3.11 --quiet --output-file requirements.txt

clean: ## remove the environment, builds and exports (not var/, which holds the databases)
	@rm -rf .venv build out
