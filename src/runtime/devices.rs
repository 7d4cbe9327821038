//! Which device nodes a container may open, for cgroup version 2: a BPF_CGROUP_DEVICE program.
//!
//! In: the devices of the spec. Out: a program on the container's group that allows these, the usual
//! nodes (null, zero, full, random, urandom, tty, the terminals, net/tun as with runc) and making any node,
//! and refuses the rest. Version 1 has a controller for it, which takes the same rules as lines. Source: the
//! OCI runtime specification's default devices; the kernel's BPF_PROG_TYPE_CGROUP_DEVICE and
//! cgroup-v1/devices.rst.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::AsFd,
    path::Path,
};

use super::{oci::Device, sys};

/// Access bits of linux/bpf.h (`BPF_DEVCG_ACC_*`).
const MAKE: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
/// Device types (`BPF_DEVCG_DEV_*`).
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;

/// One thing that is allowed; `None` is any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    kind: u32,
    access: u32,
    major: Option<u32>,
    minor: Option<u32>,
}

/// One eBPF instruction (`struct bpf_insn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    /// Destination in the low, source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const SHIFT_RIGHT_BY: u8 = 0x7c;
const JUMP_NE: u8 = 0x55;
const JUMP_GREATER: u8 = 0x25;
const EXIT: u8 = 0x95;

/// Puts the filter on the group whose folder this is.
pub fn attach(group: &Path, devices: &[Device]) -> io::Result<()> {
    let program = sys::load_device_program(&compile(&rules(devices)))?;
    sys::attach_device_program(File::open(group)?.as_fd(), program.as_fd())
}

/// The same for a group of version 1.
pub fn restrict(group: &Path, devices: &[Device]) -> io::Result<()> {
    fs::write(group.join("devices.deny"), "a")?;
    let mut allowed = File::options().write(true).open(group.join("devices.allow"))?;
    rules(devices).iter().try_for_each(|rule| allowed.write_all(rule.line().as_bytes()))
}

impl Rule {
    /// As the controller of version 1 takes it.
    fn line(&self) -> String {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let letters = [(READ, 'r'), (WRITE, 'w'), (MAKE, 'm')];
        let access: String =
            letters.iter().filter(|(bit, _)| self.access & bit != 0).map(|(_, letter)| letter).collect();
        let kind = if self.kind == BLOCK { 'b' } else { 'c' };
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }
}

fn rules(devices: &[Device]) -> Vec<Rule> {
    let any = |kind| Rule { kind, access: MAKE, major: None, minor: None };
    let usual =
        |major, minor| Rule { kind: CHARACTER, access: MAKE | READ | WRITE, major: Some(major), minor };
    let mut rules = vec![any(CHARACTER), any(BLOCK)];
    rules.extend([3, 5, 7, 8, 9].map(|minor| usual(1, Some(minor))));
    rules.extend([0, 1, 2].map(|minor| usual(5, Some(minor))));
    rules.push(usual(10, Some(200)));
    rules.push(usual(136, None));
    rules.extend(devices.iter().map(|device| Rule {
        kind: if device.block { BLOCK } else { CHARACTER },
        access: device.access.chars().fold(0, |bits, letter| {
            bits | match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MAKE,
                _ => 0,
            }
        }),
        major: Some(device.major as u32),
        minor: Some(device.minor as u32),
    }));
    rules
}

fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: u32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate: immediate as i32 }
}

/// Rules that differ in their minor numbers only.
struct Group {
    rule: Rule,
    /// The minors, a bit each; `None` where the rule alone says it.
    minors: Option<u32>,
}

/// Every branch costs the kernel's check of the program a state, at each container's start: the less the
/// better.
fn groups(rules: &[Rule]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for rule in rules {
        let bit = rule.minor.and_then(|minor| 1u32.checked_shl(minor));
        let alike =
            |group: &&mut Group| group.minors.is_some() && Rule { minor: rule.minor, ..group.rule } == *rule;
        match (bit, groups.iter_mut().find(alike)) {
            (Some(bit), Some(Group { minors: Some(bits), .. })) => *bits |= bit,
            _ => groups.push(Group { rule: *rule, minors: bit }),
        }
    }
    groups
}

/// Registers: 2 the access that is asked for, 3 the type, 4 major, 5 minor.
fn compile(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(MOVE_REGISTER, 3, 2, 0, 0),
        op(AND, 3, 0, 0, 0xffff),
        op(SHIFT_RIGHT, 2, 0, 0, 16),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
    ];
    for Group { rule, minors } in groups(rules) {
        // (instruction, whether it jumps to the next rule)
        let mut block = vec![(op(JUMP_NE, 3, 0, 0, rule.kind), true)];
        block.extend(rule.major.map(|major| (op(JUMP_NE, 4, 0, 0, major), true)));
        block.extend([
            (op(MOVE_REGISTER, 0, 2, 0, 0), false),
            (op(AND, 0, 0, 0, !rule.access), false),
            (op(JUMP_NE, 0, 0, 0, 0), true),
        ]);
        match (minors, rule.minor) {
            (Some(bits), _) => block.extend([
                (op(JUMP_GREATER, 5, 0, 0, u32::BITS - 1), true),
                (op(MOVE, 0, 0, 0, bits), false),
                (op(SHIFT_RIGHT_BY, 0, 5, 0, 0), false),
                (op(AND, 0, 0, 0, 1), false),
                (op(JUMP_NE, 0, 0, 0, 1), true),
            ]),
            (None, Some(minor)) => block.push((op(JUMP_NE, 5, 0, 0, minor), true)),
            (None, None) => {}
        }
        block.extend([(op(MOVE, 0, 0, 0, 1), false), (op(EXIT, 0, 0, 0, 0), false)]);
        let length = block.len();
        program.extend(block.into_iter().enumerate().map(|(n, (mut instruction, jumps))| {
            if jumps {
                instruction.offset = (length - n - 1) as i16;
            }
            instruction
        }));
    }
    program.extend([op(MOVE, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Just enough of the kernel's interpreter to try the program.
    fn allows(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u32; 10];
        let mut pc = 0;
        loop {
            let i = program[pc];
            pc += 1;
            let (to, from) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            match i.code {
                LOAD_WORD => registers[to] = context[i.offset as usize / 4],
                MOVE => registers[to] = i.immediate as u32,
                MOVE_REGISTER => registers[to] = registers[from],
                AND => registers[to] &= i.immediate as u32,
                SHIFT_RIGHT => registers[to] >>= i.immediate,
                SHIFT_RIGHT_BY => registers[to] >>= registers[from],
                JUMP_GREATER if registers[to] > i.immediate as u32 => pc += i.offset as usize,
                JUMP_NE if registers[to] != i.immediate as u32 => pc += i.offset as usize,
                JUMP_NE | JUMP_GREATER => {}
                EXIT => return registers[0] == 1,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn rules_are_lines_too() {
        let lines: Vec<_> = rules(&[]).iter().map(Rule::line).collect();
        assert_eq!(lines[..3], ["c *:* m", "b *:* m", "c 1:3 rwm"]);
        assert_eq!(lines.last().unwrap(), "c 136:* rwm");
    }

    #[test]
    fn only_usual_and_listed_devices_open() {
        let device = |path: &str, major, minor| Device {
            path: path.into(),
            block: false,
            major,
            minor,
            mode: 0o660,
            uid: 0,
            gid: 0,
            access: "rw".into(),
        };
        let program = compile(&rules(&[device("/dev/ttyUSB0", 188, 0), device("/dev/radio0", 81, 64)]));
        for (kind, access, major, minor, expected) in [
            (CHARACTER, READ | WRITE, 1, 3, true),
            (CHARACTER, READ, 1, 1, false),
            (CHARACTER, READ, 1, 9, true),
            (CHARACTER, READ, 1, 35, false),
            (CHARACTER, READ | WRITE, 5, 2, true),
            (CHARACTER, READ, 5, 3, false),
            (CHARACTER, READ | WRITE, 136, 77, true),
            (CHARACTER, READ | WRITE, 188, 0, true),
            (CHARACTER, READ | WRITE | MAKE, 188, 0, false),
            (CHARACTER, READ, 188, 1, false),
            (CHARACTER, READ, 81, 64, true),
            (CHARACTER, READ, 81, 96, false),
            (CHARACTER, READ | WRITE, 10, 200, true),
            (CHARACTER, READ, 10, 201, false),
            (BLOCK, READ, 8, 0, false),
            (BLOCK, READ, 1, 3, false),
            (BLOCK, MAKE, 8, 0, true),
        ] {
            assert_eq!(
                allows(&program, kind, access, major, minor),
                expected,
                "{kind} {access} {major}:{minor}"
            );
        }
    }
}
