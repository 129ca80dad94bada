# Two commands on a fresh machine: `make figures` and `make test`. Both set everything up first.
PYTHON ?= python3
JOBS ?= 1
# The tour: one headline claim a theme. CLAIMS='*' runs every claim of both trees.
TOUR = 'experiments/curvature/edge_of_stability' \
       'experiments/collapse/neural_collapse_of_a_trained_network' \
       'experiments/kernels/wide_network_trains_like_its_kernel' \
       'experiments/grokking/grokking_modular_addition' \
       'theory_checks/in_context/lsa_layer_is_one_gd_step'
CLAIMS ?= $(TOUR)
VENV = .venv
RUN = $(VENV)/bin/python

.PHONY: help install figures sweep test quick lint types bench lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z]+: .*## |^[a-z]+:  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed  ## the environment in .venv, from requirements.lock

$(VENV)/.installed: requirements.lock setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Python {v.major}.{v.minor} is too old: give 3.11 or newer, as in make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --require-hashes --no-deps -r requirements.lock
	$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

figures: install  ## run the tour (CLAIMS='*' for all) and write figures/index.html
	$(RUN) -m experiments run $(CLAIMS) --jobs=$(JOBS)

sweep: install  ## delay of grokking against weight decay and data, 8 seeds a cell, in results/sweep
	$(RUN) -m experiments.grokking.delay_falls_with_decay_and_data --out=results/sweep \
	  --train_fractions=0.35,0.4,0.45,0.5,0.55,0.6,0.7 --weight_decays=0,0.25,0.5,1,1.5,2,3,4 \
	  --num_seeds=8 --num_steps=2500

# Two at a time: closed forms and the examples of docstrings run beside all the rest, and give way
# to it and to the smoke runs that it waits for in the end.
test: install  ## units, laws, and the smoke run of every claim
	@mkdir -p build
	@nice -n 10 $(RUN) -m pytest dynamics tests/theory > build/theory-tests.log 2>&1 & theory=$$!; \
	$(RUN) -m pytest tests --ignore=tests/theory; status=$$?; \
	wait $$theory || { status=1; cat build/theory-tests.log; }; \
	tail -n 1 build/theory-tests.log; exit $$status

quick: install  ## the tests without the claims and the browser
	$(RUN) -m pytest -m "not claims and not browser"

lint: install  ## ruff
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

types: install  ## mypy on the library
	$(VENV)/bin/mypy

bench: install  ## the benchmarks; results land in benchmarks/results
	for script in $(filter-out benchmarks/base_seeds.py, $(wildcard benchmarks/*.py)); do $(RUN) $$script || exit 1; done

lock:  ## make requirements.lock anew from requirements.in
	$(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet uv
	{ echo '# Installed with --require-hashes --no-deps; made by `make lock`.'; \
	  build/lock/bin/uv pip compile requirements.in --quiet --universal --generate-hashes --python-version 3.11 --no-header --no-annotate; \
	  echo '# Without its dependencies: it asks for TensorFlow, which nothing here uses.'; \
	  echo 'neural-tangents==0.6.5' | build/lock/bin/uv pip compile - --quiet --no-deps --universal --generate-hashes --python-version 3.11 --no-header --no-annotate; \
	} > build/requirements.lock && mv build/requirements.lock requirements.lock

clean:  ## remove the environment and everything that can be made again
	rm -rf $(VENV) build results .pytest_cache .hypothesis .ruff_cache .mypy_cache
