#!/bin/busybox sh
# The part of guest.sh that is about systemd; sourced.

before() {
    case $(word phase) in
    first)
        /boot-test/sampan install || fail "sampan install"
        say "installed"
        systemctl is-active --quiet sampan || fail "sampan.service is not active"
        sampan install | grep -q 'nothing has changed' || fail "a second install changes something"
        systemd-analyze verify sampan.service || fail "systemd-analyze verify"
        systemd-analyze security --no-pager sampan.service | tail -n 1
        [ "$(sysctl_of fs/inotify/max_user_instances)" = 1024 ] || fail "the kernel settings are not in force"
        ;;
    second) until_true 120 "sampan.service is active" systemctl is-active --quiet sampan ;;
    esac
}

sysctl_of() { cat "/proc/sys/$1"; }
# The containers' own processes; the daemon and its helpers are not among them.
containers() { cat $(find /sys/fs/cgroup/sampan -name cgroup.procs) | sort -n | tr '\n' ' '; }
main_pid() { systemctl show -P MainPID sampan; }
is_new() { [ "$(main_pid)" != "$1" ] && systemctl is-active --quiet sampan && node_ready; }

after() {
    local old pods
    pods=$(containers)
    [ -n "$pods" ] || fail "no container has a process"
    old=$(main_pid)
    kill -9 "$old"
    until_true 120 "systemd starts the daemon again" is_new "$old"
    [ "$(containers)" = "$pods" ] || fail "the containers did not outlive the daemon: $pods / $(containers)"

    mkdir -p /run/systemd/system/sampan.service.d
    printf '[Service]\nWatchdogSec=5\n' >/run/systemd/system/sampan.service.d/watchdog.conf
    systemctl daemon-reload && systemctl restart sampan || fail "restart with a short watchdog"
    old=$(main_pid)
    sleep 12
    [ "$(main_pid)" = "$old" ] || fail "the daemon did not say that it is alive"
    kill -STOP "$old"
    until_true 120 "the watchdog ends a stuck daemon" is_new "$old"
    rm -r /run/systemd/system/sampan.service.d
    systemctl daemon-reload

    cp /bin/false /tmp/broken
    sampan install --binary /tmp/broken 2>&1 | tee /tmp/out
    grep -q 'the earlier one is back' /tmp/out || fail "a broken binary was not rolled back"
    until_true 120 "the earlier binary runs again" node_ready
    [ "$(containers)" = "$pods" ] || fail "the containers did not outlive the upgrades"

    sampan uninstall --purge || fail "sampan uninstall --purge"
    {
        find /etc /usr/local /var/lib /var/log /run -name '*sampan*'
        find /sys/fs/cgroup -maxdepth 1 -name 'sampan'
        grep sampan /proc/mounts
        grep -o 'smp[0-9a-f]*' /proc/net/dev
        pidof sampan
        grep sampan /sys/kernel/security/apparmor/profiles
    } >/tmp/left
    [ ! -s /tmp/left ] || { cat /tmp/left; fail "uninstall leaves something"; }
    say "uninstalled, nothing is left"
}
