# Two commands do everything on a machine with Python 3.10+, pip and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-avx2 slow lint tables clean

demo: $(READY)
	$(BIN)/ressa demo

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# What the number format decides, on a processor that has AVX-512 as on one that has not.
test-avx2: $(READY)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/pytest -m "formats and not slow" \
		--numprocesses auto --maxprocesses 4 --dist loadfile

slow: $(READY)
	$(BIN)/pytest -m slow

lint: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What is written from the code: tables of the docs, and the stub of the door.
tables: $(READY)
	PYTHONPATH=tests $(BIN)/python tests/tasks/test_tasks.py
	$(BIN)/python tests/test_docs.py
	$(BIN)/python tests/test_door.py

clean:
	rm -rf $(VENV)

# torch comes first and alone: its constraint decides which build the others must live with.
$(READY): pyproject.toml constraints.txt $(wildcard src/ressa/packed/kernels/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
