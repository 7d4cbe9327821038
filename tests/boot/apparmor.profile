# What tests/boot.sh confines a container by.
abi <abi/3.0>,

profile board-test flags=(attach_disconnected, mediate_deleted) {
  file,
  capability,
  network,
  unix,
  signal,
  ptrace,

  deny /denied w,
}
