# make demo: install, then encode and decode a photo. make test: lint, types and tests. make bench: every published number.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
REACHED := import urllib.request as u; u.urlopen('$(TORCH_INDEX)/torch/', timeout=10)
PHOTO ?= bench/samples/coffee.jpg

.PHONY: demo test slow-test lint fuzz clean

demo: $(VENV)/.core
	$(BIN)/python bench/demo.py $(PHOTO) -o demo

test: lint
	$(BIN)/python -m pytest

slow-test: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(VENV)/.dev
	$(BIN)/python tests/fuzz/fuzz_container.py

# torch and torchvision only work as a pair of one origin: from PyTorch's CPU index (200 MB) where there is no NVIDIA GPU
# and it can be reached, else from PyPI.
$(VENV)/.core: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if ! nvidia-smi >/dev/null 2>&1 && $(BIN)/python -c "$(REACHED)" 2>/dev/null; \
	then $(BIN)/pip install --quiet --index-url $(TORCH_INDEX) torch torchvision; \
	else $(BIN)/pip install --quiet torch==2.14.1 torchvision==0.29.1; fi
	$(BIN)/pip install --quiet --editable ".[bench]"
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/pip install --quiet --editable ".[bench,metrics,train,hub,dev]"
	touch $@

clean:
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
