# Every target but help and clean sets up the environment first, which takes
# a few minutes once and no time afterwards.
# PYTHON=python3.12 make ... insists on that interpreter.

SETUP = $(or $(PYTHON),python3) tools/setup_env.py $(if $(PYTHON),--exact)
VENV_PYTHON = .venv/bin/python

# Packages of another Python (a ROS shell sets this) must not leak in.
unexport PYTHONPATH
unexport PYTHONHOME

.PHONY: help setup demo test lint clean

help:
	@echo 'make demo    train, prune, retrain and evaluate on a drawn world'
	@echo 'make test    run the tests'
	@echo 'make lint    check style and spelling'
	@echo 'make setup   make or mend the environment .venv, nothing else'
	@echo 'make clean   delete .venv and what tests and builds left behind'

setup:
	@$(SETUP)

demo: setup
	@$(VENV_PYTHON) tools/demo.py

test: setup
	@$(VENV_PYTHON) -m pytest -m 'not slow' \
		-n logical --maxprocesses 8 --dist worksteal

lint: setup
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m codespell_lib $$(git ls-files -co --exclude-standard)

clean:
	rm -rf .venv .pytest_cache .ruff_cache .coverage htmlcov build dist
	rm -rf mmprune.egg-info
	find mmprune projects tools tests -name __pycache__ -prune \
		-exec rm -rf {} +
