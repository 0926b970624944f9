# Everything sets itself up in .venv from a bare python3 >= 3.11.
PYTHON ?= python3
PRESET ?= demo

VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find l2o tasks meta_train checkpoints -type f -not -path '*/__pycache__/*' -not -name '*.so')
KERNELS := $(wildcard l2o/kernels/cpp/*.cc l2o/kernels/cpp/*.h)
# Tests and the type checker see the built wheel, not the checkout.
WHEEL := $(CURDIR)/$(VENV)/wheel
# A file's tests share what they compile, so a file stays in one process; in the order of
# their names, because those with few tests are not the shortest.
TEST := PYTHONPATH=$(WHEEL) $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile \
  --no-loadscope-reorder

.PHONY: demo test test-all test-fast lint docs clean

demo: $(VENV)/ready
	$(BIN)/l2o demo --preset $(PRESET)

test: $(VENV)/wheel-ready
	$(TEST) -m "not exhaustive" $(ARGS)

test-all: $(VENV)/wheel-ready
	$(TEST) $(ARGS)

test-fast: $(VENV)/wheel-ready
	$(TEST) -m "not slow and not exhaustive" $(ARGS)

lint: $(VENV)/wheel-ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd $(VENV) && MYPYPATH=$(WHEEL) bin/mypy --config-file ../pyproject.toml -p l2o

docs: $(VENV)/wheel-ready
	$(BIN)/sphinx-build -W --keep-going -q -b html docs $(VENV)/site
	@echo "the site is in $(VENV)/site: open $(VENV)/site/index.html"

clean:
	rm -rf $(VENV) build *.egg-info l2o/kernels/cpp/*.so .mypy_cache .pytest_cache .ruff_cache

$(VENV)/ready: pyproject.toml constraints.txt setup.py $(KERNELS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "l2o needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,data,docs,dev]'
	touch $@

$(VENV)/wheel-ready: $(VENV)/ready $(SOURCES)
	rm -rf build $(WHEEL) $(VENV)/dist
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w $(VENV)/dist .
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(WHEEL) $(VENV)/dist/l2o-*.whl
	rm -rf build
	touch $@
