#!/usr/bin/env bash
# Checks the Dockerfile without a container engine: hadolint reads it, then its stages are built in fresh Debian 12 roots
# and the image is started, checked and stopped (tools/image.py). Root and debootstrap are needed for the
# second part; it compiles llama.cpp and takes some minutes. Roots are kept in ~/.cache/npcd/image, outside the checkout.
#
# Not checked here, because it needs an engine: docker build itself, its layers and cache, compose, published ports,
# secrets, volumes and the read-only root.
set -euo pipefail
cd "$(dirname "$0")/.."

hadolint=$(command -v hadolint || echo .venv/bin/hadolint)
if [ -x "$hadolint" ]; then
    "$hadolint" Dockerfile
    echo "check: hadolint found nothing"
else
    echo "check: hadolint is missing, not read by it. Run: make extras"
fi

missing=()
[ "$(id -u)" -eq 0 ] || missing+=("root")
for tool in debootstrap chroot unshare; do
    command -v "$tool" >/dev/null 2>&1 || missing+=("$tool")
done
if [ "${#missing[@]}" -gt 0 ]; then
    echo "check: the RUN lines were not run, missing: ${missing[*]}"
    exit 0
fi
# A mount namespace of its own, so that nothing stays mounted in any case.
exec unshare --mount --propagation private python3 -m tools.image "${XDG_CACHE_HOME:-$HOME/.cache}/npcd/image"
