#!/usr/bin/env bash
# Boots a board and pulls its plug: tests/boot.sh [--arch ARCH] [--init INIT] BINARY
#
#   --arch  x86_64 or aarch64 (default: what BINARY is for)
#   --init  busybox (default): nothing but busybox and Sampan, no systemd
#           systemd: Debian with systemd, set up by `sampan install`
#
# A Debian kernel in qemu (emulated: no KVM is needed), 512 MiB, up to 4 cores, cgroup version 2 only, no
# network. First boot: the node gets ready, the demo's Deployment, Service and Ingress work, and a volume
# holds no more than its claim says (the disk has project quotas); AppArmor, huge pages and the kernel's
# measure of pressure are at work. While it writes, qemu is killed. Second
# boot: every acknowledged write is there, and all is back by itself; an NFS server that accepts and never
# answers holds up neither another pod, nor the node, nor its pod's end.
# As root on Debian 12; the kernel and the rest come from Debian's packages. State is in target/boot.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/toolchain.sh

MEMORY_MIB=512
# A board has four; more than this machine has would let its kernel see CPUs that stand still for minutes.
CORES=${CORES:-$(($(nproc) < 4 ? $(nproc) : 4))}
# How long one boot may take until the next thing happens: emulation on a busy machine is slow.
PATIENCE_SECONDS=${PATIENCE_SECONDS:-300}
# The plug is pulled when so many writes were acknowledged.
WRITES=40

arch='' init=busybox binary=''
while [ $# -gt 0 ]; do
    case $1 in
    --arch) arch=$2; shift 2 ;;
    --init) init=$2; shift 2 ;;
    *) binary=$1; shift ;;
    esac
done
[ -f "$binary" ] || { sed -n '2,13p' "$0" | cut -c3-; exit 2; }
need_packages apparmor binutils busybox-static cpio e2fsprogs kmod
[ -n "$arch" ] || case $(readelf -h "$binary" | sed -n 's/ *Machine: *//p') in
*X86-64*) arch=x86_64 ;;
*AArch64*) arch=aarch64 ;;
*) echo "tests/boot.sh: $binary is for another machine; there is no 32-bit variant" >&2; exit 2 ;;
esac
case $arch in
x86_64) debian=amd64 qemu_package=qemu-system-x86 machine=(-M q35 -cpu max) console=ttyS0 ;;
aarch64) debian=arm64 qemu_package=qemu-system-arm machine=(-M virt -cpu cortex-a72) console=ttyAMA0 ;;
*) echo "tests/boot.sh: unknown architecture $arch" >&2; exit 2 ;;
esac
need_packages "$qemu_package"

work=$PWD/target/boot/$arch
packages=$work/packages
root=$work/root.$init
disk=$work/disk.$init.ext4
log=$work/console.$init.log
mkdir -p "$packages"

# apt for the machine's architecture; another one has an index of its own, the host's is left alone.
apt=(apt-get -qq)
cache=(apt-cache)
if [ "$debian" != "$(dpkg --print-architecture)" ]; then
    mkdir -p "$work/apt/state/lists/partial" "$work/apt/cache/archives/partial"
    touch "$work/apt/status"
    options=(-o "APT::Architecture=$debian" -o "APT::Architectures::=$debian" -o "Dir::State=$work/apt/state"
        -o "Dir::State::status=$work/apt/status" -o "Dir::Cache=$work/apt/cache")
    apt+=("${options[@]}")
    cache+=("${options[@]}")
    [ -d "$work/apt/done" ] || { "${apt[@]}" update && mkdir "$work/apt/done"; }
fi

# unpack PACKAGE FOLDER
unpack() {
    local file
    if [ ! -d "$2" ]; then
        rm -rf "$2.part"
        (cd "$packages" && "${apt[@]}" download "$1" 2>/dev/null)
        file=$(ls -t "$packages/${1%%:*}"_*.deb | head -n1)
        dpkg-deb -x "$file" "$2.part"
        rm "$file"
        mv "$2.part" "$2"
    fi
}
kernel_package=$("${cache[@]}" depends "linux-image-$debian" 2>/dev/null | sed -n 's/ *Depends: //p' | head -n1)
[ -n "$kernel_package" ] || { apt-get update -qq; kernel_package=$("${cache[@]}" depends "linux-image-$debian" | sed -n 's/ *Depends: //p' | head -n1); }
unpack "$kernel_package" "$work/kernel"
unpack busybox-static "$work/busybox"
kernel=$(echo "$work"/kernel/boot/vmlinuz-*)
release=${kernel##*/vmlinuz-}
modules=$work/kernel/lib/modules/$release
busybox=$work/busybox/bin/busybox

# The modules that bring the disk up, in the order that they need each other.
make_initramfs() {
    local tree=$work/initramfs module
    rm -rf "$tree"
    mkdir -p "$tree/bin" "$tree/modules"
    cp "$busybox" "$tree/bin/busybox"
    install -m 755 tests/boot/initramfs.sh "$tree/init"
    [ -f "$modules/modules.dep" ] || depmod -b "$work/kernel" "$release"
    for module in virtio_pci virtio_blk crc32c_generic ext4 quota_v2; do
        modprobe -d "$work/kernel" -S "$release" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
    done | awk '!seen[$0]++' | while read -r module; do
        cp "$module" "$tree/modules/"
        basename "$module" >>"$tree/modules/order"
    done
    (cd "$tree" && find . | cpio -o -H newc --quiet) >"$work/initramfs.cpio"
}

# What every root file system has: modules, busybox, the binary, the checks.
fill_root() {
    local part
    mkdir -p "$root"/{bin,sbin,etc,proc,sys,dev,run,tmp,root,var/lib,usr/local/bin,boot-test} "$root/lib/modules/$release"
    for part in fs/overlayfs fs/nfs fs/nfs_common fs/lockd fs/netfs fs/fscache net lib crypto \
        drivers/net/veth.ko drivers/net/dummy.ko drivers/net/vxlan; do
        [ -e "$modules/kernel/$part" ] || continue
        mkdir -p "$root/lib/modules/$release/kernel/$(dirname "$part")"
        cp -r "$modules/kernel/$part" "$root/lib/modules/$release/kernel/$part"
    done
    cp "$modules"/modules.{builtin,builtin.modinfo,order} "$root/lib/modules/$release/"
    depmod -b "$root" "$release"
    install -m 755 "$binary" "$root/usr/local/bin/sampan"
    cp tests/boot/guest.sh examples/demo/demo.yaml "$root/boot-test/"
    apparmor_parser --quiet --skip-kernel-load --stdout tests/boot/apparmor.profile >"$root/boot-test/profile" 2>/dev/null
}

make_root() {
    rm -rf "$root"
    case $init in
    busybox)
        fill_root
        cp "$busybox" "$root/bin/busybox"
        for applet in sh mount hostname ip poweroff sed cut date sleep grep cat cp printf mkdir; do
            ln -s busybox "$root/bin/$applet"
        done
        ln -s ../bin/busybox "$root/sbin/modprobe"
        install -m 755 tests/boot/init.sh "$root/sbin/init"
        ;;
    systemd)
        need_packages mmdebstrap
        [ "$debian" = "$(dpkg --print-architecture)" ] || {
            need_packages qemu-user-static
            [ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
        }
        if [ ! -f "$work/debian.tar" ]; then
            mmdebstrap --quiet --mode=root --variant=minbase --architectures="$debian" \
                --include=systemd-sysv,kmod,busybox-static bookworm "$work/debian.part.tar"
            mv "$work/debian.part.tar" "$work/debian.tar"
        fi
        mkdir -p "$root"
        tar -C "$root" -xf "$work/debian.tar"
        fill_root
        # Where `sampan install` takes it from.
        mv "$root/usr/local/bin/sampan" "$root/boot-test/sampan"
        install -m 755 tests/boot/systemd.sh "$root/boot-test/systemd.sh"
        install -m 644 tests/boot/boot-test.service "$root/etc/systemd/system/boot-test.service"
        mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
        ln -sf ../boot-test.service "$root/etc/systemd/system/multi-user.target.wants/boot-test.service"
        # There is no udev in here, which would tell systemd of the console's device.
        ln -sf /dev/null "$root/etc/systemd/system/serial-getty@$console.service"
        echo board >"$root/etc/hostname"
        ;;
    *) echo "tests/boot.sh: unknown init $init" >&2; exit 2 ;;
    esac
    rm -f "$disk"
    # With project quotas: volumes hold what their claims say.
    mke2fs -q -t ext4 -O quota,project -E quotatype=prjquota -d "$root" "$disk" 2G
    rm -rf "$root"
}

qemu=''
pull_plug() { [ -z "$qemu" ] || { kill -9 "$qemu" 2>/dev/null && wait "$qemu" 2>/dev/null; qemu=''; } || true; }
trap pull_plug EXIT

power_on() {
    : >"$log"
    "qemu-system-$arch" "${machine[@]}" -accel tcg,thread=multi -smp "$CORES" -m "$MEMORY_MIB" \
        -kernel "$kernel" -initrd "$work/initramfs.cpio" -append "console=$console quiet panic=-1 hugepages=8 $*" \
        -drive "file=$disk,format=raw,if=virtio,cache=writeback" -nic none -display none -no-reboot \
        -monitor none -serial "file:$log" </dev/null 2>"$log.qemu" &
    qemu=$!
}

# wait_for PATTERN: until the console shows it; fails with the console's end.
wait_for() {
    local end=$((SECONDS + PATIENCE_SECONDS))
    until grep -qE "$1" "$log"; do
        if grep -q '^BOOT .*FAILED' "$log" || ! kill -0 "$qemu" 2>/dev/null || [ $SECONDS -gt $end ]; then
            sleep 2
            cat "$log.qemu" >&2
            tail -n "${LINES_SHOWN:-60}" "$log" >&2
            echo "tests/boot.sh: waited for: $1" >&2
            exit 1
        fi
        sleep 0.2
    done
}
steps() { tr -d '\r' <"$log" | grep '^BOOT' | sed "s/^BOOT/  $1/"; }

make_initramfs
make_root
began=$SECONDS
power_on boot.phase=first
wait_for "configmap/acked-$WRITES created"
pull_plug
# The last line may be cut off: only whole ones count.
acked=$(tr -d '\r' <"$log" | sed -n 's/.*configmap\/acked-\([0-9]*\) created$/\1/p' | sort -n | tail -n1)
steps "first boot:"
echo "  plug pulled after $acked acknowledged writes"
power_on boot.phase=second "boot.acked=$acked"
wait_for '^BOOT .*PASSED'
steps "second boot:"
pull_plug
rm -f "$disk"
echo "tests/boot.sh: $arch with $init passed in $((SECONDS - began)) s"
