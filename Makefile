# Everything that starts or checks Llamacord. Needs make and Python 3.11 to 3.14 with venv and pip.
# `.venv` is made and filled once; a stamp file in it tells whether the lock has changed since.

PYTHON ?= python3
UV ?= uv
ARGS ?=

TAG := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-input --require-hashes
COMPILE := $(UV) pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock" pyproject.toml
NO_NETWORK := { echo "The packages could not be installed; pip says why above. Check the network and run this again." >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help run chat check test lint format lock clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 18

run: $(VENV)/runtime-$(TAG) ## start the bot on Discord, or in the browser without DISCORD_TOKEN
	@$(BIN)/python -m bot run $(ARGS)

chat: $(VENV)/runtime-$(TAG) ## talk to the bot in this terminal
	@$(BIN)/python -m bot chat $(ARGS)

check: $(VENV)/runtime-$(TAG) ## check settings, model, memory and database, and say what to do
	@$(BIN)/python -m bot check $(ARGS)

test: $(VENV)/dev-$(TAG) ## run the whole test suite
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

lint: $(VENV)/dev-$(TAG) ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

format: $(VENV)/dev-$(TAG) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## choose the versions of all packages again (needs uv)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: https://docs.astral.sh/uv, or make lock UV=path" >&2; exit 1; }
	$(COMPILE) --upgrade --extra playground --output-file requirements.lock
	$(COMPILE) --upgrade --extra playground --extra postgres --extra serve --extra dev --constraints requirements.lock --output-file requirements-dev.lock
	$(COMPILE) --upgrade --extra postgres --extra serve --constraints requirements-dev.lock --output-file requirements-servers.lock
	$(COMPILE) --extra playground --extra postgres --extra serve --extra dev --constraints requirements-dev.lock --format pylock.toml \
		| $(PYTHON) -m benchmarks.record_wheels

clean: ## remove the virtual environment and all caches in this folder, but no data and no model
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find bot engine storage tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/runtime-$(TAG): $(VENV)/made-$(TAG) requirements.lock
	@$(INSTALL) -r requirements.lock || $(NO_NETWORK)
	@touch $@

$(VENV)/dev-$(TAG): $(VENV)/made-$(TAG) requirements.lock requirements-dev.lock
	@$(INSTALL) -r requirements-dev.lock || $(NO_NETWORK)
	@touch $@ $(VENV)/runtime-$(TAG)

$(VENV)/made-$(TAG):
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no $(PYTHON). Install Python 3.11 or newer: sudo apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || { \
		echo "$(PYTHON) is Python $(TAG); Llamacord needs 3.11 to 3.14. With another one: make run PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) has no venv. Install it: sudo apt install python3-venv" >&2; exit 1; }
	@rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@
