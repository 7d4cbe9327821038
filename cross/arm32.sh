#!/usr/bin/env bash
# Makes target/arm32: this tree with a libcontainer that compiles for 32-bit ARM. Prints its folder.
#
# libcontainer 0.7.0 writes the magic number of devpts as a u64 (musl) or an i64 (glibc); on 32-bit
# machines the type that it is compared with has 32 bits, in two places of src/tty.rs. Nothing else is
# changed. Cargo has no patch for one target only, so the 64-bit builds are from crates.io's crate as it
# is, and these have a [patch.crates-io] to a copy of it, until a release has the fix.
set -euo pipefail
cd "$(dirname "$0")/.."

tree=target/arm32
mkdir -p "$tree"
# Times are kept, so that only what has changed is compiled again.
rm -rf "$tree/src" "$tree/systemd" "$tree/examples"
cp -a src systemd examples "$tree/"
# As on a host with this build's flags, but no benches or tests of ours.
sed '/^\[\[bench\]\]/,/^$/d' Cargo.toml >"$tree/Cargo.toml"

version=$(sed -n '/^name = "libcontainer"$/{n;s/^version = "\(.*\)"$/\1/p}' Cargo.lock)
"${CARGO:-cargo}" fetch --quiet --locked
crate=$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"libcontainer-$version" | head -n1)
copy=$tree/libcontainer
if [ ! -f "$copy/.done" ]; then
    rm -rf "$copy"
    cp -r "$crate" "$copy"
    sed -i 's/FsType(DEVPTS_SUPER_MAGIC)/FsType(DEVPTS_SUPER_MAGIC as _)/' "$copy/src/tty.rs"
    [ "$(grep -c 'FsType(DEVPTS_SUPER_MAGIC as _)' "$copy/src/tty.rs")" = 2 ] || {
        echo "cross/arm32.sh: libcontainer $version is not as this script knows it" >&2
        exit 1
    }
    touch "$copy/.done"
fi
# A workspace of its own, whatever folder it is in.
cat >>"$tree/Cargo.toml" <<EOF

[workspace]

[patch.crates-io]
libcontainer = { path = "libcontainer" }
EOF
# The same versions of everything: a crate with a path has no source and no checksum in the lock file.
sed '/^name = "libcontainer"$/,/^$/{/^source = /d;/^checksum = /d}' Cargo.lock >"$tree/Cargo.lock"
echo "$tree"
