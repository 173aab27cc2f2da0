# `make` lists the targets. Needs Linux; everything goes into .venv.

# The locks are for these. The system's own comes first: its headers are one package away.
RANGE := >=3.10,<3.14
FITS = -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null
FOUND = $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	"$$p" $(FITS) && echo "$$p" && exit; done)
PYTHON = $(eval PYTHON := $(FOUND))$(PYTHON)
PY := .venv/bin/python
UV := .venv/bin/uv
COMPILE = $(UV) pip compile --universal --python-version 3.10 --generate-hashes \
	--no-emit-index-url --no-annotate --quiet --override requirements/overrides.txt $(UPGRADE)

.DEFAULT_GOAL := help
.PHONY: help demo test test-matrix docs dist study-zoo compare-frameworks lint env-demo env-test lock clean
.PHONY: system-demo system-test FORCE
.NOTPARALLEL:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-20s%s\n", $$1, $$2}' Makefile
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

test-matrix: env-demo  ## tests with the oldest and newest PyTorch that setup.py admits (hours, 20 GB)
	@$(UV_INDEX); $(PY) -m benchmarks.matrix $(ARGS)

study-zoo: env-demo  ## train what is missing of the mini zoo's study (hours), write its tables
	$(PY) -W ignore -m studies.mini_zoo $(ARGS)

compare-frameworks: env-test  ## the same fine-tunings in both frameworks, 3 seeds; writes its results
	$(PY) -W ignore -m studies.frameworks --publish $(ARGS)

docs: env-test  ## build the documentation's site into output/site; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)

dist: env-test  ## build the wheel and the sdist of the last commit into dist/, and check them
	rm -rf build dist && mkdir -p build/source dist
	git archive HEAD | tar -x -C build/source
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(UV) build --quiet --offline \
		--no-build-isolation --python $(PY) --out-dir dist build/source
	$(PY) -m twine check --strict dist/*
	@ls -l dist/*; big="$$(find dist -size +5000000c)"; test -z "$$big" || { \
		echo "Larger than 5 MB: $$big" >&2; exit 1; }

lint: env-demo  ## check style and formatting only
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

env-demo: system-demo .venv/detectron2.stamp .venv/project.stamp  ## make .venv for the demo: PyTorch, Detectron2

env-test: system-test env-demo .venv/test.stamp  ## make .venv for the tests: the demo's and MMDetection

lock: env-demo  ## write requirements/*.lock anew from requirements/*.in
	$(COMPILE) requirements/build.in -o requirements/build.lock
	$(COMPILE) requirements/demo.in -c requirements/build.lock -o requirements/demo.lock
	$(COMPILE) requirements/test.in -c requirements/demo.lock -o requirements/test.lock

clean:  ## remove .venv, caches and build leftovers (the compiled MMCV stays in the user cache)
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- .venv, step by step. A stamp is written when its step is done, so what failed or was stopped
# is run again, and what a changed lock asks for too. `UV_OFFLINE=1 make ...` works from the caches.

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/gradaug_det
TORCH := $(shell sed -n 's/^torch==\([^ ]*\).*/\1/p' requirements/demo.lock)
# Some wheels have 800 MB.
export UV_HTTP_TIMEOUT ?= 300
# Another environment that is active must not get in the way.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX

# uv does not read pip's configuration, in which mirrors are often named.
UV_INDEX = export PATH="$(CURDIR)/.venv/bin:$$PATH"; \
	index="$${UV_DEFAULT_INDEX:-$${UV_INDEX_URL:-$${PIP_INDEX_URL:-$$( \
		$(PY) -m pip config get global.index-url 2>/dev/null)}}}"; \
	test -z "$$index" || export UV_DEFAULT_INDEX="$$index"
UV_INSTALL = $(UV_INDEX); uv pip install --python $(PY) --no-deps --no-build-isolation --compile-bytecode
# The locks are complete, so nothing is resolved, and they name the tools that builds use.
LOCKED = --require-hashes -r

# Made anew where its Python is gone or is another than the one asked for, or where the project was
# moved: its programs have the path.
ASKED := $(if $(findstring command,$(origin PYTHON)),$(PYTHON),$(PY))
MADE := $(filter $(CURDIR),$(shell version=$$($(PY) -V 2>/dev/null) && \
	test "$$version" = "$$($(ASKED) -V)" && cat .venv/made.stamp 2>/dev/null))

# What the system lacks, in Debian's names, is installed in one go before any download.
# Playwright's own browsers are not on the package indexes. `env`: sudo passes no variables on.
PACKAGE = $(or $(filter python3.%,$(notdir $(PYTHON))),python3)
system-demo system-test:
	@test "$$(uname)" = Linux || { echo 'The locked packages are for Linux: on this system, install' \
		"the project with \`pip install -e '.[detectron2,mmdet,dev]'\`." >&2; exit 1; }
	@test -z '$(PYTHON)' || $(PYTHON) $(FITS) || { echo '$(PYTHON) is no Python 3.10 to 3.13, which' \
		'the locked packages are for: name another one, or none to have one looked for.' >&2; exit 1; }
	@has() { for name; do command -v "$$name" >/dev/null && return; done; false; }; \
	runs() { $(or $(if $(MADE),$(PY)),$(PYTHON),python3) -c "$$1" 2>/dev/null; }; \
	lacks=; test '$(MADE)' || has uv || runs 'import ensurepip' || lacks=' $(PACKAGE)-venv'; \
	if test $@ = system-test; then \
		has $(firstword $(CXX)) || lacks="$$lacks g++"; \
		$(if $(MADE)$(PYTHON),runs 'import sysconfig as s; open(s.get_path("include") + "/Python.h")', \
			has python3) || lacks="$$lacks $(PACKAGE)-dev"; \
		has chromium chromium-browser google-chrome || lacks="$$lacks chromium"; \
	fi; \
	test "$$lacks" || exit 0; \
	echo "Installing Debian's packages$$lacks (a minute)"; \
	test "$$(id -u)" = 0 || sudo='sudo -n'; apt="$$sudo env DEBIAN_FRONTEND=noninteractive apt-get"; \
	{ $$apt update && $$apt install -y --no-install-recommends $$lacks; } || { echo 'Install these' \
		"yourself (Debian's names): \`sudo apt-get install$$lacks\`." >&2; exit 1; }

# Where no Python fits, not even among the packages just installed, uv fetches one; and where there
# is no uv, a Python of another version fetches that.
.venv/made.stamp: $(if $(MADE),,FORCE)
	$(eval PYTHON := $(or $(PYTHON),$(FOUND)))
	@echo 'Making .venv with $(or $(PYTHON),a Python 3.10 to 3.13 that uv fetches: none is here)'
	@if $(or $(PYTHON),false) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv --clear .venv; \
	else command -v uv >/dev/null || { export PATH="$(CURDIR)/build/uv/bin:$$PATH"; \
			python3 -m venv build/uv && pip install -qq $(LOCKED) requirements/build.lock; }; \
		uv venv --clear --seed --python '$(or $(PYTHON),$(RANGE))' .venv; \
	fi || { echo 'No .venv could be made. uv fetches a Python from GitHub, or from the address in' \
		'UV_PYTHON_INSTALL_MIRROR: where it reaches neither, install a Python 3.10 to 3.13 and its' \
		'venv module, or name one with `make PYTHON=/path/to/python3.13`.' >&2; exit 1; }
	@echo '$(CURDIR)' > $@

# pip keeps no copies for later: the build tools, uv among them, are put into the user's cache.
.venv/tools.stamp: requirements/build.lock .venv/made.stamp
	@echo 'Installing uv and the build tools (10 seconds)'
	@pip="$(PY) -m pip --quiet --disable-pip-version-check"; \
	copies="install --no-index --find-links $(CACHE)/tools"; mkdir -p $(CACHE)/tools; \
	$$pip $$copies $(LOCKED) $< 2>/dev/null || { \
		$$pip download --dest $(CACHE)/tools $(LOCKED) $< && $$pip $$copies $(LOCKED) $<; }
	@touch $@

.venv/demo.stamp: requirements/demo.lock .venv/tools.stamp
	@echo 'Installing PyTorch and the other pinned packages (2 minutes, 7 GB)'
	@$(UV_INSTALL) $(LOCKED) $<
	@touch $@

.venv/detectron2.stamp: tools/install_detectron2.py .venv/demo.stamp
	@$(PY) tools/install_detectron2.py
	@touch $@

.venv/project.stamp: setup.py pyproject.toml .venv/demo.stamp
	@$(UV_INSTALL) --editable .
	@touch $@

# uv forgets a wheel that it built when anything else asks for the metadata of the same sdist, and
# does not know that MMCV's fits one version of PyTorch only: so this step has a cache of its own, and
# each Python has one, or they would take turns in building it.
# Operators are built for the CPU; users with a GPU take MMCV's own prebuilt wheels.
.venv/test.stamp: requirements/test.lock .venv/demo.stamp
	@echo 'Installing MMDetection; MMCV is compiled once (15 to 25 minutes on 2 cores)'
	@export MMCV_WITH_OPS=1 FORCE_CUDA=0 CUDA_VISIBLE_DEVICES= MAX_JOBS="$${MAX_JOBS:-$$(nproc)}"; \
	tag="$$($(PY) -c 'import sys; print(sys.implementation.cache_tag)')"; \
	export UV_CACHE_DIR="$(CACHE)/uv-torch-$(TORCH)-$$tag"; $(UV_INSTALL) $(LOCKED) $<
	@touch $@
