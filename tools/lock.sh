#!/bin/sh
# Writes the locks anew from pyproject.toml: hashes, every platform, no address of any registry.
set -eu
cd "$(dirname "$0")/.."
compile() {
  output=$1
  shift
  .venv/bin/uv pip compile --quiet --universal --python-version 3.12 --generate-hashes --no-emit-index-url \
    --no-emit-find-links --no-header --no-annotate "$@" pyproject.toml -o "$output"
}
compile requirements.lock --group build
compile requirements-dev.lock --group build --group dev
