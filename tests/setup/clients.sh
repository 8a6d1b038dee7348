#!/usr/bin/env bash
# Makes the virtual environment with the Python clients of tests/requirements.txt in the cache.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${KEDGE_CACHE:-$HOME/.cache/kedge}
list="$here/../requirements.txt"
stamp=$(sha256sum "$list" | cut -c1-12)
venv="$cache/venv-$stamp"

if [[ ! -e $venv/.complete ]]; then
  echo "==> Python clients: installing"
  mkdir -p "$cache/log"
  log="$cache/log/pip.log"
  python3 -m venv --clear "$venv" </dev/null >"$log" 2>&1
  if ! "$venv/bin/python" -m pip install --no-input --disable-pip-version-check \
    --only-binary :all: -r "$list" </dev/null >>"$log" 2>&1; then
    tail -n 30 "$log"
    exit 1
  fi
  touch "$venv/.complete"
fi
ln -sfn "$venv" "$cache/venv"
echo "==> Python clients: $venv"
