#!/bin/sh
# Makes .venv with a fitting Python and the locked dependencies: `tools/bootstrap.sh [run|dev]`. Needs no root.
# Finds Python >= 3.12 by itself: $PYTHON, PATH, pyenv's versions, uv; says what to install where there is none.
set -eu
cd "$(dirname "$0")/.."
kind=${1:-run}
case $kind in
run) lock=requirements.lock ;;
dev) lock=requirements-dev.lock ;;
*) echo "usage: tools/bootstrap.sh [run|dev], found '$kind'" >&2; exit 2 ;;
esac

fits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12) or sys.implementation.name != "cpython")' >/dev/null 2>&1; }

candidates() {
  [ -z "${PYTHON:-}" ] || echo "$PYTHON"
  for name in python3.13 python3.12 python3.14 python3 python; do command -v "$name" || true; done
  for root in "${PYENV_ROOT:-}" "$HOME/.pyenv" /opt/pyenv /usr/local/pyenv; do
    [ -n "$root" ] && ls -d "$root"/versions/3.1[2-9]*/bin/python3 2>/dev/null || true
  done
  if command -v uv >/dev/null; then uv python find '>=3.12' 2>/dev/null || true; fi
}

find_python() {
  candidates | while read -r python; do
    if fits "$python"; then echo "$python"; break; fi
  done
}

# The folder is part of the mark: a virtual environment does not survive being moved.
wanted="$(cksum <"$lock") $(cksum <pyproject.toml) $kind $PWD"
mark=.venv/.quarterdeck-installed
if [ -f "$mark" ] && .venv/bin/python -c '' 2>/dev/null; then
  [ "$(cat "$mark")" != "$wanted" ] || exit 0
  # A development environment holds everything that running needs.
  [ "$kind" != run ] || [ "$(cat "$mark")" != "$(cksum <requirements-dev.lock) $(cksum <pyproject.toml) dev $PWD" ] || exit 0
fi

if ! fits .venv/bin/python; then
  python=$(find_python)
  if [ -z "$python" ]; then
    cat >&2 <<'SAY'
error: no Python >= 3.12 with venv and ensurepip was found (looked at $PYTHON, PATH, pyenv's versions and uv).
Install one and run this again, for example:
  Debian 13 / Ubuntu 24.04:  apt-get install python3 python3-venv
  with pyenv:                pyenv install 3.12
  with uv:                   uv python install 3.12
or name one:                 PYTHON=/path/to/python3.12 make up
SAY
    exit 1
  fi
  echo "quarterdeck: making .venv with $("$python" --version 2>&1) ($python)" >&2
  rm -rf .venv
  "$python" -m venv .venv
fi

# An environment made by uv has no pip of its own.
.venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null
echo "quarterdeck: installing the locked dependencies ($lock), once" >&2
if command -v uv >/dev/null && uv pip install --quiet --python .venv/bin/python --require-hashes -r "$lock" 2>/dev/null; then
  :
else
  .venv/bin/python -m pip install -qq --disable-pip-version-check --no-input --require-hashes -r "$lock"
fi
.venv/bin/python -m pip install -qq --disable-pip-version-check --no-input --no-deps --no-build-isolation --no-index -e .
echo "$wanted" >"$mark"
