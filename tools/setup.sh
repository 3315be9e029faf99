#!/usr/bin/env bash
# Makes .venv and installs npcd and its Python client into it, both editable. Safe to run again: what is there stays.
# PYTHON=/path/to/python picks another interpreter than the one found here.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=.venv
STARTED=$SECONDS

say() { printf 'setup: %s\n' "$*"; }

# fix PACKAGE-ON-DEBIAN PACKAGE-ON-FEDORA PACKAGE-ON-ARCH: the command that installs what is missing.
fix() {
    local sudo="sudo "
    [ "$(id -u)" -eq 0 ] && sudo=""
    if command -v apt-get >/dev/null 2>&1; then echo "${sudo}apt-get install -y $1"
    elif command -v dnf >/dev/null 2>&1; then echo "${sudo}dnf install -y $2"
    elif command -v pacman >/dev/null 2>&1; then echo "${sudo}pacman -S --noconfirm $3"
    else echo "install $2 with your package manager"; fi
}

missing() {
    printf 'setup: %s is missing. Run: %s\n' "$1" "$2" >&2
    exit 1
}

# A name on the PATH may be a stub that does not run, so each one is asked.
answers() { "$1" -c "$2" >/dev/null 2>&1; }

find_python() {
    local name found=""
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        answers "$name" 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || continue
        found=$name
        if answers "$name" 'import ensurepip, venv'; then echo "$name"; return; fi
    done
    if [ -z "$found" ]; then
        missing "Python 3.11, 3.12 or 3.13" "$(fix 'python3 python3-venv' python3.12 python)"
    fi
    missing "the venv module of $found" "$(fix "python$("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" python3 python)"
}

need_compiler() {
    answers "$VENV/bin/python" 'import importlib.metadata; importlib.metadata.version("llama-cpp-python")' && return
    local name
    for name in ${CXX:-} c++ g++ clang++; do
        command -v "$name" >/dev/null 2>&1 && return
    done
    missing "a C++ compiler (llama.cpp is built from source)" "$(fix g++ gcc-c++ gcc)"
}

# Prints the time now and then, so that a long compilation never looks like a hang.
tick() {
    # sleep must not hold our output open after we are gone.
    while sleep 20 >/dev/null 2>&1; do say "still installing, $((SECONDS - STARTED)) s so far"; done
}

if ! answers "$VENV/bin/python" 'import pip'; then
    python=$(find_python) || exit 1
    need_compiler
    say "making $VENV with $("$python" --version 2>&1)"
    rm -rf "$VENV"
    "$python" -m venv "$VENV"
else
    need_compiler
fi

wanted=(-e '.[dev]')
[ -f clients/python/pyproject.toml ] && wanted+=(-e clients/python)

if ! answers "$VENV/bin/python" 'import importlib.metadata; importlib.metadata.version("llama-cpp-python")'; then
    say "the first time, llama.cpp is compiled; that takes 3 to 6 minutes on two cores"
fi
tick &
ticking=$!
trap 'kill "$ticking" 2>/dev/null || true' EXIT

PIP_DISABLE_PIP_VERSION_CHECK=1 "$VENV/bin/python" -m pip install -c requirements.txt "${wanted[@]}"

touch "$VENV/.ready"
say "done in $((SECONDS - STARTED)) s"
