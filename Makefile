PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: simulation test test-deploy lint docs bench clean
.DEFAULT_GOAL := simulation

simulation: $(INSTALLED) ## the default run: 8 clients, per-client perplexity before and after
	$(BIN)/fedmops simulate

test: $(INSTALLED) ## all tests, offline, but those of a deployment
	$(BIN)/python -m pytest -m "not deploy"

# Processes are killed while they work: what fails is tried once more, and has to hold then.
DEPLOY := -m pytest -m deploy --numprocesses=2 --dist=load
test-deploy: $(INSTALLED) ## a server and nodes on this machine, what happens when each of them dies, and 20 random kills: 11 minutes
	$(BIN)/python $(DEPLOY) || $(BIN)/python $(DEPLOY) --last-failed --last-failed-no-failures=none

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(INSTALLED) ## rebuild the tables in documents from their JSON
	$(BIN)/python -m simulations.document

bench: $(INSTALLED) ## what a training step, a message and a round cost: about 10 minutes of two cores
	$(BIN)/python -m benchmarks.local_step --batch-size 8
	$(BIN)/python -m benchmarks.wire
	$(BIN)/python -m benchmarks.round_overhead
	$(BIN)/python -m benchmarks.startup

clean: ## remove the environment, caches and runs
	rm -rf $(VENV) build dist *.egg-info runs .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Anew when the dependencies change. TORCH_INDEX names another index for torch, for a CUDA or CPU build.
$(INSTALLED): pyproject.toml
	@echo "setting up $(VENV): some minutes, 1.5 GB with a CPU build of torch"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[dev]'
	@touch $@
