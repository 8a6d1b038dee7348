#!/usr/bin/env bash
# Puts the program of tests/clients/node (kafkajs) into the cache, with what it needs beside it.
set -euo pipefail

here=$(cd "$(dirname "$0")/../clients/node" && pwd)
cache=${KEDGE_CACHE:-$HOME/.cache/kedge}
stamp=$(cd "$here" && sha256sum client.js package.json package-lock.json | sha256sum | cut -c1-12)
dir="$cache/node-clients-$stamp"

if [[ ! -e $dir/.complete ]]; then
  echo "==> Node clients: installing"
  mkdir -p "$dir" "$cache/log"
  log="$cache/log/npm.log"
  cp "$here"/{client.js,package.json,package-lock.json} "$dir"
  for attempt in 1 2 3; do
    if (cd "$dir" && npm ci --ignore-scripts --no-audit --no-fund) </dev/null >"$log" 2>&1; then
      touch "$dir/.complete"
      break
    fi
    echo "    attempt $attempt of 3 failed"
    [[ $attempt == 3 ]] && { tail -n 30 "$log"; exit 1; }
    sleep 5
  done
fi
ln -sfn "$dir" "$cache/node-clients"
echo "==> Node clients: $dir"
