#!/usr/bin/env bash
# make.sh NAME: install what envs/NAME.txt pins into .venvs/NAME. Does nothing if it is installed.
# .venvs/NAME/made_from holds the SHA-256 of the pins; it is written last, so that an environment
# without it counts as incomplete.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=$1
pins=envs/$name.txt
venv=.venvs/$name
python=3.11
oldest_uv=0.8.0 # the first with `uv venv --clear`

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

# sha256 FILE: macOS has shasum instead of sha256sum.
sha256() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi |
        cut -d ' ' -f 1
}

# is_recent UV: whether it is at least $oldest_uv.
is_recent() {
    local version
    version=$("$1" --version 2>/dev/null | cut -d ' ' -f 2)
    [ -n "$version" ] &&
        [ "$(printf '%s\n' "$oldest_uv" "$version" | sort -V | head -n 1)" = "$oldest_uv" ]
}

# find_uv: set $uv to the uv on PATH, to the one in .venvs/uv, or to a new one there.
find_uv() {
    uv=$(command -v uv || true)
    if [ -n "$uv" ] && is_recent "$uv"; then return; fi
    uv=.venvs/uv/bin/uv
    if [ -x "$uv" ]; then return; fi
    command -v python3 >/dev/null || fail \
        "neither uv (>= $oldest_uv) nor python3 is on PATH; install uv (https://docs.astral.sh/uv/) or Python 3"
    python3 -c 'import ensurepip, venv' 2>/dev/null || fail \
        "$(command -v python3) cannot create virtual environments; install its venv module (Debian, Ubuntu: apt install python3-venv) or uv (https://docs.astral.sh/uv/)"
    python3 -m venv --clear .venvs/uv
    .venvs/uv/bin/python -m pip install --quiet --disable-pip-version-check --requirement envs/uv.txt
}

mkdir -p .venvs
hash=$(sha256 "$pins")
# Two runs may start at once. Not every system has the command, nor every file system the locks.
if command -v flock >/dev/null; then
    exec 9>>.venvs/.lock
    flock 9 || true
fi
if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/made_from" 2>/dev/null)" = "$hash" ]; then
    exit 0
fi
echo "Building the $name environment (once, about a minute)"
find_uv

# uv takes an installed Python or downloads one.
if ! reason=$("$uv" venv --quiet --clear --python "$python" "$venv" 2>&1); then
    printf '%s\n' "$reason" >&2
    fail "found no Python $python on PATH, and uv could not download one; install Python $python, or run \`uv python install $python\` where there is a network"
fi
# uv does not read pip's variable for local wheels. Bytecode is compiled once, here, not at every
# start. Dependencies are resolved, not left out: torch and triton bring what the platform needs.
"$uv" pip install --compile-bytecode ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} \
    --python "$venv/bin/python" --requirement "$pins"
printf '%s\n' "$hash" >"$venv/made_from"
