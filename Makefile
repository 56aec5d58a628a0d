# The same commands for a person and for CI. `make` alone lists them.
VENV ?= .venv
ARGS ?=
# Processes that share the tests, up to four: one more than cores, because some wait for an arm in real time. A few tests
# are over before a second process has imported everything.
JOBS ?= $(if $(ARGS),0,$(shell expr $$(getconf _NPROCESSORS_ONLN) + 1))
PY := $(VENV)/bin/python
export VENV

# Nothing here may reach for the network or a screen; a test that needs to says so with a marker.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 WANDB_MODE=disabled
HEADLESS := MUJOCO_GL=$(or $(MUJOCO_GL),egl) TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help setup demo libero-demo so101-demo test check docs format bench gpu freeze clean distclean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## environment in .venv with everything tests and demo need (again: does nothing)
	@bash scripts/setup.sh

demo: setup ## train a tiny VLA-0 on simulated demonstrations and watch it act, on a CPU, offline
	$(OFFLINE) $(HEADLESS) PATH="$(abspath $(VENV))/bin:$$PATH" bash examples/metaworld/demo.sh $(ARGS)

libero-demo: setup ## the same on a task of LIBERO with a grasp, on the benchmark's own 50 starts (an hour or more)
	$(OFFLINE) $(HEADLESS) PATH="$(abspath $(VENV))/bin:$$PATH" bash examples/libero/demo.sh $(ARGS)

so101-demo: setup ## the same with a simulated SO-101 that lifts a cube
	$(OFFLINE) $(HEADLESS) PATH="$(abspath $(VENV))/bin:$$PATH" bash examples/so101/demo.sh $(ARGS)

test: setup ## every test that runs offline, simulation included (ARGS="-k codec" narrows; JOBS=0: one process)
	$(OFFLINE) $(HEADLESS) PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m pytest \
	  $(if $(filter-out 0,$(JOBS)),-n $(JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder) $(ARGS)

check: setup ## lint, formatting, types, and that documents match the code
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) scripts/check_repo.py

docs: setup ## rewrite docs/options.md from the docstrings of the configuration
	$(PY) scripts/options_doc.py --write

format: setup ## fix what lint and formatting can fix
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: setup ## every benchmark; each ends with one line of JSON
	@set -e; for script in benchmarks/*.py; do \
	  [ -e "$$script" ] || { echo "bench: no benchmarks yet"; break; }; \
	  echo "== $$script"; $(OFFLINE) $(HEADLESS) $(PY) "$$script" $(ARGS); \
	done

# No `setup` before it: where there is no .venv, python3 may have what is needed (docs/gpu.md).
gpu: ## this package on this machine's GPU, everything in eight minutes (ARGS="--stages passes,chunk")
	@$(OFFLINE) $(HEADLESS) $(if $(wildcard $(PY)),$(PY),python3) benchmarks/gpu.py $(ARGS)

freeze: ## rewrite constraints.txt from the environment
	@bash scripts/freeze.sh

clean: ## remove caches and build leftovers, keep .venv and outputs/
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests examples benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## clean, and remove .venv and outputs/ too
	rm -rf "$(VENV)" outputs
