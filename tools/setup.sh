#!/usr/bin/env bash
# Makes .venv and installs npcd and its Python client into it, both editable. Safe to run again: what is there stays.
# PYTHON=/path/to/python picks another interpreter than the one found here. GPU=cuda or GPU=vulkan builds llama.cpp for a
# GPU, GPU=cpu without one; unset keeps the kind that is there. One line a stage; pip's words are in the log.
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

# -- builds for a GPU --------------------------------------------------------------------------------------------------

# Some toolkits are not on the PATH, and a name on the PATH may be a stub that does not run.
first_that_runs() {
    local name
    for name in "$@"; do
        if [ -n "$name" ] && "$name" --version >/dev/null 2>&1; then command -v "$name"; return; fi
    done
    return 1
}

# first_file PATH...: the first of these files that is there.
first_file() {
    local path
    for path in "$@"; do [ -e "$path" ] && echo "$path" && return; done
    return 1
}

LACKS=0
lacks() { printf 'setup: GPU=%s needs %s. Run: %s\n' "$GPU" "$1" "$2" >&2; LACKS=1; }

need_cuda() {
    local root
    if ! CUDACXX=$(first_that_runs "${CUDACXX:-}" nvcc "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "${CUDA_ROOT:-/usr/local/cuda}/bin/nvcc"); then
        lacks "CUDA's compiler (an nvcc that runs)" "$(fix nvidia-cuda-toolkit cuda-toolkit cuda)"
        return
    fi
    export CUDACXX
    root=$(dirname "$(dirname "$(readlink -f "$CUDACXX")")")
    local header
    for header in cuda_runtime.h cublas_v2.h; do
        first_file "$root/include/$header" "$root"/targets/*/include/$header "${SYSTEM_ROOT:-}/usr/include/$header" >/dev/null ||
            lacks "CUDA's header $header" "$(fix nvidia-cuda-toolkit cuda-toolkit cuda)"
    done
    nvidia-smi >/dev/null 2>&1 || say "no NVIDIA driver answers here (nvidia-smi): the build will run where one does"
}

need_vulkan() {
    local core where=${VULKAN_SDK:-} system=${SYSTEM_ROOT:-}/usr
    first_that_runs glslc "${where:+$where/bin/glslc}" >/dev/null || lacks "the shader compiler glslc" "$(fix glslc glslc shaderc)"
    core=$(first_file ${where:+"$where/include/vulkan/vulkan_core.h"} "$system/include/vulkan/vulkan_core.h" || true)
    if [ -z "$core" ]; then
        lacks "the Vulkan headers" "$(fix libvulkan-dev 'vulkan-headers vulkan-loader-devel' 'vulkan-headers vulkan-icd-loader')"
    elif ! grep -q VkLayerSettingEXT "$core"; then
        printf 'setup: GPU=vulkan needs Vulkan headers of version 1.3.272 or newer; %s has %s, as Debian 12 does. %s\n' "$core" \
            "1.3.$(sed -n 's/^#define VK_HEADER_VERSION \([0-9]*\)$/\1/p' "$core")" \
            "Take libvulkan-dev of Debian 13, or LunarG's SDK and VULKAN_SDK=/its/folder." >&2
        LACKS=1
    fi
    first_file ${where:+"$where"/share/cmake/SPIRV-Headers/SPIRV-HeadersConfig.cmake} \
        "$system"/share/cmake/SPIRV-Headers/SPIRV-HeadersConfig.cmake \
        "$system"/lib/*/cmake/SPIRV-Headers/SPIRV-HeadersConfig.cmake >/dev/null ||
        lacks "the SPIR-V headers" "$(fix spirv-headers spirv-headers-devel spirv-headers)"
}

# The kind that .venv has, and the version of llama-cpp-python that the pins want.
built_kind() { cat "$VENV/.gpu" 2>/dev/null || echo cpu; }
pinned() { sed -n 's/^llama_cpp_python==//p' requirements.txt; }

settle_gpu() {
    GPU=${GPU:-$(built_kind)}
    case $GPU in
    cpu) return ;;
    cuda) need_cuda ;;
    vulkan) need_vulkan ;;
    *)
        printf "setup: GPU=%s is not known; it must be cuda, vulkan or cpu.\n" "$GPU" >&2
        exit 1
        ;;
    esac
    if [ "$LACKS" -ne 0 ]; then
        printf 'setup: nothing was built. Install what is missing and run the same command again, or use GPU=cpu.\n' >&2
        exit 1
    fi
    # Later stages may build llama-cpp-python as well: they must not make another kind of it.
    export CMAKE_ARGS="${CMAKE_ARGS:-} -DGGML_${GPU^^}=on"
}

# True when llama-cpp-python is there in the kind and the version that are wanted.
llama_is_right() {
    has llama-cpp-python && [ "$(built_kind)" = "$GPU" ] || return 1
    [ "$GPU" = cpu ] || answers "$VENV/bin/python" "
import importlib.metadata as m, sys; sys.exit(m.version('llama-cpp-python') != '$(pinned)')"
}

# cmake goes on without a backend whose parts it does not find, so the library itself is looked at.
check_backend() {
    [ "$GPU" = cpu ] && return
    local built
    built=$("$VENV/bin/python" -c 'import importlib.util as u; print(u.find_spec("llama_cpp").submodule_search_locations[0])')
    if [ ! -e "$built/lib/libggml-$GPU.so" ]; then
        rm -f "$VENV/.gpu" "$VENV/.ready"
        printf 'setup: llama.cpp was built without %s: %s is not there. The reason is in %s.\n' \
            "$GPU" "$built/lib/libggml-$GPU.so" "$PWD/$LOG" >&2
        exit 1
    fi
}

# pip keeps the wheels that it builds, whatever they were built for, so those for a GPU are neither kept nor taken.
build_llama() {
    if [ "$GPU" = cpu ]; then
        pip_install --force-reinstall --no-deps llama-cpp-python
    else
        pip_install --force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python llama-cpp-python
    fi
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
    llama_is_right && return
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
settle_gpu
if ! answers "$VENV/bin/python" 'import pip'; then
    python=$(find_python) || exit 1
    need_compiler
    stage "making $VENV with $("$python" --version 2>&1)" make_venv "$python"
else
    need_compiler
fi
# The longest stage comes first and alone, so that it can be named. pip takes a wheel from its cache when there is one.
if ! llama_is_right; then
    if ! has llama-cpp-python && [ "$GPU" = cpu ]; then
        stage "building llama.cpp (3 to 6 minutes the first time)" pip_install llama-cpp-python
    elif [ "$GPU" = cpu ]; then
        stage "building llama.cpp without a GPU" build_llama
    else
        stage "building llama.cpp for $GPU (5 to 60 minutes)" build_llama
    fi
    check_backend
    echo "$GPU" >"$VENV/.gpu"
fi
stage "installing npcd, its client and test tools" pip_install -e '.[dev]' -e clients/python
check_backend

touch "$VENV/.ready"
say "done in $((SECONDS - STARTED)) s"
