# Everything a checkout needs, in a handful of words:
#   make run      set up, then chat with the demo model over HTTP
#   make test     set up, lint, run every test
#   make check    the inner loop: types only, or CRATE=core (one crate), TEST=tests/api (a folder, a file, a test)
# They bring what a package index can bring, and say plainly what you must install yourself.

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMPS  := .cache/stamps
BACKEND ?= $(shell $(BIN)/python tools/detect_backend.py 2>/dev/null || echo cpu)
PORT    ?= 3000
RESULTS ?= benches/results
# Who sits before a terminal sees what is compiled; a log is spared it.
QUIET   := $(if $(MAKE_TERMOUT),,--quiet)

RUST_SOURCES   := $(shell find rust -name '*.rs' -o -name '*.toml' -o -name '*.h' | grep -v /target/) Cargo.toml Cargo.lock
PYTHON_SOURCES := $(shell find python -type f -not -name '*.pyc' -not -path '*/include/*' -not -path '*/vendor/*' -not -name '*.so') \
  pyproject.toml README.md
WEB_SOURCES    := $(wildcard web/package*.json web/entries/*.js) web/vendor.sha256 tools/vendor_web.py

.PHONY: setup run test test-compiled test-rust test-python check clients lint sanitize soak docs pictures bench gen engine samples wheel clean help
.DEFAULT_GOAL := help

help:
	@sed -n '2,5s/^# *//p' $(MAKEFILE_LIST)
	@echo "  make setup | engine [BACKEND=cpu|cuda|metal|vulkan] | lint | clients | sanitize | soak | docs | bench | gen | wheel | clean"

## set-up ###########################################################################################

$(STAMPS)/tools: pyproject.toml tools/check_toolchain.py
	@$(PYTHON) tools/check_toolchain.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --group build
	@mkdir -p $(@D) && touch $@

# Several hundred megabytes, which whoever only runs the node does not wait for.
$(STAMPS)/tests: $(STAMPS)/tools
	$(BIN)/python -m pip install --quiet --group test
	@mkdir -p $(@D) && touch $@

# The libraries of the web page, and what its tests need. WEB=no builds without it.
$(STAMPS)/web: $(STAMPS)/tools $(WEB_SOURCES)
	$(BIN)/python tools/vendor_web.py
	@mkdir -p $(@D) && touch $@

$(STAMPS)/wheel: $(STAMPS)/tools $(if $(filter no,$(WEB)),,$(STAMPS)/web) $(RUST_SOURCES) $(PYTHON_SOURCES)
	@rm -rf .cache/wheels
	@echo "building the node; the first time takes some ten minutes on two cores"
	$(BIN)/maturin build --release --locked $(QUIET) --out .cache/wheels
	$(BIN)/python -m pip install --quiet .cache/wheels/llm_node-*.whl
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps .cache/wheels/llm_node-*.whl
	@touch $@

# The build script decides whether there is anything to do.
engine: $(STAMPS)/tools
	$(BIN)/python tools/build_engine.py $(BACKEND) $(PORTABLE)

samples: $(STAMPS)/tools
	@$(MAKE) --no-print-directory -C engines/sample_c OUT=$(CURDIR)/engines

# The package and the engine side by side: each ends with what one core does.
BOTH = +@$(MAKE) --no-print-directory --jobs=2 $(STAMPS)/wheel engine

setup: $(STAMPS)/tests
	$(BOTH) BACKEND=cpu

# Two: the node, and the CPU engine as a package of its own. PORTABLE=--portable makes them for other machines too.
wheel: $(STAMPS)/tools
	$(BOTH) BACKEND=cpu PORTABLE=$(PORTABLE)
	$(BIN)/python tools/build_engine_wheel.py engines/llama_cpp/cpu

## use ##############################################################################################

# The Makefile chooses the backend and says which; the program itself never falls back to the CPU.
run: $(STAMPS)/tools
	$(BOTH) BACKEND=$(BACKEND)
	@echo "GPU backend: $(BACKEND) (make run BACKEND=... chooses another)"
	@echo "llm-node lies in $(CURDIR)/$(BIN): in another terminal, type that before its name, or add it to PATH"
	$(BIN)/llm-node --engines-dir engines --gpu-backend $(BACKEND) --port $(PORT)

## checks ###########################################################################################

# Compiling and waiting go well together: most of the Python tests wait for what a node does, and go first.
test: setup
	@$(MAKE) --no-print-directory --jobs=2 test-compiled test-python

test-compiled:
	@nice $(MAKE) --no-print-directory lint
	@nice $(MAKE) --no-print-directory test-rust

# A test that waits for ever ends here, by its name, and not with the patience of whoever waits for the whole. Cargo has
# jobs of its own: it is not given make's, whose descriptors a recipe does not get.
test-rust: export MAKEFLAGS =
test-rust:
	$(if $(shell command -v timeout),timeout 1800) cargo test --workspace --exclude llm-node-py --locked --quiet
	$(BIN)/python tools/build_engine.py cpu --test

# Tests of one file share a running node, so a file is never split. They fill the machine, and a test can fail for that
# alone: what failed is run once more by itself, is seen twice in the output, and fails for good if it fails again.
test-python:
	@rm -f .pytest_cache/v/cache/lastfailed
	$(BIN)/python -m pytest -n 4 --dist loadfile || { \
	  echo "What failed is run once more, by itself:"; \
	  $(BIN)/python -m pytest --last-failed --last-failed-no-failures none; }

# Types of everything in seconds; or one crate with its tests and lints; or some tests of the installed wheel.
check: $(STAMPS)/tests $(if $(wildcard $(STAMPS)/wheel),,$(STAMPS)/wheel)
ifeq ($(CRATE)$(TEST),)
	cargo check --workspace --all-targets --locked --quiet
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
endif
ifneq ($(CRATE),)
	cargo clippy -p llm-node-$(CRATE) --all-targets --locked --quiet -- -D warnings
	$(if $(filter py,$(CRATE)),,cargo test -p llm-node-$(CRATE) --locked --quiet)
endif
ifneq ($(TEST),)
	@$(MAKE) --no-print-directory $(STAMPS)/wheel
	$(BIN)/python -m pytest -q -x $(TEST)
endif

lint: $(STAMPS)/tests $(STAMPS)/wheel
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest llm_node._core
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/lint_c.py
	$(BIN)/python tools/check_web.py

# Python clients that bring much with them, in an environment of their own; and those in JavaScript.
clients: setup
	@test -x .cache/clients/bin/python || $(PYTHON) -m venv .cache/clients
	.cache/clients/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.cache/clients/bin/python -m pip install --quiet --group clients
	$(BIN)/python -m pytest -q tests/clients

# 200,000 orders, 40 in a case, in a world that is made up; models that make room for each other for ten minutes; a
# thousand loads; a context that comes back; and what loads and embeddings cost others, on a machine at rest.
soak: $(STAMPS)/tests $(STAMPS)/wheel
	PROPTEST_CASES=5000 cargo test --package llm-node-fleet --locked --quiet --test simulation
	SOAK_SECONDS=600 $(BIN)/python -m pytest --quiet --timeout 1200 \
	  tests/node/test_room.py tests/node/test_memory.py tests/node/test_neighbours.py \
	  -k "in_turn or leave_nothing_behind or comes_back_by_itself or hold_no_report_up or leave_a_stream_its_pace"

# What is unsafe under AddressSanitizer, UndefinedBehaviorSanitizer and Miri; says which of them cannot run here.
sanitize:
	@$(PYTHON) tools/sanitize.py $(SANITIZE)

gen: $(STAMPS)/tests $(STAMPS)/wheel
	$(BIN)/python tools/generate_docs.py

# What the pages show of browser and terminal, drawn anew. A test draws them too, and leaves these alone.
pictures: setup
	$(BIN)/python tools/page_picture.py
	$(BIN)/python tools/terminal_picture.py

# The documentation as a site, in .cache/site/docs/index.html. A link that leads nowhere is an error.
docs: $(STAMPS)/tests
	$(BIN)/python -m sphinx -q -W -n --keep-going -c docs -b html . .cache/site

# Against llama-server, which it builds first; see docs/benchmarks.md. ROWS=decode-8,burst-32 for some only.
bench: setup
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m benches --output $(RESULTS) $(if $(ROWS),--rows $(ROWS) --merge)

clean:
	rm -rf $(VENV) .cache target web/node_modules python/llm_node/web/vendor \
	  engines/*/target engines/llama_cpp/cpu engines/llama_cpp/cuda \
	  engines/llama_cpp/metal engines/llama_cpp/vulkan engines/my_engine engines/sample_markov
