#!/usr/bin/env bash
# From a checkout to a running cluster with a demo workload: builds, starts `sampan server` in the
# background and applies demo.yaml. As root on Debian 12; the workload needs no network.
#   examples/demo/run.sh          start (again)
#   examples/demo/run.sh stop     stop the server and remove what it made
set -euo pipefail
cd "$(dirname "$0")/../.."
. cross/toolchain.sh
state=${SAMPAN_DEMO_DIR:-/var/lib/sampan-demo}
run=/run/sampan-demo
unit=(--data-dir "$state" --run-dir "$run" --log-dir "$state/log" --cgroup-root /sampan-demo)

[ "$(id -u)" -eq 0 ] || { echo "Please run as root: containers need it." >&2; exit 1; }

running() { [ -f "$run/demo.pid" ] && kill -0 "$(cat "$run/demo.pid")" 2>/dev/null; }

if [ "${1:-start}" = stop ]; then
    if running; then
        sampan=$(readlink "/proc/$(cat "$run/demo.pid")/exe")
        "$sampan" delete --kubeconfig "$state/kubeconfig" -f examples/demo/demo.yaml --ignore-not-found
        kill "$(cat "$run/demo.pid")"
        while running; do sleep 0.1; done
    fi
    echo "Stopped. The cluster's state is still in $state."
    exit
fi

need_toolchain
cargo build --locked
sampan=$PWD/target/$(rustc -vV | sed -n 's/^host: //p')/debug/sampan
mkdir -p "$state" "$run"
if ! running; then
    setsid "$sampan" server "${unit[@]}" >"$state/server.log" 2>&1 </dev/null &
    echo $! >"$run/demo.pid"
fi
for _ in $(seq 300); do
    "$sampan" get nodes --kubeconfig "$state/kubeconfig" >/dev/null 2>&1 && break
    running || { echo "The server ended:" >&2; tail -n 20 "$state/server.log" >&2; exit 1; }
    sleep 0.1
done
"$sampan" apply --kubeconfig "$state/kubeconfig" -f examples/demo/demo.yaml
for _ in $(seq 600); do
    ready=$("$sampan" get deployment demo -o json --kubeconfig "$state/kubeconfig" | grep -c '"readyReplicas": 2' || true)
    [ "$ready" = 1 ] && break
    sleep 0.1
done
"$sampan" get pods,services --kubeconfig "$state/kubeconfig"
cat <<EOF

The demo answers at
  http://127.0.0.1:30080/    (NodePort)
The cluster is yours:
  export KUBECONFIG=$state/kubeconfig
  kubectl get pods            (or: $sampan get pods)
Stop it with: $0 stop
EOF
