# The two commands of the README, what CI runs, and how the demo is made. Nothing is needed but Python 3.10 or newer.
PYTHON ?= python3
VENV ?= .venv
# Processes that run tests side by side, each with one thread: "auto" is one for each core.
WORKERS ?= auto
PYTEST = $(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --maxprocesses 8 --dist worksteal
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# Each stamp names what was installed: it goes stale when what is asked for changes.
RUN = $(VENV)/.installed-run
ALL = $(VENV)/.installed-all

.PHONY: train test test-all lint site demo clean

train: $(RUN)  ## fine-tune on what is there: data/ and model/, else the bundled demo
	$(VENV)/bin/python -m gpt1.train --dataset rocstories --submit

# Tests that need the real data say why they skip.
test: $(ALL)  ## the tests that are not marked slow, with fewer examples of random input
	$(PYTEST) -m "not slow" --hypothesis-profile quick

test-all: $(ALL)  ## all tests
	$(PYTEST)

lint: $(ALL)  ## style, types, and which room imports which
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo --no-cache

site: $(ALL)  ## the documentation as pages in build/site/, with its links checked
	$(VENV)/bin/python scripts/make_site.py

# The result is in out/demo/model; the demo's own files are in data/demo and model/demo.
demo: $(RUN)  ## pretrain the demo's model anew: stories, vocabulary and corpus, training
	$(VENV)/bin/python scripts/make_demo_stories.py --unlabelled 40000 --out out/demo
	$(VENV)/bin/gpt1 corpus out/demo/stories.txt --out out/demo/corpus --n_merges 3527
	$(VENV)/bin/gpt1 pretrain --corpus out/demo/corpus --out out/demo/model --desc demo \
		--size mini --n_embd 128 --n_batch 16 --n_gpu 1 --n_iter 3 --lr 1e-3 --warmup_updates 100 \
		--embd_pdrop 0 --attn_pdrop 0 --resid_pdrop 0 --device cpu

clean:  ## remove the virtual environment and caches, never results
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

$(RUN): $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	$(PIP) -e '.[plots]'
	@touch $@

$(ALL): $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) with the tools for tests and pages (a few minutes the first time) ..."
	$(PIP) -e '.[test,lint,site]'
	@touch $@ $(RUN)
