#!/usr/bin/env bash
# Tries static binaries out on this machine: tests/cross.sh [BINARY…]   (default: dist/*/sampan)
#
# Each has to be static, not position-independent and below the size budget. Those for another
# machine run under qemu-user as the smallest board of their kind would: version, check, the demo's
# programs, and a server's API, store, controllers, scheduler and broker. What needs namespaces and
# netlink (containers, networks) cannot run there: tests/boot.sh boots whole machines.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/toolchain.sh

SIZE_MAX_BYTES=$((20 * 1024 * 1024))

[ $# -gt 0 ] || set -- dist/*/sampan
need_packages binutils

fail() { echo "tests/cross.sh: $binary: $*" >&2; exit 1; }

work=$(mktemp -d)
server=''
finish() {
    [ -z "$server" ] || kill -9 "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

# until_true SECONDS COMMAND…
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >"$work/last" 2>&1; do
        [ $SECONDS -lt $end ] || { cat "$work/last" "$work/server.log" >&2; fail "waited for: $*"; }
        sleep 0.2
    done
}

try() {
    local emulator=() header
    header=$(readelf -hlW "$binary")
    case $(sed -n 's/ *Machine: *//p' <<<"$header") in
    *X86-64*) [ "$(uname -m)" = x86_64 ] || emulator=(qemu-x86_64-static) ;;
    AArch64) [ "$(uname -m)" = aarch64 ] || emulator=(qemu-aarch64-static -cpu cortex-a53) ;;
    ARM) case $binary in
        *armv7*) emulator=(qemu-arm-static -cpu cortex-a7) ;;
        *) emulator=(qemu-arm-static -cpu arm1176) ;;
        esac ;;
    *) fail "unknown machine" ;;
    esac
    [ ${#emulator[@]} -eq 0 ] || need_packages qemu-user-static
    run() { "${emulator[@]}" "$binary" "$@"; }

    grep -q INTERP <<<"$header" && fail "not static"
    grep -qE 'Type: +EXEC' <<<"$header" || fail "position-independent"
    case $binary in
    */dist/*) [ "$(stat -c %s "$binary")" -le $SIZE_MAX_BYTES ] || fail "larger than $SIZE_MAX_BYTES bytes" ;;
    esac

    [[ $(run --version) = 'sampan '* ]] || fail "--version"
    run check -o json >"$work/check" || [ $? -eq 1 ] || fail "check"
    grep -q '"id": "memory-cgroup"' "$work/check" || fail "check says nothing: $(cat "$work/check")"
    [ "$(run demo echo a b)" = "a b" ] || fail "demo echo"
    [[ $(run demo date) = 20* ]] || fail "demo date"
    port=$((20000 + RANDOM % 10000))
    "${emulator[@]}" "$binary" demo web $port >"$work/server.log" 2>&1 &
    server=$!
    page() { [[ $(run demo wget -q -O - "http://127.0.0.1:$port/") = 'pod: '* ]]; }
    until_true 30 page
    kill "$server"
    wait "$server" || fail "demo web does not stop cleanly"

    : >"$work/server.log"
    "${emulator[@]}" "$binary" server --data-dir "$work/data" --run-dir "$work/run" --log-dir "$work/log" --listen 127.0.0.1:0 \
        --mqtt-listen 127.0.0.1:0 --disable agent,network,dns,ingress >"$work/server.log" 2>&1 </dev/null &
    server=$!
    k() { run "$1" --kubeconfig "$work/data/kubeconfig" "${@:2}"; }
    until_true 60 k get namespaces default
    k apply -f examples/demo/demo.yaml >"$work/last" || fail "apply: $(cat "$work/last")"
    # Controllers have made the pods; without a node they are Pending.
    pending() { [ "$(k get pods --no-headers | grep -c Pending)" = 2 ]; }
    until_true 60 pending
    kill "$server"
    wait "$server" || fail "the server does not stop cleanly: $(tail -n 5 "$work/server.log")"
    server=''
    rm -rf "$work/data" "$work/run"
    printf 'ok  %-45s %5.1f MB\n' "$binary" "$(stat -c %s "$binary" | awk '{print $1 / 1048576}')"
}

for binary in "$@"; do
    case $binary in /*) ;; *) binary=$PWD/$binary ;; esac
    [ -f "$binary" ] || fail "no such file (cross/build.sh makes it)"
    try
done
