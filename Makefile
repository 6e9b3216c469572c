# make demo, make test: everything from a fresh clone, no other step. PYTHON=python3.13 chooses the interpreter.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.sabot$(if $(PYTHON),-with-$(notdir $(PYTHON)))
SOURCES := pyproject.toml setup.py tools/setup.sh $(wildcard sabot/_cython/*.pyx sabot/_cython/*.pxd sabot/_cython/*.h)
DEBUG_BUILD := build/debug
KERNEL_TESTS := $(foreach t,json_kernel json_conformance batch rows partition channel gate compare_kernel keyed window_kernel sessions tables slice_fuzz row_table changes multiset ranked over timers pattern_kernel sketches,tests/unit/test_$(t).py)
SIDE_BY_SIDE := tests/unit tests/pipelines
# Each prints one JSON object as its last line, checks its answer, and takes --rows.
BENCHMARKS := $(sort $(wildcard benchmarks/kernels/*.py benchmarks/pipelines/*.py))

.PHONY: demo test simulate check lint types kernels-debug bench bench-smoke kafka kafka-stop soak clean

demo: $(STAMP)
	@$(BIN)/sabot demo fraud

# Those that need no server and kill nothing go side by side; the others one by one.
test: $(STAMP)
	@$(BIN)/pytest -q -n 2 --dist loadfile $(SIDE_BY_SIDE)
	@$(BIN)/pytest $(addprefix --ignore=,$(SIDE_BY_SIDE))

# Random programs, crashes and rescales in the simulation against DuckDB's answer: SEEDS of them, from START on.
SEEDS ?= 200
START ?= 0
simulate: $(STAMP)
	@$(BIN)/python tests/simulation/seeds.py --seeds $(SEEDS) --start $(START) --workers $(or $(WORKERS),1)

# Ten minutes at full speed with a kill each 20 s, then without: memory, files, threads and disk must have no slope.
soak: $(STAMP)
	@$(BIN)/python tests/recovery/soak.py

# Everything that `make test` does not see: style, types, the kernels with bounds checks and asserts, the benchmarks' answers.
check: lint types kernels-debug bench-smoke

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP)
	$(BIN)/mypy

kernels-debug: $(STAMP)
	SABOT_DEBUG=1 $(BIN)/python setup.py -q build --build-lib $(DEBUG_BUILD) --build-temp $(DEBUG_BUILD)-temp
	SABOT_DEBUG=1 PYTHONPATH=$(DEBUG_BUILD) $(BIN)/pytest -q -m "not slow" $(KERNEL_TESTS) tests/unit/test_package.py

bench bench-smoke: $(STAMP)

bench:
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script; done

bench-smoke:
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script --rows 20000; done

kafka:
	@tools/kafka/kafka.sh start

kafka-stop:
	@tools/kafka/kafka.sh stop

# What was built here. The virtual environment and the broker's jars stay.
clean:
	rm -rf build dist wheelhouse *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f sabot/_cython/*.so $(VENV)/.sabot $(VENV)/.sabot-with-*
	find . \( -path ./$(VENV) -o -path ./.kafka -o -path ./.git \) -prune -o -type d -name __pycache__ -exec rm -rf {} +

# Written last, so that an interrupted set-up is not taken for a finished one; older than a source: built again.
$(STAMP): $(SOURCES)
	@PYTHON="$(PYTHON)" sh tools/setup.sh $(VENV) $(STAMP)
