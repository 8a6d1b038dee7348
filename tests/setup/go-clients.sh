#!/usr/bin/env bash
# Builds the Go programs of tests/clients/go (franz-go, sarama) into the cache. Go 1.21 or newer fetches the
# release that go.mod asks for by itself.
set -euo pipefail

here=$(cd "$(dirname "$0")/../clients/go" && pwd)
cache=${KEDGE_CACHE:-$HOME/.cache/kedge}
stamp=$(cd "$here" && find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-12)
bin="$cache/go-clients-$stamp"

if [[ ! -e $bin/.complete ]]; then
  echo "==> Go clients: building"
  mkdir -p "$bin" "$cache/log"
  log="$cache/log/go-clients.log"
  for attempt in 1 2 3; do
    if (cd "$here" && GOFLAGS='-buildvcs=false' go build -o "$bin/" ./franz ./sarama) </dev/null >"$log" 2>&1; then
      touch "$bin/.complete"
      break
    fi
    echo "    attempt $attempt of 3 failed"
    [[ $attempt == 3 ]] && { tail -n 30 "$log"; exit 1; }
    sleep 5
  done
fi
ln -sfn "$bin" "$cache/go-clients"
echo "==> Go clients: $bin"
