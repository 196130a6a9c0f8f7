# rpo_kit: the two commands of the README, and a few more. `make` alone lists them.
#
#   make demo RPO_ARGS="--run second"   more arguments for `python -m rpo_kit demo`
#   make demo PYTHON=python3.12         another Python (3.11, 3.12 or 3.13) for .venv
#   make demo RPO_ROUTE=cpu             leave the GPU alone (cpu or gpu; default: gpu where nvidia-smi answers)
#   make demo RPO_TORCH_INDEX=URL       a package index with torch's CPU build, which the default index lacks on Linux;
#                                       it saves several GB. PyTorch's "Get Started" page names one. Asked for torch only.
#   make test TEST_ARGS="-k lamp -x"    more arguments for pytest
#   make lab LAB_ARGS="--no-browser"    more arguments for JupyterLab

.DEFAULT_GOAL := help
.PHONY: help install demo test lint lab doctor clean

PY := .venv/bin/python
export PYTHON RPO_ROUTE RPO_TORCH_INDEX
# A kernel called python3 in the user's home must not stand before the one in .venv.
export JUPYTER_PREFER_ENV_PATH := 1

help: ## list the commands
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

install: ## make .venv and install into it; done at once where nothing has changed
	@sh scripts/install.sh

demo: install ## the whole method on this machine: trajectories, SFT, RL, evaluation, figure
	$(PY) -m rpo_kit demo $(RPO_ARGS)

test: install ## the test suite
	$(PY) -m pytest $(TEST_ARGS)

lint: install ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

lab: install ## JupyterLab, opened in notebooks/
	$(PY) -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks $(LAB_ARGS)

doctor: install ## look the machine over
	$(PY) -m rpo_kit doctor

clean: ## remove .venv and caches; runs/ and figures/ stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info unsloth_compiled_cache
	find rpo_kit tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
