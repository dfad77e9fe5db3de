# Two commands for a new user: `make demo` and `make test`. Both install what they need first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-slow test-processors docs oracles lint clean

demo: $(READY)
	$(BIN)/concordet demo --out runs/demo

# Files in their order, each in one of the processes, so that what a file trains is trained once.
test: $(READY) lint
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# Results must not depend on the processor: other vector instructions, other numbers of threads, and a busy machine,
# each of which changes the order of sums. TESTS chooses what runs.
TESTS ?= tests/losses tests/ranking tests/detectors tests/measures
test-processors: $(READY)
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest $(TESTS)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest $(TESTS)
	ONEDNN_MAX_CPU_ISA=SSE41 $(BIN)/python -m pytest $(TESTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS)
	OMP_NUM_THREADS=4 $(BIN)/python -m pytest $(TESTS)
	$(BIN)/python -c 'while True: pass' & busy=$$!; $(BIN)/python -m pytest $(TESTS); status=$$?; kill $$busy; exit $$status

# The documentation as a site, in build/site; a warning is an error.
docs: $(READY)
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --builder html --conf-dir docs . build/site
	@echo build/site/index.html

# Published implementations beside ours: writes docs/fidelity.md.  Their environment lies on top of .venv.
oracles: .venv-oracles/.ready
	.venv-oracles/bin/python -W ignore -m oracles

.venv-oracles/.ready: $(READY) oracles/requirements.txt
	test -x .venv-oracles/bin/python || $(BIN)/python -m venv .venv-oracles
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > .venv-oracles/base.pth
	mv .venv-oracles/base.pth "$$(.venv-oracles/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	.venv-oracles/bin/python -m pip install --quiet --no-deps --requirement oracles/requirements.txt
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The stamp is written last, so that an interrupted installation starts again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "concordet needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another with: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
