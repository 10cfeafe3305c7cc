# Every target does the set-up it needs in .venv; a second run finds its stamps and installs nothing.

PYTHON ?= python3
BIN := .venv/bin

# The environment is complete in itself: a sourced ROS 2 or another Python's settings stay outside.
unexport PYTHONPATH PYTHONHOME AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE RMW_IMPLEMENTATION

# Files of tests with a mark: pytest imports all others for nothing.
files_of = $(shell grep -rl --include='test_*.py' 'mark\.$(1)\b' tests)

.DEFAULT_GOAL := help
.PHONY: help setup demo run test soak-test bench soak docs lint format

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1	/'

setup:  ## install everything into .venv (idempotent)
	@$(PYTHON) scripts/setup_env.py

demo: setup  ## send commands of every kind about images of a simulated camera; images go to demo_output/
	@$(BIN)/flmm demo

run: setup  ## leave the simulated camera, the grounding node and the picking example running, for `flmm ask "..."`
	@$(BIN)/flmm run

test: setup  ## run the tests, four at a time (many wait for nodes); then those about time, with nothing beside them
	@$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not timing and not soak" --durations=25
	@$(BIN)/python -m pytest -m "timing and not soak" --durations=25 $(call files_of,timing)

soak-test: setup  ## a short stress test, and the memory of the nodes over twenty cycles (about a minute)
	@$(BIN)/python -m pytest -m soak --durations=25 $(call files_of,soak)

bench: setup  ## measure what grounding costs on top of plain text generation; figures go to docs/benchmarks/ (about 15 minutes)
	@$(BIN)/flmm bench

soak: setup  ## stress the node over real ROS processes for MINUTES (10); figures go to docs/reliability.json
	@$(BIN)/flmm soak --minutes $(or $(MINUTES),10) --out docs/reliability.json

docs: .venv/flmm_setup/docs  ## build the documents and the API reference as a site in site/, which opens without a network
	@$(BIN)/mkdocs build --quiet

.venv/flmm_setup/docs: requirements-docs.txt | setup
	@$(BIN)/python -m pip install --quiet --requirement $<
	@touch $@

lint: setup  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup  ## let ruff rewrite the files
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
