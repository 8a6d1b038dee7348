#!/usr/bin/env bash
# Compiles the programs of tests/clients/java into the cache, against the jars that kafka-jars.sh put there.
set -euo pipefail

here=$(cd "$(dirname "$0")/../clients/java" && pwd)
cache=${KEDGE_CACHE:-$HOME/.cache/kedge}
stamp=$({ readlink "$cache/kafka-libs"; cat "$here"/*.java; } | sha256sum | cut -c1-12)
classes="$cache/java-clients-$stamp"

if [[ ! -e $classes/.complete ]]; then
  echo "==> Java clients: compiling"
  mkdir -p "$classes"
  javac --release 17 -Xlint:all,-classfile,-processing,-path -Werror -cp "$cache/kafka-libs/*" -d "$classes" "$here"/*.java
  touch "$classes/.complete"
fi
ln -sfn "$classes" "$cache/java-clients"
echo "==> Java clients: $classes"
