# The profile of containers that ask for RuntimeDefault or for none: what containerd's gives its own.
# The binary carries it compiled, since boards have no compiler for it. After a change:
#   apparmor_parser --quiet --skip-kernel-load --stdout sampan-default.profile > sampan-default.policy
# (AppArmor 3.0 on Debian 12).
abi <abi/3.0>,

profile sampan-default flags=(attach_disconnected, mediate_deleted) {
  # Capabilities, seccomp and namespaces say what of this is left.
  file,
  capability,
  network,
  unix,
  umount,

  signal (receive) peer=unconfined,
  signal (send, receive) peer=sampan-default,
  ptrace (trace, read, tracedby, readby) peer=sampan-default,

  deny mount,

  # Of /proc may be written what belongs to processes, and of its sys only what is an IPC namespace's.
  deny /proc/* w,
  deny /proc/[^1-9s]*/** w,
  deny /proc/s[^y]*/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/[^s]** w,
  deny /proc/sys/kernel/s[^h]** w,
  deny /proc/sys/kernel/sh[^m]** w,
  deny /proc/{kcore,kmem,mem,sysrq-trigger} rwklx,

  # Of /sys only groups.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/{firmware,devices/virtual/powercap,kernel/security}/** rwklx,
}
