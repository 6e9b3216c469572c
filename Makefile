# make demo, make test: everything from a fresh clone, no other step. PYTHON=python3.13 chooses the interpreter.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.sabot$(if $(PYTHON),-with-$(notdir $(PYTHON)))
SOURCES := pyproject.toml setup.py tools/setup.sh $(wildcard sabot/_cython/*/*.pyx sabot/_cython/*/*.pxd sabot/_cython/*/*.h)
DEBUG_BUILD := build/debug
SANITIZED_BUILD := build/sanitized
KERNEL_TESTS := tests/unit/_cython $(addprefix tests/unit/engine/,operators/windows/test_sessions.py operators/keyed/test_over.py operators/keyed/test_ranked.py operators/changes/test_changes.py state/tables/test_tables.py)
# Each prints one JSON object as its last line, checks its answer, and takes --rows. A row of an agent is a job, or a call.
BENCHMARKS := $(sort $(wildcard benchmarks/kernels/*.py benchmarks/pipelines/*.py))
AGENT_BENCHMARKS := $(sort $(wildcard benchmarks/agents/*.py))
DRAWN = $(BIN)/python tests/tools/drawing.py $(ONE_IN)

# Workers import hundreds of tests, and hundreds of them start a child: nothing of this is compiled anew each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all slow ray simulate fuzz check lint types kernels-debug bench bench-compare bench-smoke smokes docs docs-serve pictures kafka kafka-stop soak clean

demo: $(STAMP)
	@$(BIN)/sabot demo fraud

# All tests but those marked `slow`. More workers than cores: many tests wait, for a broker or for a process that dies.
# The order of the files is that of tests/conftest.py; xdist would begin with those that have the most tests. A worker collects a file when
# its turn comes (tests/tools/turns.py), so how many tests there are is known at the end, and no percentage is shown.
# pytest-benchmark is for benchmarks/changes, and would look at each test.
test: $(STAMP)
	@$(BIN)/pytest -q -p no:benchmark -o console_output_style=classic -n 6 --dist loadfile --no-loadscope-reorder --max-worker-restart 1 -m "not slow" tests

# What takes longer too: the tests that mostly wait, and beside them simulated programs, which compute, some 0.5 s each. A fault that one
# program in 200 shows is met by 400 with 87 %, and each commit has other ones. Their two processes let the tests go first, and have both
# cores when these have ended. More of them: make simulate SEEDS=…
COMMITS = $(shell git rev-list --count HEAD 2>/dev/null || echo 0)
test-all: test
	@$(MAKE) -j 2 slow simulate SEEDS=400 START=$$(($(COMMITS) * 400)) WORKERS=2

# Crashes at 80 steps of each whole pipeline, packages, kills of an app on Kafka, the cases that `make test` leaves out, and properties, of
# whose examples it tries some: of all these tests one in six, with each commit other ones. EVERY=1: all of them, at all steps (25 minutes).
slow: $(STAMP)
	@$(BIN)/pytest -q -p no:benchmark -o console_output_style=classic -n 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 1 -m "slow or hypothesis" $(if $(EVERY),,--one-in 6) tests

# Workers on a Ray cluster of two nodes on this machine, whose nodes are killed and paused. Apart from `make slow`, which has these tests only
# where Ray is installed: they take a minute of a core each, most of it for Ray's own processes.
ray: $(STAMP)
	@$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check 'sabot[ray]'
	@SABOT_REQUIRE_RAY=1 $(BIN)/pytest -q -p no:benchmark tests/recovery/test_workers_ray.py

# Random programs, crashes and rescales in the simulation against DuckDB's answer: SEEDS of them, from START on. They let others go first,
# but not twice: CI runs all that it has beside the tests so.
SEEDS ?= 200
START ?= 0
simulate: $(STAMP)
	@$(if $(filter 0,$(shell nice)),nice) $(BIN)/python tests/simulation/seeds.py --seeds $(SEEDS) --start $(START) --workers $(or $(WORKERS),1)

# Damaged inputs for every reader, the kernels under AddressSanitizer and UBSan: for so many SECONDS, beside the build.
SECONDS ?= 180
SEED ?= 1
fuzz: $(STAMP)
	SABOT_SANITIZE=1 $(BIN)/python setup.py -q build --build-lib $(SANITIZED_BUILD) --build-temp $(SANITIZED_BUILD)-temp
	@$(BIN)/python tests/fuzz/fuzz.py --seconds $(SECONDS) --seed $(SEED)

# Ten minutes at full speed with a kill each 20 s, then without: memory, files, threads and disk must have no slope.
soak: $(STAMP)
	@$(BIN)/python tests/recovery/soak.py

# Everything that `make test` does not see: style, types, the kernels with bounds checks and asserts, the benchmarks' answers. CI has the
# kernels checked in one of two ways in turn: KERNEL_CHECKS=fuzz is the other.
KERNEL_CHECKS ?= kernels-debug
check: bench-smoke lint types docs $(KERNEL_CHECKS)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP)
	$(BIN)/mypy

kernels-debug: $(STAMP)
	SABOT_DEBUG=1 $(BIN)/python setup.py -q build --build-lib $(DEBUG_BUILD) --build-temp $(DEBUG_BUILD)-temp
	SABOT_DEBUG=1 PYTHONPATH=$(DEBUG_BUILD) $(BIN)/pytest -q -m "not slow" $(KERNEL_TESTS) tests/unit/test_package.py

bench bench-compare bench-smoke smokes: $(STAMP)

bench:
	@set -e; for script in $(BENCHMARKS) $(AGENT_BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script; done
	@echo "== benchmarks.nexmark"; $(BIN)/python -m benchmarks.nexmark

# This checkout beside another commit, which is built in build/compare, by turns: make bench-compare BASE=… [ROUNDS=…] [LINES="…"]. The
# commands, the figures, and what counts as slower stand in the script.
bench-compare:
	@$(BIN)/python tests/tools/with_broker.py $(BIN)/python benchmarks/changes/compare.py "$(or $(BASE),$(error BASE=<commit> is missing))" \
	    $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(LINES),--lines $(LINES))

# With one broker for all of them that need one. rescale.py is run by hand: it starts many interpreters, and takes minutes. ONE_IN=3: of the
# scripts and queries one in three, drawn by the commit, as CI does.
ONE_IN ?= 1
bench-smoke:
	@$(BIN)/python tests/tools/with_broker.py $(MAKE) smokes

smokes:
	@$(BIN)/python tests/tools/smokes.py 20000 $$($(DRAWN) $(filter-out %/rescale.py,$(BENCHMARKS)))
	@$(BIN)/python tests/tools/smokes.py 100 $$($(DRAWN) $(AGENT_BENCHMARKS))
	@echo "== benchmarks.nexmark"; $(BIN)/python -m benchmarks.nexmark --events 20000 --check --queries $$($(DRAWN) $$(seq -f q%g 0 22) | tr ' ' ,)
	@echo "== benchmarks/changes"; SABOT_BENCHMARK_ROWS=20000 $(BIN)/pytest -q --benchmark-disable benchmarks/changes

# The site in build/site, with llms.txt and llms-full.md for coding agents. A warning is an error.
docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml

# The drawings of plans, and the pictures of the console, in README and the documents. Look at them before they are committed.
pictures: $(STAMP)
	@$(BIN)/python tests/test_pictures.py
	@$(BIN)/python tests/integration/test_console_pictures.py

docs-serve: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --config-file docs/site/mkdocs.yml

kafka:
	@tools/kafka/kafka.sh start

kafka-stop:
	@tools/kafka/kafka.sh stop

# What was built here. The virtual environment and the broker's jars stay.
clean:
	rm -rf build dist wheelhouse *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f sabot/_cython/*.so sabot/_cython/*/*.so $(VENV)/.sabot $(VENV)/.sabot-with-*
	find . \( -path ./$(VENV) -o -path ./.kafka -o -path ./.git \) -prune -o -type d -name __pycache__ -exec rm -rf {} +

# Written last, so that an interrupted set-up is not taken for a finished one; older than a source: built again.
$(STAMP): $(SOURCES)
	@PYTHON="$(PYTHON)" sh tools/setup.sh $(VENV) $(STAMP)
