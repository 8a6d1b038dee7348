#!/usr/bin/env bash
# Installs the Debian packages that a target needs and that are missing.
# usage: packages.sh build|test|bench
set -euo pipefail

packages=(g++ make pkg-config libclang-dev libssl-dev zlib1g-dev ccache)
if [[ ${1:-build} == test ]]; then
  packages+=(curl kcat mosquitto-clients faketime python3 python3-venv iproute2 iperf3 iputils-ping)
  packages+=(openjdk-17-jdk-headless maven)
  # a toolchain from elsewhere is as good
  command -v go >/dev/null || packages+=(golang-go)
  command -v npm >/dev/null || packages+=(nodejs npm)
fi

[[ ${1:-build} != bench ]] || packages+=(mosquitto)

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $status == installed ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  echo "==> Debian packages: all ${#packages[@]} there"
  exit 0
fi

as_root=()
if ((EUID != 0)); then
  as_root=(sudo -n)
  if ! sudo -n true 2>/dev/null; then
    echo "These packages are missing and need root: ${missing[*]}" >&2
    echo "Run: sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
fi
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Use-Pty=0 -qq "$@" </dev/null
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "==> Debian packages: installing ${missing[*]}"
for attempt in 1 2 3; do
  if apt update >"$log" 2>&1 && apt install -y --no-install-recommends "${missing[@]}" >>"$log" 2>&1; then
    # a benchmark's peer, not a service of this machine
    if [[ " ${missing[*]} " == *" mosquitto "* && -d /run/systemd/system ]]; then
      "${as_root[@]}" systemctl -q disable --now mosquitto
    fi
    exit 0
  fi
  echo "    attempt $attempt of 3 failed"
  sleep 5
done
tail -n 30 "$log" >&2
exit 1
