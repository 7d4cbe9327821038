#!/bin/busybox sh
# What is checked inside the machine; says `BOOT …` on the console, which tests/boot.sh reads there.
# The kernel's command line says which boot this is: boot.phase=first, or boot.phase=second with
# boot.acked=N, the number of writes that were acknowledged before the plug was pulled.
# shellcheck disable=SC2002
exec >/dev/console 2>&1
export PATH=/usr/local/bin:/usr/bin:/usr/sbin:/sbin:/bin
word() { sed -n "s/.*boot\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
say() { echo "BOOT $(cut -d' ' -f1 /proc/uptime) $*"; }
fail() { say "FAILED $*"; sampan get pods,nodes,events -A; sleep 1; poweroff -f; exit 1; }

# until_true SECONDS WHAT COMMAND…: repeats the command until it succeeds.
until_true() {
    local seconds=$1 what=$2 end
    shift 2
    end=$(($(date +%s) + seconds))
    until "$@" >/tmp/last 2>&1; do
        [ "$(date +%s)" -lt "$end" ] || { cat /tmp/last; fail "$what"; }
        sleep 0.2
    done
    say "$what"
}
node_ready() { sampan get nodes --no-headers | grep -q ' Ready '; }
rolled_out() { sampan get deployment demo -o json | grep -q '"readyReplicas": 2'; }
page() { sampan demo wget -q -T 2 -O - "$@" | grep -q '^pod: demo-'; }
service_answers() {
    page "http://$(sampan get service demo -o json | sed -n 's/.*"clusterIP": "\(.*\)".*/\1/p')/"
}
# The cluster's names from inside a pod: exec, DNS and the Service at once.
pod_resolves() {
    local pod
    pod=$(sampan get pods -o name | sed -n '1s/pod\///p')
    sampan exec "$pod" -- wget -q -T 2 -O - http://demo.default.svc.cluster.local/ | grep -q '^pod: demo-'
}
answers() {
    until_true 60 "the Service answers" service_answers
    until_true 60 "the NodePort answers" page http://127.0.0.1:30080/
    until_true 60 "the Ingress answers" page http://127.0.0.1/
    until_true 60 "the Service answers a pod by its name" pod_resolves
}
# write FROM TO: config maps, one write after the other; a line for each that is acknowledged.
write() {
    local i=$1
    while [ "$i" -le "$2" ]; do
        printf -- '---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: acked-%s}\ndata: {number: "%s"}\n' "$i" "$i"
        i=$((i + 1))
    done | sampan apply -f -
}
all_acked() {
    local i=1 names
    names=$(sampan get configmaps -o name) || return 1
    while [ "$i" -le "$1" ]; do
        case "$names" in *"configmap/acked-$i"*) ;; *) echo "acked-$i is gone"; return 1 ;; esac
        i=$((i + 1))
    done
}

# volume SIZE: a claim of so many bytes, and a pod that has it.
volume() {
    cat <<EOF
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: room}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: $1}}}
---
apiVersion: v1
kind: Pod
metadata: {name: filler}
spec:
  containers: [{name: c, image: sampan.dev/demo, volumeMounts: [{name: room, mountPath: /room}]}]
  volumes: [{name: room, persistentVolumeClaim: {claimName: room}}]
EOF
}
# fill KIB NAME: writes a file into the volume.
fill() {
    /bin/busybox dd if=/dev/zero bs=1k count="$1" 2>/dev/null |
        sampan exec -i filler -- /bin/sh -c "cat > /room/$2"
}
# refuses KIB NAME: the volume has no room for that, and says why.
refuses() {
    if fill "$1" "$2" >/tmp/last 2>&1; then
        fail "the volume holds more than its claim says"
    fi
    grep -qi quota /tmp/last || { cat /tmp/last; fail "the volume refuses for another reason"; }
    say "the volume refuses more: $(cat /tmp/last)"
}
a_volume_holds_what_it_says() {
    volume 512Ki | sampan apply -f - || fail "apply a claim"
    until_true 60 "a pod writes what fits into its volume" fill 384 some
    refuses 384 more
    volume 1Mi | sampan apply -f - || fail "ask for more"
    until_true 60 "the volume has grown" fill 512 more
    refuses 512 much
    sampan get events >/tmp/last
    grep -q VolumeResizeSuccessful /tmp/last || { cat /tmp/last; fail "no event of the volume's growth"; }
    ! grep -q VolumeSizeNotEnforced /tmp/last || fail "an event says that the size is not enforced"
}
# What the kernel of no test machine has: groups of version 2 with all controllers, AppArmor, huge pages.
kernel_pods() {
    local name profile type
    for name in confined default unknown; do
        type=Localhost profile=', localhostProfile: board-test'
        [ $name != default ] || type=RuntimeDefault profile=''
        [ $name != unknown ] || profile=', localhostProfile: nowhere'
        printf -- '---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: sampan.dev/demo, command: [sleep, infinity], securityContext: {appArmorProfile: {type: %s%s}}}]}\n' \
            $name $type "$profile"
    done
    cat <<'EOF'
---
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: sampan.dev/demo, command: [sleep, infinity]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: huge}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: c
      image: sampan.dev/demo
      command: [sleep, infinity]
      resources: {limits: {hugepages-2Mi: 4Mi, cpu: 100m, memory: 16Mi}}
      volumeMounts: [{name: huge, mountPath: /huge}]
  volumes: [{name: huge, emptyDir: {medium: HugePages}}]
EOF
}
runs() { sampan get pods "$@" --no-headers | grep -c ' Running ' | grep -qx $#; }
# confined_by POD PROFILE: the container's first process, and one that exec starts.
confined_by() {
    local at
    for at in 1 self; do
        sampan exec "$1" -- cat "/proc/$at/attr/current" >/tmp/last || fail "read the profile of $1"
        grep -qx "$2" /tmp/last || { cat /tmp/last; fail "$1 is not confined by $2"; }
    done
}
no_profile() { sampan get events | grep -q 'apparmor profile not found nowhere'; }
# How long a container has waited for CPU (seconds), as the node measures it by the kernel's word.
waited_for_cpu() {
    sampan get --raw /api/v1/nodes/board/proxy/metrics/cadvisor >/tmp/metrics
    grep '^container_pressure_cpu_waiting_seconds_total{.*pod="huge"' /tmp/metrics
}
has_waited() { waited_for_cpu | grep -q '} [1-9]'; }
what_only_this_kernel_has() {
    local group
    [ -d /sys/kernel/security/apparmor ] || fail "no AppArmor"
    cat /boot-test/profile >/sys/kernel/security/apparmor/.replace || fail "load a profile"
    [ "$(cat /proc/sys/vm/nr_hugepages)" = 8 ] || fail "no huge pages"
    kernel_pods | sampan apply -f - || fail "apply of pods for this kernel"
    until_true 120 "pods with AppArmor run" runs confined default plain
    confined_by confined 'board-test (enforce)'
    confined_by default 'sampan-default (enforce)'
    confined_by plain 'sampan-default (enforce)'
    if sampan exec confined -- /bin/sh -c 'echo x > /denied' 2>/tmp/last; then fail "a profile denies nothing"; fi
    sampan exec plain -- /bin/sh -c 'echo x > /denied' || fail "the default profile denies too much"
    until_true 60 "a profile that is not there is told of" no_profile
    until_true 60 "a pod with huge pages runs" runs huge
    for group in $(find /sys/fs/cgroup -path "*pod$(sampan get pod huge -o jsonpath='{.metadata.uid}')*/hugetlb.2MB.max"); do
        echo "$group: $(cat "$group")"
    done >/tmp/last
    [ "$(grep -c ': 4194304$' /tmp/last)" = 2 ] || { cat /tmp/last; fail "huge pages are not limited"; }
    sampan exec huge -- cpuburn 3 2
    has_waited || { waited_for_cpu; head -n 5 /tmp/metrics; fail "how long it waited for CPU is not told"; }
    say "how long it waited for CPU is told"
    sampan delete pods confined default unknown plain huge || fail "delete of pods for this kernel"
}

hung_pods() {
    local name volumes='' mounts=''
    for name in free hung; do
        [ $name = free ] || { volumes=', volumes: [{name: v, nfs: {server: 127.0.0.1, path: /x}}]'; mounts=', volumeMounts: [{name: v, mountPath: /v}]'; }
        printf -- '---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {containers: [{name: c, image: sampan.dev/demo, command: [sleep, infinity]%s}], terminationGracePeriodSeconds: 1%s}\n' \
            $name "$mounts" "$volumes"
    done
}
is_free() { sampan get pod free --no-headers | grep -q ' Running '; }
silence_is_told() { sampan get events | grep -q 'the file system is silent'; }
hung_is_gone() { ! sampan get pod hung >/dev/null 2>&1; }
hung_export() {
    busybox nc -ll -p 2049 -e /bin/busybox sleep 600 &
    hung_pods | sampan apply -f - || fail "apply of pods with a hung export"
    until_true 60 "a pod beside a hung export runs" is_free
    until_true 120 "the hung export is told of" silence_is_told
    until_true 10 "the node is ready with a hung export" node_ready
    sampan delete pod hung --wait=false || fail "delete of a pod with a hung export"
    until_true 60 "a pod with a hung export ends" hung_is_gone
    kill $!
}

before() { :; }
after() { :; }
[ ! -f /boot-test/systemd.sh ] || . /boot-test/systemd.sh
before
case $(word phase) in
first)
    until_true 120 "the node is ready" node_ready
    sampan check -v || fail "sampan check"
    sampan apply -f /boot-test/demo.yaml || fail "apply"
    until_true 120 "the Deployment is rolled out" rolled_out
    answers
    a_volume_holds_what_it_says
    what_only_this_kernel_has
    say "writing"
    write 1 5000
    ;;
second)
    until_true 120 "the node is ready" node_ready
    all_acked "$(word acked)" || fail "an acknowledged write is gone"
    say "all $(word acked) acknowledged writes are there"
    until_true 120 "the Deployment is rolled out" rolled_out
    answers
    until_true 60 "the volume has what was written" sampan exec filler -- /bin/ls /room/some
    refuses 512 much
    write 5001 5003
    hung_export
    after
    say "PASSED"
    ;;
esac
