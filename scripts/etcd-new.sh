#!/usr/bin/env bash
# Builds a newer etcd than Debian's, once, into target/servers/etcd-new, and prints where it is. Needs Go.
set -euo pipefail
cd "$(dirname "$0")/.."

VERSION=v3.7.3
dir=$PWD/target/servers/etcd-new
if [ "$(cat "$dir/version" 2>/dev/null)" != $VERSION ]; then
    if ! command -v go >/dev/null; then
        echo "etcd-new: missing: go, to build etcd $VERSION. Or name an etcd: make test-etcd ETCD=/path/to/etcd" >&2
        exit 1
    fi
    echo "etcd-new: building etcd $VERSION into $dir, once: about a minute" >&2
    rm -rf "$dir" && mkdir -p "$dir/source"
    cat >"$dir/source/main.go" <<'EOG'
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
EOG
    (
        cd "$dir/source"
        go mod init etcd-for-tests
        go get "go.etcd.io/etcd/server/v3@$VERSION"
        go build -o ../etcd .
    ) >"$dir/log" 2>&1 || {
        echo "etcd-new: could not build it, see $dir/log" >&2
        exit 1
    }
    rm -rf "$dir/source"
    echo $VERSION >"$dir/version"
fi
echo "$dir/etcd"
