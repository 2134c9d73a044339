# The book in two commands: `make book` and `make test`. Both set up what is missing first.
# make setup | book | pdf | linkcheck | test | test-pages | test-faults | test-gpu | audit | serve | bench | lint | clean

PYTHON    ?= python3
VENV      ?= .venv
PROFILE   ?= mini
DATASET   ?= flora
SEED      ?= 0
DEVICE    ?=
ARTIFACTS ?= artifacts
PARAMS    ?=
PORT      ?= 8000
TESTS     ?= tests
WORKERS   ?= 2
KILLS     ?= 30
CHROMIUM  ?= chromium
CHAPTERS  ?= 2000
HASHES    ?=
ADVISORIES ?=
LINTED    := kdcdiff tests benchmarks tools notebooks
SETTINGS   = --profile $(PROFILE) --dataset "$(DATASET)" --seed $(SEED) --artifacts "$(ARTIFACTS)" \
             $(if $(DEVICE),--device $(DEVICE)) $(PARAMS)

# OpenMP's threads sleep while they wait, in all that is started here: a busy machine stays usable (book/scaling.md).
export OMP_WAIT_POLICY ?= PASSIVE

BIN   := $(abspath $(VENV))/bin
STAMP := $(VENV)/.kdcdiff-packages
READY := $(VENV)/.kdcdiff-ready

# What pip says, as one line that is written over: a bar of the packages seen so far, and its last words.
define BAR
seen=0
while IFS= read -r line; do
  case $$line in Collecting*|"Requirement already"*) seen=$$((seen < $$1 ? seen + 1 : $$1));; esac
  printf "\r\033[Ksetup: [%-20s] %.72s" "$$(printf "%.$$((20 * seen / $$1))s" '####################')" "$$line"
done
echo
endef
export BAR

.PHONY: help setup book pdf linkcheck notebooks test test-pages test-faults test-gpu lint audit bill serve bench clean
.DEFAULT_GOAL := help

help:
	@echo "make setup                 the environment: $(VENV), pinned packages, this project, a Jupyter kernel"
	@echo "     PYTHON=python3.12  VENV=$(VENV) (for every target)"
	@echo "     HASHES=1: refuse a package whose file is not among requirements.hashes (all but torch and torchvision)"
	@echo "make book                  run every chapter and render the book to _build/html"
	@echo "     PROFILE=smoke|mini|full|paper  DATASET=flora|garden|oxford-102|<image folder>  SEED=0  ARTIFACTS=<folder>"
	@echo "     DEVICE=cpu|cuda (the GPU where there is one)"
	@echo "     PARAMS='-p distill_steps 500 -p temperature 2'"
	@echo "make pdf                   the book on one page, and printed: _build/book.pdf (CHROMIUM=<path>)"
	@echo "make linkcheck             ask for every link of the book (needs the network)"
	@echo "make notebooks             make book, then store its outputs in notebooks/, to be committed"
	@echo "make test                  the tests, the notebooks among them"
	@echo "     TESTS=tests/test_store.py  WORKERS=$(WORKERS)"
	@echo "make test-pages            the rendered book in a browser: accessible, light, nothing cut off (CHROMIUM=<path>)"
	@echo "make test-faults           kill a small road and every command, and finish them; then thousands of executions"
	@echo "     KILLS=$(KILLS)  CHAPTERS=$(CHAPTERS) (0: none)"
	@echo "make test-gpu              the same training, sampling and encoding on a GPU as on the CPU (needs a GPU)"
	@echo "make lint                  ruff, over the notebooks as well, and mypy"
	@echo "make audit                 the pinned packages against recorded advisories: ADVISORIES=<folder or zip>"
	@echo "make bill                  the bill of materials, sbom.cdx.json, anew"
	@echo "make serve                 the rendered book on http://localhost:$(PORT)"
	@echo "make bench                 speed and memory, side by side (not a test)"
	@echo "make clean                 remove artifacts/ and _build/ (not $(VENV))"

setup: $(READY)
	@echo "ready: $(BIN)/kdcdiff, kernel 'kdcdiff' in $(abspath $(VENV))/share/jupyter/kernels"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "setup: Python 3.11 or later is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make setup PYTHON=python3.12" >&2; exit 1; }
	@echo "setup: making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(STAMP): requirements.lock | $(BIN)/python
	@echo "setup: installing $$(grep -c == requirements.lock) pinned packages (the first time: a few minutes, about 2 GB)"
	@$(if $(HASHES),$(BIN)/python -m pip install --disable-pip-version-check --quiet --require-hashes --no-deps \
	  -r requirements.hashes,true)
	@mkdir -p _build
	@{ $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -r requirements.lock; \
	  echo "exit $$?"; } 2>&1 | tee _build/setup.log | sh -c "$$BAR" bar $$(grep -c == requirements.lock)
	@tail -n 1 _build/setup.log | grep -qx 'exit 0' || { tail -n 20 _build/setup.log >&2; exit 1; }
	@$(BIN)/python -m pip check
	@touch $@

$(READY): $(STAMP) pyproject.toml tools/torchvision_cpu.py
	@echo "setup: installing the project and its Jupyter kernel"
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps -e .
	@$(BIN)/python tools/torchvision_cpu.py
	@$(BIN)/python -m ipykernel install --sys-prefix --name kdcdiff --display-name kdcdiff > /dev/null
	@$(BIN)/python -c "import torchvision, torch; print(f'setup: torch {torch.__version__}, torchvision {torchvision.__version__}')"
	@touch $@

book: $(READY)
	@echo "book: running the chapters at profile $(PROFILE) on $(DATASET)"
	@$(BIN)/kdcdiff run $(SETTINGS)
	@$(BIN)/kdcdiff build

# The browser prints what it shows: folded boxes shut, formulas and figures as they are on the page.
pdf: $(READY)
	@$(BIN)/kdcdiff build --builder singlehtml
	@$(CHROMIUM) --headless --no-sandbox --disable-gpu --no-pdf-header-footer --virtual-time-budget=20000 \
	  --print-to-pdf=_build/book.pdf _build/singlehtml/index.html 2> _build/pdf.log || { cat _build/pdf.log >&2; exit 1; }
	@echo "pdf: $(abspath _build/book.pdf)"

linkcheck: $(READY)
	@$(BIN)/kdcdiff build --builder linkcheck

notebooks: book
	@$(BIN)/kdcdiff run $(SETTINGS) --save-outputs

test: $(READY)
	@echo "test: running $(TESTS), the notebooks at profile smoke among them"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --junit-xml _build/test-report.xml $(TESTS)
	@echo "test: passed; the report is in $(abspath _build/test-report.xml)"

test-pages: $(READY)
	@test -f _build/html/index.html || { echo "test-pages: no book yet; make book renders it" >&2; exit 1; }
	@$(BIN)/python -m pytest -q --noconftest tests/book/browser.py

test-faults: $(READY)
	@echo "test-faults: $(KILLS) kills of a road, $$(( $(KILLS) / 5 )) of each command, damage, full disks:" \
	  "about $$(( 5 + $(KILLS) / 6 )) minutes on two idle cores;"
	@echo "test-faults: then a million rows, 10,000 reads and $(CHAPTERS) executions of a chapter:" \
	  "about $$(( 5 + $(CHAPTERS) / 25 )) minutes"
	@OMP_NUM_THREADS=1 KDCDIFF_KILLS=$(KILLS) $(BIN)/python -m pytest -q -m "slow or not slow" tests/faults
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.endurance --chapters $(CHAPTERS)

test-gpu: $(READY)
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { \
	  echo "test-gpu: torch sees no GPU here; \`make test\` runs the same tests on the CPU" >&2; exit 1; }
	@$(BIN)/python -m pytest -m gpu tests/gpu

lint: $(READY)
	@$(BIN)/ruff check $(LINTED)
	@$(BIN)/ruff format --check $(filter-out notebooks,$(LINTED))
	@$(BIN)/mypy
	@echo "lint: clean"

audit: $(READY)
	@$(BIN)/python -m tools.audit "$(ADVISORIES)"

bill: $(READY)
	@$(BIN)/python -m tools.bill

serve: $(READY)
	@test -f _build/html/index.html || { echo "serve: no book yet; make book renders it" >&2; exit 1; }
	@echo "serve: http://localhost:$(PORT) (stop with Ctrl-C)"
	@$(BIN)/python -m http.server --directory _build/html --bind 127.0.0.1 $(PORT)

bench: $(READY)
	@mkdir -p _build/bench
	@set -e; for script in benchmarks/*.py; do \
	  echo "bench: $$script"; $(BIN)/python $$script | tee _build/bench/$$(basename $$script .py).txt; done
	@echo "bench: the tables are in $(abspath _build/bench)"

clean:
	@echo "clean: removing artifacts/ and _build/ (the environment stays; rm -rf $(VENV) removes it)"
	@rm -rf artifacts _build
