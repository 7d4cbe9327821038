#!/bin/busybox sh
# The first process of the small root file system: a board with nothing on it but busybox and Sampan.
# There is no network but the loopback, no module is loaded, and cgroups are version 2 only.
export PATH=/usr/local/bin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t securityfs security /sys/kernel/security
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
hostname board
ip link set lo up
sampan server >/dev/console 2>&1 &
/boot-test/guest.sh
poweroff -f
