# Two commands on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin


.PHONY: help demo test slow storm tpu gpu-plan parity bench-peers lint deploy-lint types bench wheel docs notebooks requirements lock clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo | test | slow | storm | tpu | gpu-plan | parity | bench-peers | lint | deploy-lint | types | bench | wheel | docs | notebooks | requirements | lock | clean'

$(VENV)/.ready: pyproject.toml setup.py
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# Converts six real Sentinel-1 / Sentinel-2 pairs, pretrains a small model on them, draws what it fills in.
demo: $(VENV)/.ready
	rm -rf runs/demo
	$(BIN)/python main.py demo --workdir=runs/demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not parity and not slow and not gpu_plan and not bench_peers'
	@echo 'Not run here: the comparison with PyTorch (make parity) and long checks (make slow).'

# The archives at full test size, memory, kills; half an hour.
slow: $(VENV)/.ready
	$(BIN)/python -m pytest -m 'slow and not parity and not gpu_plan and not bench_peers'

# Thirty kills at random moments over one run, which must end as if nothing had happened.
storm: $(VENV)/.ready
	$(BIN)/python -m tests.support.storm

# Plans for TPU pods, compiled without hardware.
tpu: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --editable '.[dev,tpu]'
	$(BIN)/python -m pytest -m tpu

# Plans for GPUs, compiled without hardware.
gpu-plan: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --editable '.[dev,cuda-plan]'
	$(BIN)/python -m pytest -m gpu_plan

# Against PyTorch and Hugging Face transformers, on the CPU.
parity: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet 'torch==2.13.0'
	$(BIN)/python -m pip install --quiet --editable '.[dev,parity]'
	$(BIN)/python -m pytest -n 2 --dist loadfile -m parity

# Against code and samples of the benchmarks: PEERS is a folder with clones of GEO-Bench-2, NeuCo-Bench,
# torchgeo-bench, Copernicus-FM and rs-embed and the unpacked wheel geobenchv2, PEERS_PYTHON a Python with the
# requirements of NeuCo-Bench. What needs torch, lightning, mmseg, torchgeo or tacoreader is skipped without.
bench-peers: $(VENV)/.ready
	PEERS=$(abspath $(PEERS)) PEERS_PYTHON=$(PEERS_PYTHON) $(BIN)/python -m pytest -m bench_peers

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Scripts, Dockerfile, YAML and what reads it; nothing is run.
deploy-lint: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --editable '.[dev,deploy]'
	$(BIN)/shellcheck deploy/*.sh deploy/*.sbatch
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/yamllint deploy .github .pre-commit-config.yaml CITATION.cff
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

types: $(VENV)/.ready
	$(BIN)/mypy

bench: $(VENV)/.ready
	$(BIN)/python main.py bench --config=configs/pretrain.py:xae --device_batch=8

# What `pip install` takes: the package with converters and configurations, as a wheel and as source.
wheel: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build

# The documentation as a site in site/, without network; a warning, such as a link to nothing, is an error.
docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Runs every cell of the four; nothing is stored in them.
notebooks: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet 'torch==2.13.0'
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs,parity]'
	for file in notebooks/*.ipynb; do \
	  echo $$file && PATH=$(abspath $(BIN)):$$PATH $(BIN)/jupyter execute --timeout=600 $$file || exit 1; done

# requirements.txt, a full installation, from pyproject.toml.
requirements: $(VENV)/.ready
	$(BIN)/python -m tests.support.requirements

# Versions that work, once the tests have passed with them.
lock: test
	{ echo '# Python 3.11: versions with which the tests passed. Written by `make lock`; to install with them:'; \
	  echo "#     pip install -c requirements-lock.txt 'fusmae-jax[convert,eval]'"; \
	  $(BIN)/python -m pip freeze --exclude-editable; } > requirements-lock.txt

clean:
	rm -rf runs/demo build dist site .pytest_cache .mypy_cache .ruff_cache
