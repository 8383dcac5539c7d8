# make demo         build what is missing and run the default study (7 to 25 minutes)
# make envs         build every environment, or rebuild it if its pins changed (on a login node)
# make test         run all tests except those on SLURM
# make test-fast    run the library's tests: no Snakemake, no study
# make test-attacks attack ROUNDS (10) times as often as make test, with SEED (a random one)
# make test-gpu     run the tests that need a GPU (25 minutes on an H100), write benchmarks/gpu/
# make test-slurm   run the tests on a real SLURM with fake GPUs (root, Debian's packages)
# make lint         run ruff, snakefmt, import-linter, snakemake --lint; limit module length
# make pins         resolve envs/*.in into envs/*.txt and envs/*.yaml
# make axolotl-keys write resources/axolotl/keys.json for the pinned Axolotl
# make docs         write docs/configuration.md and config/study.schema.json from the schema
# make help         print this list

SNAKEMAKE := .venvs/workflow/bin/snakemake
PYTEST := .venvs/test/bin/python -m pytest
# Tests of one file share what its fixtures make, so a file stays with one process.
AT_ONCE := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
UV = $$(command -v .venvs/uv/bin/uv || echo uv)

.PHONY: demo help envs test test-fast test-attacks test-gpu test-slurm lint pins axolotl-keys docs

demo: workflow-environment
	$(SNAKEMAKE) --cores all
	@echo
	@cat results/tables/main.md
	@echo
	@cat results/tables/lifetime.md
	@echo
	@echo "Tables:  results/tables/    scores: results/scores.csv"
	@echo "Figures: results/figures/"
	@echo "Report:  results/report.html"

# The comment at the top of this file is the list.
help:
	@sed -n 's/^# \(make .*\)/\1/p' $(MAKEFILE_LIST)

envs: workflow-environment train-environment eval-environment
envs: $(if $(wildcard .venvs/vllm),vllm-environment)

# An environment itself records what it was built from: there is no file to compare times with.
%-environment:
	@envs/make.sh $*

test: envs test-environment lint
	$(PYTEST) $(AT_ONCE)

test-fast: envs test-environment lint
	$(PYTEST) $(AT_ONCE) -m "not slow" tests/attacks tests/unit

ROUNDS = 10
SEED = $(shell date +%s)

test-attacks: envs test-environment
	$(PYTEST) $(AT_ONCE) tests/attacks --attack-rounds $(ROUNDS) --attack-seed $(SEED)

test-gpu: envs test-environment
	$(PYTEST) tests/gpu

test-slurm: envs test-environment
	$(PYTEST) tests/slurm

lint: workflow-environment test-environment
	.venvs/test/bin/ruff check .
	.venvs/test/bin/ruff format --check .
	.venvs/test/bin/snakefmt --check Snakefile rules
	PYTHONPATH=workflow_scripts .venvs/test/bin/lint-imports --no-cache --no-logo
	@find workflow_scripts -name '*.py' -exec \
		awk 'FNR == 401 {print FILENAME ": over 400 lines; split it"; bad = 1} END {exit bad}' {} +
	$(SNAKEMAKE) --lint

# torch is pinned without its build, so that it brings what the platform needs, and triton not at
# all, since torch names the one that fits. No index is named: a pin says what, not from where.
# vLLM needs a GPU and names packages of CUDA itself, which have to fit torch's: its pins are resolved
# for Linux on x86-64 with the index's own torch. tests/unit/test_pins.py checks other platforms.
COMPILE = $(UV) pip compile --quiet --python-version 3.11 --no-annotate --no-header \
	--no-emit-package triton
ON_CPU = $${PIP_FIND_LINKS:+--find-links $$PIP_FIND_LINKS}
WITH_CUDA = --python-platform x86_64-manylinux_2_28

# Building the first environment installs uv, unless it is on PATH.
pins: workflow-environment
	for name in workflow train eval vllm test; do \
		case $$name in vllm) platform="$(WITH_CUDA)";; *) platform="$(ON_CPU)";; esac; \
		$(COMPILE) $$platform envs/$$name.in --output-file envs/$$name.txt; \
		sed -i -e 's/+cpu$$//' -e '/^#/d' envs/$$name.txt; \
	done
	.venvs/workflow/bin/python envs/make_conda_yaml.py

axolotl-keys:
	envs/make.sh train
	AXOLOTL_DO_NOT_TRACK=1 .venvs/train/bin/python envs/list_axolotl_keys.py resources/axolotl/keys.json

docs: workflow-environment
	.venvs/workflow/bin/python docs/generate_configuration.py > docs/configuration.md
	.venvs/workflow/bin/python docs/generate_editor_schema.py > config/study.schema.json
