#!/usr/bin/env bash
# Builds the static binary to ship: cross/build.sh TARGET…
#
#   aarch64-unknown-linux-musl        Raspberry Pi 3, 4, 5 and most boards with a 64-bit system
#   armv7-unknown-linux-musleabihf    32-bit systems on ARMv7 (Pi 2 and newer)
#   arm-unknown-linux-musleabihf      ARMv6 with hard float (Pi Zero, Pi 1)
#   x86_64-unknown-linux-musl         PCs, and boards with Intel or AMD
#
# The result is dist/TARGET/sampan. By default everything comes from distribution packages: Debian's
# rustc-web, with zig (from PyPI) as C compiler and linker. With SAMPAN_CROSS=rustup the compiler is an
# installed rustup's. The standard library is built from its sources either way: the one that comes
# built has unwind tables and is optimised for speed, which makes the binary 3 MB larger.
# With SAMPAN_PROFILE=release the link-time optimisation is left out: a third of the time, a larger
# binary in target/TARGET/release, for trying things out. SAMPAN_PROFILE=smoke optimises nothing: what
# CI builds for all targets.
#
# The binary is fully static and not position-independent: every container's shim is this binary, and
# a position-independent one has its relocated pages (200 to 300 KB) privately in each of them.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/toolchain.sh

ZIG_VERSION=0.15.2
ZIGBUILD_VERSION=0.20.1
root=$PWD
tools=$root/target/cross-tools
profile=${SAMPAN_PROFILE:-dist}

need_zig() {
    if [ ! -x "$tools/bin/cargo-zigbuild" ]; then
        # Debian's python3 has venv without what it installs pip from.
        python3 -c 'import venv, ensurepip' 2>/dev/null || need_packages python3 python3-venv
        # The machine's own authorities, as cargo and apt have them.
        [ ! -f /etc/ssl/certs/ca-certificates.crt ] || export PIP_CERT=${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}
        python3 -m venv "$tools"
        "$tools/bin/pip" install -q "ziglang==$ZIG_VERSION" "cargo-zigbuild==$ZIGBUILD_VERSION"
    fi
    PATH="$tools/bin:$PATH"
}

build() {
    local target=$1 tree=$root out
    # Nothing unwinds (panics abort, backtraces would have no names), so there are no tables for it.
    local flags="-C relocation-model=static -C target-feature=+crt-static -C force-unwind-tables=no -C link-self-contained=no"
    export CFLAGS="-fno-asynchronous-unwind-tables -fno-unwind-tables"
    local args=(zigbuild --profile "$profile" --locked --bin sampan --target "$target"
        -Zbuild-std=std,panic_abort -Zbuild-std-features=optimize_for_size)
    case $target in arm*) tree=$root/$(cross/arm32.sh) ;; esac
    (cd "$tree" && CARGO_TARGET_DIR=$root/target RUSTFLAGS="$flags" "${CARGO:-cargo}" "${args[@]}")
    out=target/$target/$profile/sampan
    if [ "$profile" = dist ]; then
        mkdir -p "dist/$target"
        cp "$out" "dist/$target/sampan"
        out=dist/$target/sampan
    fi
    ls -l "$out"
}

if [ $# -eq 0 ]; then
    sed -n '2,20p' "$0" | cut -c3-
    exit 2
fi
need_packages gcc libc6-dev
# The compiler is a stable one; building std is what needs the bootstrap switch.
export RUSTC_BOOTSTRAP=1
if [ "${SAMPAN_CROSS:-packages}" = rustup ]; then
    rustup component add rust-src
else
    need_packages rustc-web cargo-web rust-web-src
    export RUSTC=/usr/bin/rustc CARGO=/usr/bin/cargo
fi
need_zig
for target in "$@"; do
    build "$target"
done
