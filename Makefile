# Every target makes its own environment first. TORCH_INDEX names another package index for torch (a CUDA build, say).
VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
# The folder with the development data sets; tests that need it say so when it is absent.
GRAFT_DATA ?=
export GRAFT_DATA
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false
export GRADIO_ANALYTICS_ENABLED = False

BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

.PHONY: help install quickstart test test-all lint bench demo clean
help:
	@echo "make quickstart   train, evaluate, merge and report the shipped translator on a CPU"
	@echo "make test         the quick suite        make test-all   with the slow tests"
	@echo "make lint         ruff, import-linter, mypy"
	@echo "make bench        the bars that a CPU can measure, quick form"
	@echo "make demo         open the translation demo"

install: $(READY)

# torch goes first and alone: installed with the rest, pip would pick a newer CUDA build of several gigabytes.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[translation,embeddings,quant,rtl,trackers,dev]"
	touch $(READY)

quickstart: $(READY)
	$(BIN)/graft train recipes/translation/quickstart.yaml --force
	$(BIN)/graft merge runs/quickstart/42
	$(BIN)/graft report runs/quickstart/42

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope -m "not slow and not gpu" tests

test-all: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope -m "not gpu" tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy core/config core/errors.py core/costmodel core/distributed core/training recipes

bench: $(READY)
	$(BIN)/python -m benchmarks run all --quick

demo: $(READY)
	$(BIN)/graft demo translation

clean:
	rm -rf $(VENV) build dist *.egg-info
