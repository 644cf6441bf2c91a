# make demo      trains, samples and measures the small frames system, and writes a report
# make speech    trains the small speech system: an hour or two
# make test      the fast tests; make test-all adds the slow ones
PYTHON ?= python3.11
WORKDIR ?= runs/frames
BIN := .venv/bin

.PHONY: demo speech test test-all lint

demo: .venv/.installed
	@if [ -n "$(FRESH)" ]; then rm -rf "$(WORKDIR)"; fi
	@$(BIN)/python train_main.py --config=tfvq/configs/frames.py:small --workdir="$(WORKDIR)"

speech: .venv/.installed
	@$(BIN)/python train_main.py --config=tfvq/configs/speech.py:small --workdir=runs/speech

test: .venv/.installed-dev
	@$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: .venv/.installed-dev
	@$(BIN)/python -m pytest -n 2

lint: .venv/.installed-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

# uv installs in parallel and is several times as fast as pip.
.venv/.installed: requirements.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: Python 3.11 is needed; name it with PYTHON=/path/to/python3.11"; exit 2; }
	@echo "installing requirements.txt into .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet uv==0.13.9
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --requirement requirements.txt || $(BIN)/pip install --quiet --requirement requirements.txt
	@touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.txt requirements-piano.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --requirement requirements-dev.txt || $(BIN)/pip install --quiet --requirement requirements-dev.txt
	@$(BIN)/pip install --quiet --no-deps --requirement requirements-piano.txt
	@touch $@
