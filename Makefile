# Every target sets up what it needs: a virtual environment in .venv, made once and again when the requirements change.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: quickstart test test-slow check bench clean

quickstart: $(READY)  ## train a small MoE-X on synthetic games, read it, draw what its features track
	$(BIN)/glassmoe quickstart

test: $(READY)  ## the test suite, under ten minutes on two cores
	$(BIN)/pytest -n 2 -m "not slow"

test-slow: $(READY)  ## the tests that need longer
	$(BIN)/pytest -m slow

check: $(READY)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## speed as ratios, side by side in one run; NANOGPT=, PEER=, MONET=a checkout each add a peer; half an hour, keep the machine quiet
	$(BIN)/glassmoe bench --quickstart $(if $(NANOGPT),--nanogpt $(NANOGPT)) $(if $(PEER),--peer-pytorch $(PEER)) \
	  $(if $(MONET),--monet $(MONET)) --out results/bench-cpu.json

clean:
	rm -rf .venv

# torch goes first and alone: with it in place nothing that follows brings another build of it.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt "pip>=25.1"
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt --group dev -e ".[chess,plots]"
	touch $(READY)
