# make demo         trains and evaluates the small frames system, and writes a report
# make speech       trains and evaluates the small speech system, in an hour or two
# make test         runs the fast tests on Python 3.11 and TensorFlow 2.17
# make test-newest  runs the fast tests on Python 3.13 and the newest TensorFlow
# make test-all     runs all tests on Python 3.11
# make test-avx2    runs numerical tests with the kernels for CPUs without AVX-512
# make lint         runs the linter
# make docs         builds the documentation as a site in build/site
# make dist         builds the source distribution and the wheel in dist/
# make check-wheel  checks the wheel, installs it in a new environment, and runs it
WORKDIR ?= runs/frames
BIN := .venv/bin
BIN_NEWEST := .venv-newest/bin

# Uses the first interpreter that runs, because a command of pyenv may exist and yet fail.
find_python = $(firstword $(foreach python,python$(1) $(wildcard $(HOME)/.pyenv/versions/$(1).*/bin/python),\
  $(shell $(python) -c "" 2>/dev/null && echo $(python))))
PYTHON ?= $(call find_python,3.11)
PYTHON_NEWEST ?= $(call find_python,3.13)

.PHONY: demo speech test test-newest test-all test-avx2 lint docs dist check-wheel

demo: .venv/.installed
	@if [ -n "$(FRESH)" ]; then rm -rf "$(WORKDIR)"; fi
	@$(BIN)/python train_main.py --config=tfvq/configs/frames.py:small --workdir="$(WORKDIR)"

speech: .venv/.installed
	@$(BIN)/python train_main.py --config=tfvq/configs/speech.py:small --workdir=runs/speech

test: .venv/.installed-dev
	@$(BIN)/python -m pytest -n 2 -m "not slow"

test-newest: .venv-newest/.installed-dev
	@$(BIN_NEWEST)/python -m pytest -n 2 -m "not slow"

test-all: .venv/.installed-dev
	@$(BIN)/python -m pytest -n 2

test-avx2: .venv/.installed-dev
	@ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest -n 2 -m "not slow" \
	  tests/ops_test.py tests/vector_quantizer_test.py tests/quantizer_replicas_test.py tests/codebook_usage_test.py \
	  tests/quantizers_test.py tests/quantizer_formulas_test.py tests/scalar_quantizers_test.py \
	  tests/pixelcnn_test.py tests/fast_wavenet_test.py

lint: .venv/.installed-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

docs: .venv-docs/.installed
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet

dist: .venv/.installed-dev
	@$(BIN)/python -m hatchling build

check-wheel: .venv/.installed-dev
	@$(BIN)/python -m pytest tests/package_test.py

# uv installs in parallel and is several times as fast as pip; pip is the fallback.
.venv/.installed: requirements.txt
	@[ -n "$(PYTHON)" ] || { echo "error: Python 3.11 was not found: set PYTHON=/path/to/python3.11"; exit 2; }
	@echo "installing requirements.txt into .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet uv==0.13.9
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --requirement requirements.txt || $(BIN)/pip install --quiet --requirement requirements.txt
	@touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.txt requirements-piano.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --requirement requirements-dev.txt || $(BIN)/pip install --quiet --requirement requirements-dev.txt
	@$(BIN)/pip install --quiet --no-deps --requirement requirements-piano.txt
	@touch $@

.venv-newest/.installed-dev: requirements-newest.txt requirements-piano.txt
	@[ -n "$(PYTHON_NEWEST)" ] || { echo "error: Python 3.13 was not found: set PYTHON_NEWEST=/path/to/python3.13"; exit 2; }
	@echo "installing requirements-newest.txt into .venv-newest"
	@$(PYTHON_NEWEST) -m venv .venv-newest
	@$(BIN_NEWEST)/pip install --quiet uv==0.13.9
	@$(BIN_NEWEST)/uv pip install --quiet --python $(BIN_NEWEST)/python --requirement requirements-newest.txt || $(BIN_NEWEST)/pip install --quiet --requirement requirements-newest.txt
	@$(BIN_NEWEST)/pip install --quiet --no-deps --requirement requirements-piano.txt
	@touch $@

.venv-docs/.installed: requirements-docs.txt
	@[ -n "$(PYTHON)" ] || { echo "error: Python 3.11 is needed; name it with PYTHON=/path/to/python3.11"; exit 2; }
	@echo "installing requirements-docs.txt into .venv-docs"
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/pip install --quiet --requirement requirements-docs.txt
	@touch $@
