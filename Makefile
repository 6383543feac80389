# Two commands on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin


.PHONY: help demo test slow storm tpu gpu-plan parity lint types bench clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo | test | slow | storm | tpu | gpu-plan | parity | lint | types | bench | clean'

$(VENV)/.ready: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# Converts six real Sentinel-1 / Sentinel-2 pairs, pretrains a small model on them, draws what it fills in.
demo: $(VENV)/.ready
	rm -rf runs/demo
	$(BIN)/python main.py convert --config=configs/convert_bigearthnet_mm.py:example
	$(BIN)/python main.py pretrain --config=configs/demo.py --workdir=runs/demo
	$(BIN)/python main.py reconstruct --workdir=runs/demo
	@echo 'metrics      runs/demo/metrics.jsonl (and TensorBoard: $(BIN)/tensorboard --logdir runs/demo)'
	@echo 'checkpoints  runs/demo/checkpoints'
	@echo 'config       runs/demo/config.json'
	@echo 'model card   runs/demo/MODEL_CARD.md'
	@echo 'picture      runs/demo/reconstruction.png'
	@echo 'summary      runs/demo/summary.json'

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not parity and not slow and not gpu_plan'
	@echo 'Not run here: the comparison with PyTorch (make parity) and long checks (make slow).'

# The archives at full test size, memory, kills; half an hour.
slow: $(VENV)/.ready
	$(BIN)/python -m pytest -m 'slow and not parity and not gpu_plan'

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

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

bench: $(VENV)/.ready
	$(BIN)/python main.py bench --config=configs/pretrain.py:xae --device_batch=8

clean:
	rm -rf runs/demo .pytest_cache .mypy_cache .ruff_cache
