# Everything a clone needs: Python 3.11 or newer, nothing else.
#   make demo            a simulated FreeSWITCH, a real broker, one worker, events as they happen
#   make test            all tests, with real brokers from wheels
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint format check bench bench-commands bench-fleet soak soak-commands soak-memory docs docs-site clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk 'BEGIN {FS = ":.*## "} {printf "  make %-14s %s\n", $$1, $$2}'

# One stamp a set of extras: an install runs again only when pyproject.toml changed.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	@echo "Installing esl-bridge and its brokers into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	@echo "Installing esl-bridge, its brokers and the test tools into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo ## Show it working: make demo ARGS="--for 20 --bus redis"
	@$(BIN)/esl-bridge demo $(ARGS)

# Killed and frozen processes, hundreds of nodes, and a browser need much of the machine: a worker that starves loses its
# lease, which is not what those tests are about. Chaos runs two at a time behind the rest, the others one by one.
CHAOS := tests/chaos tests/integration/test_workers_restart.py
CALM  := tests/browser tests/integration/test_failing_nodes.py

test: $(VENV)/.dev ## Run all tests: make test ARGS="tests/unit -k topics"
	@$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),-n 4 --dist loadgroup $(addprefix --ignore=,$(CHAOS) $(CALM)))
	$(if $(ARGS),,@$(BIN)/python -m pytest -n 2 --dist loadgroup $(CHAOS))
	$(if $(ARGS),,@$(BIN)/python -m pytest $(CALM))

lint: $(VENV)/.dev ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.dev ## Format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.dev ## Events through the bridge, beside relays of users: make bench ARGS="--rounds 3 --json"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@$(BIN)/python tests/benchmarks/events.py $(ARGS)

bench-commands: $(VENV)/.dev ## Cost of a command, beside programs of users: make bench-commands ARGS="--peer-python python"
	@$(BIN)/python tests/benchmarks/commands.py $(ARGS)

bench-fleet: $(VENV)/.dev ## Scale the fleet: make bench-fleet ARGS="--nodes 1000 --workers 16 --bus nats"
	@$(BIN)/python tests/benchmarks/fleet.py $(ARGS)

soak: $(VENV)/.dev ## Kill, freeze and cut workers for minutes: make soak ARGS="--minutes 30 --bus redis"
	@$(BIN)/python -m tests.chaos.soak $(ARGS)

soak-commands: $(VENV)/.dev ## Commands meanwhile, each reply judged: make soak-commands ARGS="--minutes 30 --street 'redis list'"
	@$(BIN)/python -m tests.chaos.soak_commands $(ARGS)

soak-memory: $(VENV)/.dev ## Whether a worker's memory stays flat under load and link cuts: make soak-memory ARGS="--minutes 20"
	@$(BIN)/python -m tests.benchmarks.soak $(ARGS)

check: lint test ## What CI runs

docs: $(VENV)/.dev ## Write the generated parts of the reference anew
	@$(BIN)/python docs/generate.py

docs-site: $(VENV)/.docs ## Build the documentation as a site, in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.docs: $(VENV)/.made pyproject.toml
	@echo "Installing the documentation tools into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

clean: ## Remove what was made here
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
