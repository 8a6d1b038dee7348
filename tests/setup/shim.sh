#!/usr/bin/env bash
# Compiles the lost-writes shim that the power-cut tests preload into the site's process.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${KEDGE_CACHE:-$HOME/.cache/kedge}
mkdir -p "$cache"
if [[ ! $cache/lostwrites.so -nt $here/lostwrites.c ]]; then
  cc -O2 -Wall -Wextra -Werror -shared -fPIC -o "$cache/lostwrites.so.tmp" "$here/lostwrites.c" -ldl -lpthread
  mv "$cache/lostwrites.so.tmp" "$cache/lostwrites.so"
fi
echo "==> Lost-writes shim: $cache/lostwrites.so"
