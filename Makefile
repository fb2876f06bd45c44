# `make` alone lists the targets. PYTHON names the interpreter that .venv is made from:
#   make setup PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two at a time: most tests use one core, many wait for processes that they have started.
PARALLEL := -n 2 --dist loadfile
# Newer than both files it depends on: the environment is up to date, and nothing is done.
STAMP := $(VENV)/.setup-done

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow test-all lint format bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install memlens with all tools into it (once)
	@echo "==> $(VENV) is ready"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "memlens needs Python 3.10 or newer; name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@echo "==> making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || \
	    { echo "the venv module does not work; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "==> installing memlens and its tools into $(VENV) (a first time loads PyTorch: minutes, and up to 6 GB of disk)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $@

demo: setup ## profile a short training of a small Llama and print the report
	@run="memlens-runs/demo-$$(date +%Y%m%d-%H%M%S)-$$$$" && \
	echo "==> memlens run --out $$run examples/language_model.py --steps 8" && \
	$(BIN)/memlens run --out "$$run" examples/language_model.py --steps 8 && \
	echo "==> memlens report $$run" && \
	$(BIN)/memlens report "$$run" && \
	printf '%s\n' \
	    "" \
	    "To see more:" \
	    "  the five names of the published charts:  $(BIN)/memlens report $$run --rollup" \
	    "  everything, for programs:                $(BIN)/memlens report $$run --json" \
	    "  the timeline, in a browser:              $(BIN)/memlens view $$run" \
	    "  curves and pictures in TensorBoard:      $(BIN)/memlens export $$run --to tensorboard" \
	    "  your own training, unchanged:            $(BIN)/memlens run your_script.py its arguments" \
	    "  the same with other optimizers:          $(BIN)/memlens compare examples/language_model.py --optimizer adamw,adamw-r,lion" \
	    "  all commands:                            $(BIN)/memlens --help"

test: setup ## run the tests, without the slow ones
	@echo "==> tests"
	@$(BIN)/pytest -q $(PARALLEL) -m "not slow"

test-slow: setup ## run the slow tests only
	@echo "==> slow tests"
	@$(BIN)/pytest -q -m slow

test-all: setup ## run all tests
	@echo "==> all tests"
	@$(BIN)/pytest -q

lint: setup ## check style and types
	@echo "==> ruff check" && $(BIN)/ruff check -q .
	@echo "==> ruff format --check" && $(BIN)/ruff format -q --check .
	@echo "==> mypy --strict" && $(BIN)/mypy
	@echo "==> README's table of optimizers" && $(BIN)/python tools/readme_tables.py --check

format: setup ## rewrite the code in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup ## measure what profiling costs, our optimizers side by side with others, the pages and exports
	@$(BIN)/python tools/bench.py
	@$(BIN)/python tools/bench_optim.py
	@$(BIN)/python tools/bench_live.py
	@$(BIN)/python tools/bench_web.py
	@$(BIN)/python tools/bench_exports.py

clean: ## remove .venv, caches and build outputs; captures in memlens-runs/ stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
