# Every target sets up what it needs; each can be run again at any time.
PYTHON ?= /usr/bin/python3
V := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PROTOS := $(shell find proto -name '*.proto')
SITE = $(shell $(V)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')

.PHONY: demo test lint proto bench clean setup packages
.DEFAULT_GOAL := setup

demo: setup
	@$(V)/python -m lab.demo $(if $(SIMULATED),--simulated)

test: lint build/browser/.done
	$(V)/python -m pytest $(PYTEST_ARGS)

lint: setup build/api.binpb
	$(V)/ruff check . && $(V)/ruff format --check .
	$(V)/mypy
	$(V)/lint-imports
	$(V)/buf lint build/api.binpb

proto: build/proto/.done

bench: setup
	$(V)/python -m bench.start_overhead
	$(V)/python -m bench.store
	$(V)/python -m bench.density
	$(V)/python -m bench.migrate
	$(V)/python -m bench.placement
	$(V)/python -m bench.failover
	$(V)/python -m bench.simulate

clean:
	-test -x $(V)/gugus-lab && $(V)/gugus-lab down
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis

setup: packages .venv/.done build/proto/.done

packages:
	@sh systemd/packages.sh

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(V)/pip install -q --upgrade 'pip>=25.1'
	$(V)/pip install -q -c constraints.txt --group dev
	mkdir -p build/proto && $(V)/pip install -q -c constraints.txt -e .
	touch $@

build/proto/.done: $(PROTOS) .venv/.done
	rm -rf build/proto && mkdir -p build/proto
	$(V)/python -m grpc_tools.protoc -Iproto -I$(SITE) --python_out=build/proto --grpc_python_out=build/proto \
	    --mypy_out=build/proto --mypy_grpc_out=build/proto $(PROTOS)
	touch $@

build/api.binpb: $(PROTOS) .venv/.done
	mkdir -p build
	$(V)/python -m grpc_tools.protoc -Iproto -I$(SITE) --include_imports --include_source_info -o$@ $(PROTOS)

build/browser/.done: $(wildcard tests/lab/browser/*.txt tests/lab/browser/*.json tests/lab/browser/*.sh)
	mkdir -p build/browser
	@sh tests/lab/browser/install.sh build/browser
	touch $@
