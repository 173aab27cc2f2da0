# `make` lists the targets. Needs Python 3.11; everything goes into .venv.

# The first candidate that runs and is a 3.11; setup_env.py says what to install if none is.
PYTHON := $(shell for p in python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo "$$p" && exit; \
	done; echo python3)
PY := .venv/bin/python
UV := .venv/bin/uv
COMPILE = $(UV) pip compile --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --quiet --override requirements/overrides.txt $(UPGRADE)

.DEFAULT_GOAL := help
.PHONY: help demo test docs study-zoo compare-frameworks lint env-demo env-test lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s%s\n", $$1, $$2}' Makefile
	@echo
	@echo 'make demo FRAMEWORK=mmdet         in MMDetection instead of Detectron2 (needs env-test)'
	@echo 'make test ARGS="-k slimming -x"   more arguments for pytest ("-n 0": in this process)'
	@echo 'make lock UPGRADE=--upgrade       newer versions, within the pins of requirements/*.in'

demo: env-$(if $(filter mmdet,$(FRAMEWORK)),test,demo)  ## train, evaluate and report on the bundled mini-COCO
	$(PY) -m studies.demo $(if $(FRAMEWORK),--framework $(FRAMEWORK)) $(ARGS)

test: env-test  ## lint, then run all tests (the first time compiles MMCV: 15 to 25 minutes)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile $(ARGS)

study-zoo: env-demo  ## train what is missing of the mini zoo's study (hours), write its tables
	$(PY) -W ignore -m studies.mini_zoo $(ARGS)

compare-frameworks: env-test  ## the same fine-tunings in both frameworks, 3 seeds; writes its results
	$(PY) -W ignore -m studies.frameworks --publish $(ARGS)

docs: env-test  ## build the documentation's site into output/site; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)

lint: env-demo  ## check style and formatting only
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

env-demo:  ## make .venv for the demo: PyTorch, Detectron2
	@$(PYTHON) tools/setup_env.py demo

env-test:  ## make .venv for the tests: the demo's and MMDetection
	@$(PYTHON) tools/setup_env.py test

lock: env-demo  ## write requirements/*.lock anew from requirements/*.in
	$(COMPILE) requirements/build.in -o requirements/build.lock
	$(COMPILE) requirements/demo.in -c requirements/build.lock -o requirements/demo.lock
	$(COMPILE) requirements/test.in -c requirements/demo.lock -o requirements/test.lock

clean:  ## remove .venv, caches and build leftovers (the compiled MMCV stays in the user cache)
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
