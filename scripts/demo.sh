#!/usr/bin/env bash
# The agent on this machine's own logs: starts it with a private data dir, shows what it sees and delivers, stops it. Leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh build
cargo build --quiet --bin agent
agent=${CARGO_TARGET_DIR:-target}/debug/agent

dir=$(mktemp -d "${TMPDIR:-/tmp}/agent-demo.XXXXXX")
pid=
leave() {
    [ -z "$pid" ] || kill "$pid" 2>/dev/null || true
    rm -rf "$dir"
}
trap leave EXIT
title() { printf '\n\033[1m── %s\033[0m\n' "$*"; }
broken() {
    printf '\n%s; the agent says:\n' "$1" >&2
    tail -n 20 "$dir/stderr" >&2
    exit 1
}

seq -f 'demo line %g: made before the start' 1 1000 >"$dir/app.log"

title "agent start: /var/log and a log of our own → valid → logr"
# The copy is kept small however much there is in /var/log.
"$agent" start --foreground --data-dir "$dir/state" -http-address 127.0.0.1:0 \
    -input file -filepath "/var/log/**/*.log,$dir/app.log" -filter valid -output logr \
    -f "{\"output\":{\"logr\":{\"path\":\"$dir/out.log\",\"max_size\":\"8MiB\",\"keep\":1}}}" \
    >"$dir/stdout" 2>"$dir/stderr" &
pid=$!
for _ in $(seq 100); do
    "$agent" status --data-dir "$dir/state" >/dev/null 2>&1 && break
    kill -0 "$pid" 2>/dev/null || broken "it did not start"
    sleep 0.05
done
seq -f 'demo line %g: written while it runs' 1001 1010 >>"$dir/app.log"
for _ in $(seq 100); do
    grep -qs 'demo line 1010' "$dir"/out.log* && break
    sleep 0.05
done
grep -qs 'demo line 1010' "$dir"/out.log* || broken "demo line 1010 did not arrive"
echo "running as process $pid, $(grep -hc . "$dir/out.log") lines in out.log so far"

title "agent status"
"$agent" status --data-dir "$dir/state"

title "agent files (the first 12)"
"$agent" files --data-dir "$dir/state" | sed -n 1,12p

title "delivered, the last of our own log"
cat "$dir"/out.log* | grep 'demo line' | tail -n 5

title "GET /metrics, the pipeline's events"
address=$("$agent" status --data-dir "$dir/state" --json | grep -o '127\.0\.0\.1:[0-9]*' | sed -n 1p)
exec 3<>"/dev/tcp/${address%:*}/${address#*:}"
printf 'GET /metrics HTTP/1.0\r\nHost: %s\r\n\r\n' "$address" >&3
tr -d '\r' <&3 | grep -E '^luffly_(events|bytes|conservation)' || broken "no metrics at $address"
exec 3>&-

title "agent stop"
"$agent" stop --data-dir "$dir/state" --timeout 10s
code=0
wait "$pid" || code=$?
pid=
echo "exit code $code (0: nothing lost)"
exit "$code"
