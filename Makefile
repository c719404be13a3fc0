# Everything runs in .venv, which `make install` sets up and every other target brings about by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check bench calibrate docs screenshots clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## create .venv and install gradwatch with everything that its development needs

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch first and by its exact version, so that no other package brings another build of it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP) ## train a sick and a healthy network on real data, and say what was found
	$(BIN)/gradwatch demo

test: $(STAMP) ## run the tests
	$(BIN)/python -m pytest -n 2

check: $(STAMP) ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP) ## measure what watching costs, beside other tools: docs/performance.md
	$(BIN)/python -m benchmarks.overhead --write

calibrate: $(STAMP) ## measure how right the verdicts are, on the labelled corpus: docs/calibration.md
	$(BIN)/python -m benchmarks.faults.calibrate --out docs/calibration.md

docs: $(STAMP) ## write the generated pages of docs/ anew
	$(BIN)/python docs/generate.py

screenshots: $(STAMP) ## take the pictures of the TensorBoard tab anew, from the demo's runs; needs Chromium
	$(BIN)/python docs/screenshots.py

clean: ## remove what the targets made
	rm -rf $(VENV) $(VENV)-rivals dist runs .mypy_cache .pytest_cache .ruff_cache
