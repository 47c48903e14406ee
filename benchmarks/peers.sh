#!/usr/bin/env bash
# Makes .peers, a virtual environment with the libraries that benchmarks/photographs.py compares with, from PyPI.
#
#   benchmarks/peers.sh          # torch and torchvision as in .venv; TORCH_INDEX: another place to find them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
torch=$(.venv/bin/python -c 'from importlib.metadata import version as v; print(v("torch"))')
vision=$(.venv/bin/python -c 'from importlib.metadata import version as v; print(v("torchvision"))')
[ -x .peers/bin/python ] || .venv/bin/python -m venv .peers
pip=(.peers/bin/python -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "torch==${torch%%+*}" "torchvision==${vision%%+*}"
"${pip[@]}" lightly
if ! "${pip[@]}" solo-learn; then
    echo "solo-learn does not install beside this torch; it is left out" >&2
fi
.peers/bin/python -m pip freeze | grep -iE '^(torch|torchvision|lightly|solo)[-=]' >&2
