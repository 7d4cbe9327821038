#!/usr/bin/env bash
# Runs every test: pure ones, simulations, and those with real containers, networks and clients.
# As root on Debian 12; installs what it needs. Arguments go to `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/.."
. cross/toolchain.sh
need_toolchain
command -v kubectl >/dev/null || need_packages kubernetes-client
need_packages docker-registry apache2-utils busybox-static crun curl e2fsprogs iproute2 iptables mosquitto nftables
exec cargo test "$@"
