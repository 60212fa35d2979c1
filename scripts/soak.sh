#!/usr/bin/env bash
# Looks for what happens once in a thousand times: property tests with many more cases, then every test with failpoints, again and again.
#   MINUTES=10 CASES=5000 scripts/soak.sh
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${MINUTES:-10}
export PROPTEST_CASES=${CASES:-5000}
until=$((SECONDS + minutes * 60))
round=0
while [ "$SECONDS" -lt "$until" ]; do
    round=$((round + 1))
    echo "soak: round $round, $(((until - SECONDS) / 60 + 1)) minutes left"
    cargo test --quiet
    cargo test --quiet --features failpoints -- --test-threads=1
done
echo "soak: $round rounds, nothing fell"
