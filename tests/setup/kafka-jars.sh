#!/usr/bin/env bash
# Copies the Kafka jars of tests/pom.xml into the cache: the broker, and the Java clients. Does nothing when they are there.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${KEDGE_CACHE:-$HOME/.cache/kedge}
pom="$here/../pom.xml"
stamp=$(sha256sum "$pom" | cut -c1-12)
libs="$cache/kafka-libs-$stamp"

if [[ ! -e $libs/.complete ]]; then
  echo "==> Kafka jars: fetching from Maven Central (about 140 MB)"
  mkdir -p "$libs" "$cache/log"
  log="$cache/log/maven.log"
  for attempt in 1 2 3; do
    if mvn -B -ntp -f "$pom" dependency:copy-dependencies \
      -DoutputDirectory="$libs" -DincludeScope=runtime </dev/null >"$log" 2>&1; then
      touch "$libs/.complete"
      break
    fi
    echo "    attempt $attempt of 3 failed"
    [[ $attempt == 3 ]] && { tail -n 30 "$log"; exit 1; }
    sleep 5
  done
fi
ln -sfn "$libs" "$cache/kafka-libs"
echo "==> Kafka jars: $(find "$libs" -name '*.jar' | wc -l) in $libs"
