#!/usr/bin/env bash
# Makes .venv and installs npcd and its Python client into it, both editable. Safe to run again: what is there stays.
# PYTHON=/path/to/python picks another interpreter than the one found here. One line a stage; pip's words are in the log.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=.venv
LOG=build/setup.log
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

# A name on the PATH may be a stub that does not run, so each one is tried.
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
    has llama-cpp-python && return
    local name
    for name in ${CXX:-} c++ g++ clang++; do
        command -v "$name" >/dev/null 2>&1 && return
    done
    missing "a C++ compiler (llama.cpp is built from source)" "$(fix g++ gcc-c++ gcc)"
}

# stage WHAT COMMAND...: prints one line for a stage, and its time. All output of the command goes into the log.
stage() {
    local what=$1 began=$SECONDS status=0 working ticking=""
    shift
    printf '\n== %s\n' "$what" >>"$LOG"
    printf 'setup: %s ... ' "$what"
    set -m  # a process group of its own, so that Ctrl-C can end pip together with the compilers that it started
    "$@" >>"$LOG" 2>&1 </dev/null &
    working=$!
    set +m
    # On a terminal the line counts seconds, so that a long compilation does not look like a hang.
    if [ -t 1 ]; then
        while sleep 1; do printf '\rsetup: %s ... %d s ' "$what" $((SECONDS - began)); done &
        ticking=$!
    fi
    # shellcheck disable=SC2064 # the numbers of these two processes are meant
    trap "kill -- -$working $ticking 2>/dev/null; printf '\nsetup: interrupted\n' >&2; exit 130" INT TERM
    wait "$working" || status=$?
    trap - INT TERM
    if [ -n "$ticking" ]; then
        kill "$ticking" 2>/dev/null || true
        wait "$ticking" 2>/dev/null || true
        printf '\rsetup: %s ... ' "$what"
    fi
    if [ "$status" -ne 0 ]; then
        printf 'FAILED after %d s\n' $((SECONDS - began))
        printf 'setup: the last lines of %s:\n' "$LOG" >&2
        # The last stage's own lines: pip says the reason near the end.
        tail -n 15 "$LOG" | cut -c 1-300 | sed 's/^/    /' >&2
        printf 'setup: %s failed. The whole log is %s. Mend the cause, then run the same command again: finished stages are kept.\n' \
            "$what" "$PWD/$LOG" >&2
        exit 1
    fi
    printf '%d s\n' $((SECONDS - began))
}

has() { answers "$VENV/bin/python" "import importlib.metadata; importlib.metadata.version('$1')"; }

make_venv() { rm -rf "$VENV" && "$1" -m venv "$VENV"; }

# The pins also hold for what builds a package (hatchling): pip reads them for that from the environment, the newer ones
# under the second name.
pip_install() {
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_CONSTRAINT=requirements.txt PIP_BUILD_CONSTRAINT=requirements.txt \
        "$VENV/bin/python" -m pip install -c requirements.txt "$@"
}

if ! mkdir -p "$(dirname "$LOG")" || ! : >"$LOG"; then
    printf 'setup: cannot write %s. Make this folder writable, or clone into one that is.\n' "$PWD/$LOG" >&2
    exit 1
fi
if ! answers "$VENV/bin/python" 'import pip'; then
    python=$(find_python) || exit 1
    need_compiler
    stage "making $VENV with $("$python" --version 2>&1)" make_venv "$python"
else
    need_compiler
fi
# The longest stage comes first and alone, so that it can be named. pip takes a wheel from its cache when there is one.
has llama-cpp-python || stage "building llama.cpp (3 to 6 minutes the first time)" pip_install llama-cpp-python
stage "installing npcd, its client and test tools" pip_install -e '.[dev]' -e clients/python

touch "$VENV/.ready"
say "done in $((SECONDS - STARTED)) s"
