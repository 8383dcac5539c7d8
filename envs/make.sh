#!/usr/bin/env bash
# make.sh NAME: make .venvs/NAME hold what envs/NAME.txt pins; nothing to do when it does already.
# The stamp .venvs/NAME.ready holds the hash of the pinned file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=$1
pins=envs/$name.txt
venv=.venvs/$name
ready=.venvs/$name.ready
hash=$(sha256sum "$pins" | cut -d ' ' -f 1)

if [ -x "$venv/bin/python" ] && [ "$(cat "$ready" 2>/dev/null)" = "$hash" ]; then
    touch "$ready"
    exit 0
fi

uv=.venvs/uv/bin/uv
if [ ! -x "$uv" ]; then
    python3.11 -m venv .venvs/uv
    .venvs/uv/bin/pip install --quiet --requirement envs/uv.txt
fi

rm -f "$ready"
"$uv" venv --quiet --clear --no-python-downloads --python 3.11 "$venv"
# uv does not read pip's variable for local wheels. Bytecode is compiled once, here, not at every
# start. Dependencies are resolved, not left out: torch and triton bring what the platform needs.
"$uv" pip install --compile-bytecode ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} \
    --python "$venv/bin/python" --requirement "$pins"
printf '%s\n' "$hash" >"$ready"
