# The first target says what there is. All others make .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BENCH := $(BIN)/python examples/benchmarks
SEED ?= 0
MINUTES ?= 60
# some of each folder that is quick to run: neither compilers nor processes, and few trainings
FAST := $(addprefix tests/,test_layout.py test_nets.py test_plots.py \
	support pair conditionals data priors oracles models \
	$(addprefix elbo/test_,elbo.py weights.py) \
	$(addprefix evaluate/test_,bound.py codes.py compare.py generate.py importance.py preflight.py summary.py) \
	$(addprefix training/test_,svi.py tracking.py) $(addprefix runs/test_,runs.py runs_safety.py))

.PHONY: help install demo format lint types docs docs-texts docs-outputs test test-fast check fuzz fuzz-files kills mutants bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## make .venv with the package and what tests and documentation need

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e '.[test,docs]'
	touch $@

demo: install ## train and measure a VAE on the digits of scikit-learn, in seconds
	OMP_NUM_THREADS=1 $(BIN)/pyro-vae train --epochs 100 --lr 0.004 --lr_schedule cosine --kl_weight Warmup --kl_weight.epochs 20 \
		--out runs/demo --overwrite true --progress true --report true

format: install ## mend style and layout of all Python files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: install ## check style and layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## check types
	$(BIN)/mypy

docs: install ## build the documentation into docs/_build/html
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html

docs-texts: install ## write what the code blocks of README and docs print now below them
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.test_docs

docs-outputs: docs-texts ## write these texts, and all pictures of the pages, in two hours
	OMP_NUM_THREADS=1 $(BIN)/python docs/pictures.py

test: install ## run all tests, docstrings and examples on all cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-fast: install ## run quick tests, in two minutes on one core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(wildcard $(FAST))

fuzz: install ## put random programs with exact values to all estimators: make fuzz SEED=0 MINUTES=60
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --seed $(SEED) --minutes $(MINUTES)

check: lint types docs test ## all that a change must pass

fuzz-files: install ## read 10,000 changed files of every kind, in a quarter of an hour on one core
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.helpers.fuzzing 10000

kills: install ## kill every command at each of its changes of a file, in a quarter of an hour on one core
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.helpers.kill_loop

mutants: install ## plant faults, one at a time, and say which checks notice: make mutants MINUTES=60
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants --minutes $(MINUTES) --docs

bench: install ## run the benchmarks at small sizes: that they work, not how fast anything is
	$(BENCH)/training.py --batch_size 32 --rounds 3 --block 3
	$(BENCH)/epoch.py --data digits --epochs 3
	$(BENCH)/growth.py --rounds 3 --max_fraction 0.1
	$(BENCH)/particles.py --repeats 3
	$(BENCH)/likelihood.py --num_data 20 --num_samples 100 --num_temperatures 5
	$(BENCH)/precision.py --epochs 3 --particles 1
	$(BENCH)/processes.py --batch_sizes 512 --num_data 5000 --epochs 3
	$(BENCH)/published_numbers.py exact

clean: ## remove .venv and what was built or cached
	rm -rf $(VENV) docs/_build .pytest_cache .mypy_cache .ruff_cache
