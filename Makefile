# Everything here makes .venv first, once, and needs nothing but Python >= 3.11 and make.
#
#   make demo      start the server on the bundled model, ask it, and check what is promised
#   make serve     serve the bundled model on port 30000 (ARGS="--port 8000 ..." for more)
#   make test      the test suite (ARGS="tests/verify -k prefix" for a part of it)
#   make clients   install what the tests try the server with besides (large); without it they are skipped
#   make fuzz      two minutes of hostile requests
#   make schedules 2,020 simulated schedules of the fake model and 101 of a tiny real one
#   make gpu-results           every check and figure of results/ that one GPU gives, about half an hour (CARD=h200 names
#                              the files); a command that fails does not keep the next from running
#   make gpu-results-parallel  those of several GPUs (TP=2)
#   make check     formatter, linter, type checker
#   make format    rewrite the sources as the formatter wants them
#   make clean     remove .venv and every cache
#
# Variables: PYTHON=python3.12  TORCH='torch==2.13.0'  TORCH_INDEX=https://...  (one more index, for torch alone)
#            VENV=.venv-other   ARGS=...   JOBS=2 (processes of the test suite; 0: this one)

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
VENV ?= .venv
ARGS ?=
JOBS ?= 2
CARD ?= gpu
TP ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUNTIME := $(VENV)/.runtime-installed
DEVELOPMENT := $(VENV)/.development-installed
CLIENTS := $(VENV)/.clients-installed

.PHONY: demo serve test clients fuzz schedules gpu-results gpu-results-parallel check format clean venv
.DEFAULT_GOAL := demo

demo: $(RUNTIME)
	$(BIN)/samebits demo $(ARGS)

serve: $(RUNTIME)
	$(BIN)/samebits serve $(ARGS)

test: $(DEVELOPMENT)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

clients: $(CLIENTS)

fuzz: $(CLIENTS)
	SAMEBITS_FUZZ_SECONDS=60 $(BIN)/python -m pytest tests/fuzz $(ARGS)

schedules: $(DEVELOPMENT)
	$(BIN)/samebits verify schedules --n-trials 2121 $(ARGS)

SAMEBITS := $(BIN)/samebits
DUMMY := --load-format dummy --device cuda --max-new-tokens 8

gpu-results: $(DEVELOPMENT)
	-$(BIN)/python -m pytest tests/gpu -m gpu
	-$(SAMEBITS) bench attention --output results/attention-$(CARD).json --plot results/attention-$(CARD).png
	-$(SAMEBITS) bench decode --output results/decode-$(CARD).json --plot results/decode-$(CARD).png
	-$(SAMEBITS) bench decode --profiles exact tp-invariant --batches 1 32 128 --output results/decode-tp-invariant-$(CARD).json
	-$(SAMEBITS) bench prefill --output results/prefill-$(CARD).json --plot results/prefill-$(CARD).png
	-$(SAMEBITS) bench prefill --profiles exact --step-tokens 16896 --output results/prefill-16896-$(CARD).json
	-$(SAMEBITS) bench prefill --profiles exact tp-invariant --output results/prefill-tp-invariant-$(CARD).json
	-$(SAMEBITS) bench serving --output results/serving-$(CARD).json --plot results/serving-$(CARD).png
	-$(SAMEBITS) bench start --output results/start-$(CARD).json
	-$(SAMEBITS) bench gemm --output results/gemm-$(CARD).json --plot results/gemm-$(CARD).png
	-$(SAMEBITS) bench row-parallel --output results/row-parallel-$(CARD).json
	-$(SAMEBITS) bench logprobs --device cuda --output results/logprobs-$(CARD).json
	-$(SAMEBITS) verify all --device cuda --json > results/verify-$(CARD).json
	-$(SAMEBITS) verify covering --model qwen3-8b-shaped-8-layers $(DUMMY) --json > results/covering-$(CARD)-qwen3.json
	-$(SAMEBITS) verify covering --model llama-3.1-8b-shaped-8-layers $(DUMMY) --json > results/covering-$(CARD)-llama.json

gpu-results-parallel: $(DEVELOPMENT)
	-$(BIN)/python -m pytest tests/gpu/test_ranks_on_device.py
	-$(SAMEBITS) bench allreduce --ranks $(TP) --output results/allreduce-$(CARD)x$(TP).json
	-$(SAMEBITS) bench parallel --tp $(TP) --model qwen3-8b-shaped --load-format dummy --prompt-steps 8192 2048 \
		--contenders exact tp-invariant --output results/parallel-8b-tp$(TP)-$(CARD).json
	-$(SAMEBITS) bench parallel --tp $(TP) --model qwen3-32b-shaped --load-format dummy --step-tokens 2048 --at-once 2 \
		--contenders exact tp-invariant unpinned --output results/parallel-32b-tp$(TP)-$(CARD).json
	-$(SAMEBITS) bench parallel --tp $(TP) --model llama-3.1-70b-shaped --load-format dummy --step-tokens 2048 --at-once 1 \
		--contenders exact tp-invariant unpinned --output results/parallel-70b-tp$(TP)-$(CARD).json

check: $(DEVELOPMENT)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(DEVELOPMENT)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

venv: $(DEVELOPMENT)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch is asked for first and by its exact version: where pip knows a CPU build of it, that one is taken, and
# the package, whose range it satisfies, then brings no other.
$(RUNTIME): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Samebits needs Python 3.11 or newer: make PYTHON=/path/to/python3"; exit 1; }
	@echo "Making $(VENV): a minute or two, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --upgrade 'pip>=25.1'
	@echo "Installing $(TORCH)"
	@$(PIP) install --quiet $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)') '$(TORCH)'
	@echo "Installing samebits and what it needs"
	@$(PIP) install --quiet --editable .
	@touch $@

$(DEVELOPMENT): $(RUNTIME)
	@echo "Installing the development tools"
	@$(PIP) install --quiet --group dev
	@touch $@

$(CLIENTS): $(DEVELOPMENT)
	@echo "Installing clients: two minutes, once"
	@$(PIP) install --quiet --group clients
	@touch $@
