#!/usr/bin/env bash
# Installs the pinned cargo-deny into the cache when it is missing.
set -euo pipefail

version=0.20.2
cache=${KEDGE_CACHE:-$HOME/.cache/kedge}
here=$(cd "$(dirname "$0")" && pwd)
tool="$cache/tools-$version"
if [[ ! -x $tool/bin/cargo-deny ]]; then
  CARGO_TARGET_DIR="$cache/target-tools" "$here/build.sh" cargo-deny \
    cargo install --locked --version "$version" --root "$tool" cargo-deny
fi
ln -sfn "$tool" "$cache/tools"
