#!/usr/bin/env bash
# make.sh NAME: make .venvs/NAME hold what envs/NAME.txt pins; nothing to do when it does already.
# The environment itself says which pinned file it was made from: the stamp .venvs/NAME.ready is
# Snakemake's, which removes it before it makes it anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=$1
pins=envs/$name.txt
venv=.venvs/$name
made=$venv/made_from
ready=.venvs/$name.ready
hash=$(sha256sum "$pins" | cut -d ' ' -f 1)

if [ -x "$venv/bin/python" ] && [ "$(cat "$made" 2>/dev/null)" = "$hash" ]; then
    printf '%s\n' "$hash" >"$ready"
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
printf '%s\n' "$hash" >"$made"
printf '%s\n' "$hash" >"$ready"
