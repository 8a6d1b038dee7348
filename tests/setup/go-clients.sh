#!/usr/bin/env bash
# Builds the Go programs of tests/clients/go (franz-go, sarama) into the cache, with the release that go.mod asks
# for. Go 1.21 or newer fetches it by itself; Debian 12's 1.19 can't even read that go.mod, and is only used to fetch
# the release as a module, checked against sum.golang.org.
set -euo pipefail

here=$(cd "$(dirname "$0")/../clients/go" && pwd)
cache=${KEDGE_CACHE:-$HOME/.cache/kedge}
stamp=$(cd "$here" && find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-12)
bin="$cache/go-clients-$stamp"

fetch_release() {
  local release module
  release="v0.0.1-go$(sed -n 's/^go //p' "$here/go.mod").$(go env GOOS)-$(go env GOARCH)"
  toolchain="$cache/go-$release"
  [[ -e $toolchain/.complete ]] && return
  echo "==> Go clients: fetching Go ${release#v0.0.1-go}"
  module=$(cd / && go mod download -json "golang.org/toolchain@$release" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
  rm -rf "$toolchain"
  cp -r --no-preserve=mode "$module" "$toolchain"
  chmod -R +x "$toolchain/bin" "$toolchain/pkg/tool"
  # a module can't hold another's go.mod
  cp "$toolchain/src/_go.mod" "$toolchain/src/go.mod"
  touch "$toolchain/.complete"
}

if [[ ! -e $bin/.complete ]]; then
  mkdir -p "$bin" "$cache/log"
  if (($(go env GOVERSION | cut -d. -f2) < 21)); then
    fetch_release
    export PATH="$toolchain/bin:$PATH"
  fi
  # a distribution may have set it to "local"
  export GOTOOLCHAIN=auto
  echo "==> Go clients: building"
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
