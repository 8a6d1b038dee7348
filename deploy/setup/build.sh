#!/usr/bin/env bash
# Runs a cargo command with one line of progress. The first build compiles RocksDB and librdkafka,
# which takes long; the objects that exist so far say how far it is. Cargo is verbose in the log, so that
# crates which are built already count too.
# usage: build.sh LABEL cargo ARGS...
set -euo pipefail

label=$1
shift
cache=${KEDGE_CACHE:-$HOME/.cache/kedge}
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$cache/log"
log="$cache/log/${label//[^a-z0-9]/-}.log"

# Objects of RocksDB 11 as librocksdb-sys builds it.
rocksdb_objects=330
crates=$(cargo tree --workspace --prefix none --edges normal,build,dev --format '{p}' 2>/dev/null | sort -u | wc -l)
[[ $crates -gt 0 ]] || crates=1
started=$SECONDS

objects() { find "$target" -path '*librocksdb-sys-*' -newer "$log.start" -name '*.o' 2>/dev/null | wc -l; }
bar() {
  local done=$1 all=$2 width=30 filled
  filled=$((done * width / all))
  ((filled > width)) && filled=$width
  printf '[%s%s]' "$(printf '%*s' "$filled" '' | tr ' ' '#')" "$(printf '%*s' $((width - filled)) '' | tr ' ' '.')"
}
units() { sed -nE 's/^ +(Fresh|Compiling|Checking) ([^ ]+ v[^ ]+).*/\2/p' "$log" | sort -u | wc -l; }
doing() {
  if [[ $(tail -n 1 "$log") == *'Blocking waiting for file lock'* ]]; then
    echo 'waiting for another build'
  else
    sed -nE 's/^ +(Compiling|Checking) ([^ ]+) v.*/\2/p' "$log" | tail -n 1
  fi
}
report() {
  local crate_count object_count now line
  crate_count=$(units)
  object_count=$(objects)
  now=$(doing)
  line="    $label $(bar "$crate_count" "$crates") $crate_count of about $crates crates"
  ((object_count > 0)) && line+=", RocksDB $object_count/$rocksdb_objects"
  line+=", $(((SECONDS - started) / 60))m$(printf %02d $(((SECONDS - started) % 60)))s"
  [[ -n $now ]] && line+=", $now"
  if [[ -t 1 ]]; then printf '\r\033[K%s' "$line"; else echo "$line"; fi
}

echo "==> $label: $*"
: >"$log.start"
CARGO_TERM_VERBOSE=true "$@" </dev/null >"$log" 2>&1 &
job=$!
trap 'kill "$job" 2>/dev/null || true' INT TERM
step=1
[[ -t 1 ]] || step=30
last=$SECONDS
while kill -0 "$job" 2>/dev/null; do
  sleep 0.5
  if ((SECONDS - last >= step)); then
    last=$SECONDS
    report
  fi
done
status=0
wait "$job" || status=$?
[[ -t 1 ]] && printf '\r\033[K'
if ((status != 0)); then
  grep -nE -A 20 '^error' "$log" | cut -c -300 | head -n 120 || tail -n 60 "$log"
  echo "==> $label: failed; the whole log is $log" >&2
  exit "$status"
fi
echo "==> $label: done in $(((SECONDS - started) / 60))m$(printf %02d $(((SECONDS - started) % 60)))s"
