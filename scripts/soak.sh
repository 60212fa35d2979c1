#!/usr/bin/env bash
# Looks for what happens once in a thousand times: kills -9 at random moments, then property tests with many more cases and every test with
# failpoints, again and again. MINUTES=0: the kills alone.
#   KILLS=1000 MINUTES=10 CASES=5000 scripts/soak.sh
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${MINUTES:-10}
echo "soak: ${KILLS:-1000} kills"
CRASH_KILLS=${KILLS:-1000} cargo test --test crash -- --nocapture
echo "soak: ${ETCD_RESTARTS:-50} restarts of etcd"
ETCD_RESTARTS=${ETCD_RESTARTS:-50} cargo test --test etcd restarts_of_etcd -- --nocapture
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
