# One-line descriptions after `##` are what `make help` prints. Everything runs from .venv, which install.sh makes and keeps.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help quickstart house bits test quick test-oldest lint types pytest reliability soak soak-ends test-slurm bench bench-gpu evidence-gpu peers docs dist install install-dev clean distclean

PY := .venv/bin/python
CODE := moco tests examples hubconf.py $(wildcard main_moco.py main_lincls.py launch benchmarks docs/site.py)
TYPED := moco hubconf.py $(wildcard main_moco.py main_lincls.py) examples launch
# Extra arguments, as in: make pytest ARGS="-k queue -x"
ARGS ?=

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | \
	  while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

quickstart: install ## install, pretrain on the digits with both heads, probe them; prints a table, draws a figure
	@$(PY) examples/quickstart.py $(ARGS)

test: lint types pytest ## install, then everything that needs no GPU: lint, types, tests

# For the inner loop, from an environment that is there already: what has one process, is fast, and is often broken.
QUICK := tests/losses tests/metrics tests/test_builder.py tests/test_randomness.py tests/test_schedules.py tests/test_layout.py \
  tests/pretrain/test_step.py tests/pretrain/test_options.py tests/run/test_files.py
quick: ## lint, and the tests of losses, metrics, queue, step, options: under a minute
	@$(PY) -m ruff check $(CODE)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q --durations=0 --durations-min=5 -m "not slow" $(QUICK) $(ARGS)

OLDEST := .oldest/bin/python
test-oldest: ## the portable tests (tests/interpreters.py) on the oldest set that pyproject.toml allows, in an environment of its own (PYTHON=python3.10)
	@[ -x $(OLDEST) ] || $(or $(PYTHON),python3) -m venv .oldest
	@$(OLDEST) -m pip install -q -r requirements-oldest.txt 'pytest>=9' pytest-timeout pytest-xdist hypothesis 'setuptools>=77'
	@$(OLDEST) -m tests.interpreters $(ARGS)

lint: install-dev ## ruff: format, style, imports, likely bugs
	@$(PY) -m ruff format --check $(CODE)
	@$(PY) -m ruff check $(CODE)

types: install-dev ## mypy over moco/, the mains and the examples
	@$(PY) -m mypy $(TYPED)

house: ## counts the shape of the code: rooms, import arrows, floors, long functions, lines
	@$(PY) -m tests.layout

bits: install-dev ## digests of twenty training steps, to compare before and after a change that must not alter numbers
	@OMP_NUM_THREADS=1 $(PY) -m tests.reference_bits

# One thread per process: several test processes share the cores, and the summation order stays the same everywhere.
# One of two workers has the pretended GPU's checks while the other goes on: they are the longest test by far.
pytest: install-dev ## the tests alone, two at a time (ARGS="-k queue -x" is passed on)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 $(ARGS)

RESULTS := build/reliability.jsonl
reliability: install-dev ## the fault-injection suite alone; writes the table of docs/reliability.md
	@mkdir -p build && rm -f $(RESULTS)
	@MOCO_RELIABILITY_RESULTS=$(RESULTS) OMP_NUM_THREADS=1 $(PY) -m pytest tests/reliability $(ARGS)
	@$(PY) tests/reliability/table.py $(RESULTS)

soak: soak-ends ## the same with ten times as many kills, restarts by torchrun, and a thousand ends
	@MOCO_SOAK=10 $(MAKE) reliability

soak-ends: install-dev ## a thousand ends of real runs on a busy machine, for at most an hour; writes docs/reliability.md
	@$(PY) -m tests.reliability.ends $(ARGS)

# Where Slurm can neither be found nor installed they are skipped, with a loud reason; not with SLURM=required, as in CI.
SLURM ?= if-possible
test-slurm: install-dev ## launch/ on a real Slurm of two nodes, which is started here and stopped again
	@MOCO_TEST_SLURM=$(SLURM) OMP_NUM_THREADS=1 $(PY) -m pytest tests/slurm $(ARGS)

# One thread, but for the scripts that say otherwise: IMAGES=FOLDER/<class>/<image> takes photographs instead of made-up ones.
IMAGES ?=
PHOTOS := $(if $(IMAGES),--images "$(IMAGES)")
bench: install-dev ## every benchmark on the CPU (a quiet one); writes the tables of docs/performance.md
	@for topic in loss_head training_step momentum_update sentence_step communication scaling $(if $(wildcard benchmarks/linear_probe.py),linear_probe); do \
	  echo "== $$topic"; OMP_NUM_THREADS=1 $(PY) -m benchmarks.$$topic || exit; done
	@for topic in photographs multi_crop; do echo "== $$topic"; $(PY) -m benchmarks.$$topic --rounds 5 $(PHOTOS) || exit; done
	@$(PY) -m benchmarks.performance_page

# with the Python that is there, as a GPU machine has its own torch: make bench-gpu PY=python3
bench-gpu: ## the same on one GPU, within ten minutes
	@$(PY) -c 'import sys, torch; torch.cuda.is_available() or sys.exit("error: torch sees no GPU; make bench measures the CPU")'
	@for topic in loss_head training_step momentum_update sentence_step photographs multi_crop; do \
	  echo "== $$topic"; $(PY) -m benchmarks.$$topic --device cuda $$(case $$topic in (photographs|multi_crop) echo '--rounds 3 $(PHOTOS)';; esac) || exit; done
	@$(PY) -m benchmarks.performance_page

STAGE ?= tests
DATA ?= runs/evidence/data
evidence-gpu: ## one stage of what a GPU can show (benchmarks/evidence_gpu.py); STAGE=data | tests | cifar10 ... DATA=archives
	@$(PY) -m benchmarks.evidence_gpu --stage $(STAGE) --data $(DATA) $(ARGS)

peers: install ## make .peers, with the libraries that make bench compares with
	@benchmarks/peers.sh

# Their tools are in an environment of their own, .tools: nobody who trains needs them.
TOOLS := .tools/bin/python
.tools/installed: requirements-docs.txt
	@[ -x $(TOOLS) ] || $(or $(PYTHON),python3) -m venv .tools
	@$(TOOLS) -m pip install -q -r requirements-docs.txt
	@touch $@

# The page that stands in the site as an example is written anew from the logs of three runs.
docs: install .tools/installed ## the documentation site, into build/docs; needs no network once .venv and .tools are there
	@$(PY) -m moco.report examples/report_runs/* --output build/example-report
	@NO_MKDOCS_2_WARNING=1 $(TOOLS) -m mkdocs build --strict --site-dir build/docs

dist: .tools/installed ## wheel and source archive, into dist/, checked
	@rm -rf dist
	@$(TOOLS) -m build --outdir dist .
	@$(TOOLS) -m twine check --strict dist/*

install: ## make .venv with requirements.txt (and, where possible, FFCV's system libraries)
	@./install.sh

install-dev: ## the same, with the tools that `make test` uses
	@./install.sh dev

clean: ## remove caches and build products (keeps .venv and runs/)
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path './.[vpto]*' -prune -o -name __pycache__ -type d -print0 | xargs -0r rm -rf

distclean: clean ## clean, and remove .venv, .peers, .tools and .oldest too
	@rm -rf .venv .peers .tools .oldest
