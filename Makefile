# rpo_kit: the two commands of the README and a few more. Run `make` without a target to list them.
#
#   make demo RPO_ARGS="--run second"   extra arguments for `python -m rpo_kit demo`
#   make demo PYTHON=python3.12         which Python to use for .venv (3.11, 3.12 or 3.13)
#   make demo RPO_ROUTE=cpu             do not use the GPU (cpu or gpu; default: gpu if nvidia-smi lists one)
#   make demo RPO_TORCH_INDEX=URL       a package index with torch's CPU build, which the default index lacks on Linux.
#                                       It saves several GB; PyTorch's "Get Started" page gives the URL. Used for torch
#                                       only.
#   make test TEST_ARGS="-k lamp -x"    extra arguments for pytest
#   make gpu-check GPU_CSV=out.csv      where its measurements go (default: runs/gpu_check.csv)
#   make lab LAB_ARGS="--no-browser"    extra arguments for JupyterLab

.DEFAULT_GOAL := help
.PHONY: help install demo rendered test gpu-check lint lab doctor clean

PY := .venv/bin/python
GPU_CSV ?= runs/gpu_check.csv
export PYTHON RPO_ROUTE RPO_TORCH_INDEX
# Otherwise a kernel named python3 in the user's home directory takes precedence over the one in .venv.
export JUPYTER_PREFER_ENV_PATH := 1
# Jupyter refuses to start for root without this. In a container there is often no other user; it listens on localhost.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

help: ## list the commands
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 19

install: ## create .venv and install into it; returns at once if nothing has changed
	@sh scripts/install.sh

demo: install ## run the whole method here: trajectories, SFT, RL, evaluation, Figure 3
	$(PY) -m rpo_kit demo $(RPO_ARGS)

rendered: install ## run the demo as `--run rendered` and write its notebooks to docs/notebooks/, to be read
	$(PY) -m rpo_kit demo --run rendered
	rm -f runs/rendered/notebooks/00_start_here.*  # again, now with the trained module's example
	$(PY) -m rpo_kit demo --run rendered
	$(PY) scripts/render_notebooks.py rendered

test: install ## run the test suite
	$(PY) -m pytest $(TEST_ARGS)

gpu-check: install ## check everything that needs a GPU, in ten minutes; see docs/benchmarks.md
	$(PY) tests/gpu/gpu_check.py $(GPU_CSV)

lint: install ## run ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

lab: install ## open notebooks/ in JupyterLab
	$(PY) -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks $(AS_ROOT) $(LAB_ARGS)

doctor: install ## check this machine and its installation
	$(PY) -m rpo_kit doctor

clean: ## remove .venv and caches, but keep runs/ and figures/
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info unsloth_compiled_cache
	find rpo_kit tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
