#!/usr/bin/env bash
# Builds grpc_csharp_plugin, which Debian packages without, from Debian's own grpc sources into the cache outside the
# checkout. Needs libprotoc-dev, libgrpc++-dev and g++; seconds, and 9 MB of download. Does nothing when it is there.
set -euo pipefail

kept=${XDG_CACHE_HOME:-$HOME/.cache}/npcd/grpc_csharp_plugin
if command -v grpc_csharp_plugin >/dev/null 2>&1 || [ -x "$kept" ]; then
    echo "csharp plugin: there already"
    exit 0
fi
wanted=()
for package in g++ libprotoc-dev libgrpc++-dev; do
    dpkg -s "$package" >/dev/null 2>&1 || wanted+=("$package")
done
if [ "${#wanted[@]}" -gt 0 ]; then
    echo "csharp plugin: missing. Run: apt-get install -y ${wanted[*]}" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The sources come from where this machine's packages come from.
mkdir -p "$work/from" "$work/lists/partial" "$work/grpc"
for file in /etc/apt/sources.list.d/*.sources; do
    [ -f "$file" ] && sed 's/^Types:.*/Types: deb-src/' "$file" > "$work/from/$(basename "$file")"
done
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ -f "$file" ] && sed -n 's/^deb /deb-src /p' "$file" > "$work/from/$(basename "$file" .list).list"
done
apt=(apt-get -q -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/from" -o "Dir::State::lists=$work/lists"
     -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
[ "$(id -u)" -eq 0 ] && apt+=(-o APT::Sandbox::User=root)
cd "$work/grpc"
"${apt[@]}" update >"$work/log" 2>&1 && "${apt[@]}" source --download-only grpc >>"$work/log" 2>&1 || {
    tail -n 5 "$work/log" >&2
    echo "csharp plugin: Debian's grpc sources could not be had" >&2
    exit 1
}
tar -xf grpc_*.orig.tar.* --strip-components=1 --wildcards '*/src/compiler/*'
c++ -std=c++17 -O1 -I. src/compiler/csharp_plugin.cc src/compiler/csharp_generator.cc -lprotoc -lprotobuf -o plugin
mkdir -p "$(dirname "$kept")"
mv plugin "$kept"
echo "csharp plugin: built"
