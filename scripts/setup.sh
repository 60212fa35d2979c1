#!/usr/bin/env bash
# Makes a fresh clone ready. Safe to repeat; says little when all is there. Nothing is installed outside target/, nothing is started.
#   setup.sh           all of it
#   setup.sh build     what `cargo build` needs: protoc
#   setup.sh tools     what `make build`, `make test` and `make check` need
#   setup.sh etcd      what `make test` starts: Debian's etcd, in target/servers/etcd
#   setup.sh servers   what only `make bench` uses beside it: rsyslog as a peer, socat, jq
set -euo pipefail
cd "$(dirname "$0")/.."

DENY=0.20.2
ETCD=(etcd-server etcd-client)
SERVERS=(rsyslog libestr0 libfastjson4 liblognorm5 socat libwrap0 jq libjq1 libonig5)

say() { printf 'setup: %s\n' "$*"; }
missing=0
need() { # command, and what brings it
    command -v "$1" >/dev/null && return
    missing=1
    say "missing: $1. $2"
}

check_system() {
    if [ "$(uname -s)" != Linux ]; then
        say "this is $(uname -s); the agent is built for Linux only so far (src/os says what another system has to offer)"
        exit 1
    fi
    need cc "Debian, Ubuntu: sudo apt-get install build-essential. Elsewhere: a C compiler and its headers"
    need make "Debian, Ubuntu: sudo apt-get install build-essential. Elsewhere: GNU make"
    need git "Debian, Ubuntu: sudo apt-get install git. Elsewhere: git"
    need cargo "Everywhere: install rustup (https://rustup.rs), then: rustup toolchain install stable --component clippy,rustfmt"
    [ "$missing" = 0 ] || exit 1
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    found=$(rustc --version | cut -d' ' -f2)
    if [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1)" != "$wanted" ]; then
        say "rustc $found is too old, accepted: $wanted or later. With rustup: rustup update stable"
        exit 1
    fi
    for part in fmt clippy; do
        cargo "$part" --version >/dev/null 2>&1 || {
            say "missing: cargo $part. With rustup: rustup component add rustfmt clippy"
            exit 1
        }
    done
}

install_deny() {
    local bin=target/tools/bin/cargo-deny
    [ "$("$bin" --version 2>/dev/null)" != "cargo-deny $DENY" ] || return 0
    say "building cargo-deny $DENY into target/tools, once: about two minutes"
    cargo install --quiet --locked --root target/tools --target-dir target/tools/build cargo-deny --version "$DENY"
    rm -rf target/tools/build
}

# Only the build of etcd-client uses it, through scripts/protoc.
fetch_protoc() {
    local dir=target/protoc
    ! command -v protoc >/dev/null && [ ! -e $dir/done ] || return 0
    if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
        say "missing: protoc, and no apt-get to bring it. Install protobuf's compiler, 3.15 or later"
        exit 1
    fi
    rm -rf $dir && mkdir -p $dir/debs
    # The libraries' names change from release to release: asked, not known.
    if ! { unpack_protoc || { [ "$(id -u)" = 0 ] && apt-get update && unpack_protoc; }; } >$dir/log 2>&1; then
        say "could not bring protoc, see $dir/log. Debian, Ubuntu: sudo apt-get update, or: sudo apt-get install protobuf-compiler"
        exit 1
    fi
    rm -r $dir/debs
    touch $dir/done
}
unpack_protoc() {
    local packages
    packages=$(apt-cache depends --recurse --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances protobuf-compiler |
        grep -E '^(protobuf-compiler|libproto[a-z-]*[0-9]*(t64)?)$' | sort -u) || return 1
    # shellcheck disable=SC2086 # words
    (cd "$dir/debs" && apt-get download -q $packages) || return 1
    for deb in "$dir"/debs/*.deb; do dpkg -x "$deb" "$dir" || return 1; done
}

# The tests of the store and of jobs are about it: without one they cannot be run.
fetch_etcd() {
    local dir=target/servers/etcd
    [ "$(cat $dir/packages 2>/dev/null)" != "${ETCD[*]}" ] || return 0
    if command -v etcd >/dev/null && command -v etcdctl >/dev/null; then return 0; fi
    if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
        say "missing: etcd and etcdctl, and no apt-get to bring them. Put both on the PATH, 3.4 or later"
        exit 1
    fi
    rm -rf $dir && mkdir -p $dir/debs
    if ! { download_etcd || { [ "$(id -u)" = 0 ] && apt-get update && download_etcd; }; } >target/servers/etcd.log 2>&1; then
        say "could not download ${ETCD[*]}, see target/servers/etcd.log. Debian, Ubuntu: sudo apt-get update, or put etcd and etcdctl on the PATH"
        exit 1
    fi
    for deb in $dir/debs/*.deb; do dpkg -x "$deb" $dir; done
    rm -r $dir/debs
    echo "${ETCD[*]}" >$dir/packages
}
download_etcd() { (cd "$dir/debs" && apt-get download -q "${ETCD[@]}"); }

# Debian's own packages, unpacked: no root, no service.
fetch_servers() {
    local dir=target/servers
    [ "$(cat $dir/packages 2>/dev/null)" != "${SERVERS[*]}" ] || return 0
    if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
        say "no apt-get here, so no rsyslog, socat and jq in $dir: \`make bench\` uses those on the PATH, or leaves them out"
        return 0
    fi
    rm -rf $dir/usr $dir/etc $dir/debs && mkdir -p $dir/debs # target/servers/etcd is another's
    if ! (cd $dir/debs && apt-get download -q "${SERVERS[@]}") >$dir/log 2>&1; then
        say "could not download ${SERVERS[*]}, see $dir/log (\`sudo apt-get update\` may help); only \`make bench\` uses them"
        return 0
    fi
    for deb in $dir/debs/*.deb; do dpkg -x "$deb" $dir; done
    rm -r $dir/debs
    echo "${SERVERS[*]}" >$dir/packages
    say "unpacked into $dir: ${SERVERS[*]} (run with LD_LIBRARY_PATH=$(echo $dir/usr/lib/*-linux-gnu))"
}

check_system
case ${1:-all} in
    all) fetch_protoc && install_deny && fetch_etcd && fetch_servers ;;
    build) fetch_protoc ;;
    tools) fetch_protoc && install_deny ;;
    etcd) fetch_etcd ;;
    servers) fetch_servers ;;
    *) say "found \`$1\`, accepted: build, tools, etcd, servers, or nothing for all" && exit 64 ;;
esac
