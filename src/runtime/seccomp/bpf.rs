//! A compiler from seccomp rules to classic BPF. Pure.
//!
//! In: for each architecture of a process, what to do by system call number and arguments. Out: a
//! program that finds the number by binary search over ranges, a dozen steps for any call (a linear
//! chain, as libseccomp makes it, takes hundreds). Source: the kernel's seccomp_filter.rst.

use libc::sock_filter;

/// Longest program that the kernel takes (instructions, `BPF_MAXINSNS`).
const INSTRUCTIONS_MAX: usize = 4096;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQ: u16 = 0x15;
const JUMP_GT: u16 = 0x25;
const JUMP_GE: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// After the mask.
    MaskedEq(u64),
}

/// A condition on one argument (0..=5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    pub argument: u8,
    pub compare: Compare,
    pub value: u64,
}

/// What happens to one system call: the first rule whose conditions all hold; no conditions always
/// hold. When none does, the architecture's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Call {
    pub number: u32,
    pub rules: Vec<(Vec<Condition>, u32)>,
}

/// All system calls of one architecture.
#[derive(Debug, Clone, Default)]
pub struct Architecture {
    /// `AUDIT_ARCH_…`.
    pub token: u32,
    /// Sorted by number, each number once.
    pub calls: Vec<Call>,
    /// What a call gets that has no rule.
    pub default: u32,
    /// What a call gets that is newer than `newest`.
    pub unknown: u32,
    pub newest: u32,
}

fn op(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn branch(code: u16, k: u32, jt: usize, jf: usize) -> sock_filter {
    sock_filter { code, jt: jt as u8, jf: jf as u8, k }
}

/// Compiles; processes of other architectures get `foreign`.
pub fn compile(architectures: &[Architecture], foreign: u32) -> Result<Vec<sock_filter>, String> {
    let mut program = vec![op(LOAD, ARCHITECTURE)];
    for architecture in architectures {
        let mut section = vec![op(LOAD, NUMBER)];
        section.extend(search(&ranges(architecture)));
        program.push(branch(JUMP_EQ, architecture.token, 1, 0));
        program.push(op(JUMP, section.len() as u32));
        program.extend(section);
    }
    program.push(op(RETURN, foreign));
    if program.len() > INSTRUCTIONS_MAX {
        return Err(format!("seccomp profile is too large: {} instructions", program.len()));
    }
    Ok(program)
}

/// Where numbers begin that are treated alike, and the code that treats them; neighbours differ.
fn ranges(architecture: &Architecture) -> Vec<(u32, Vec<sock_filter>)> {
    let plain = |action| vec![op(RETURN, action)];
    let mut ranges: Vec<(u32, Vec<sock_filter>)> = vec![(0, plain(architecture.default))];
    let mut add = |from: u32, code: Vec<sock_filter>| {
        if ranges.last().is_some_and(|(last, _)| *last == from) {
            ranges.pop();
        }
        if ranges.last().is_none_or(|(_, last)| !same(last, &code)) {
            ranges.push((from, code));
        }
    };
    let mut unknown = false;
    for call in &architecture.calls {
        if call.number > architecture.newest && !unknown {
            add(architecture.newest + 1, plain(architecture.unknown));
            unknown = true;
        }
        add(call.number, rules(call, architecture.default));
        let rest = if unknown { architecture.unknown } else { architecture.default };
        add(call.number + 1, plain(rest));
    }
    if !unknown {
        add(architecture.newest + 1, plain(architecture.unknown));
    }
    ranges
}

fn same(a: &[sock_filter], b: &[sock_filter]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a.code, a.jt, a.jf, a.k) == (b.code, b.jt, b.jf, b.k))
}

/// The number is in the accumulator: finds its range.
fn search(ranges: &[(u32, Vec<sock_filter>)]) -> Vec<sock_filter> {
    let [(_, only)] = ranges else {
        let (left, right) = ranges.split_at(ranges.len() / 2);
        let below = search(left);
        let mut code = if below.len() < 256 {
            vec![branch(JUMP_GE, right[0].0, below.len(), 0)]
        } else {
            vec![branch(JUMP_GE, right[0].0, 0, 1), op(JUMP, below.len() as u32)]
        };
        code.extend(below);
        code.extend(search(right));
        return code;
    };
    only.clone()
}

fn rules(call: &Call, default: u32) -> Vec<sock_filter> {
    let mut code = Vec::new();
    for (conditions, action) in &call.rules {
        if conditions.is_empty() {
            code.push(op(RETURN, *action));
            return code;
        }
        // Built from the end, where the length of what a failed condition skips is known.
        let mut rule = vec![op(RETURN, *action)];
        for condition in conditions.iter().rev() {
            let mut with = check(condition, rule.len());
            with.extend(rule);
            rule = with;
        }
        code.extend(rule);
    }
    code.push(op(RETURN, default));
    code
}

/// Falls through when the condition holds, and jumps over the `rest` instructions that follow it
/// otherwise. Arguments have 64 bits, the machine 32.
fn check(condition: &Condition, rest: usize) -> Vec<sock_filter> {
    let (high, low) = ((condition.value >> 32) as u32, condition.value as u32);
    let at = ARGUMENTS + 8 * u32::from(condition.argument);
    let (load_high, load_low) = (op(LOAD, at + 4), op(LOAD, at));
    match condition.compare {
        Compare::Eq => {
            vec![load_high, branch(JUMP_EQ, high, 0, rest + 2), load_low, branch(JUMP_EQ, low, 0, rest)]
        }
        Compare::Ne => vec![load_high, branch(JUMP_EQ, high, 0, 2), load_low, branch(JUMP_EQ, low, rest, 0)],
        Compare::MaskedEq(mask) => vec![
            load_high,
            op(AND, (mask >> 32) as u32),
            branch(JUMP_EQ, high, 0, rest + 3),
            load_low,
            op(AND, mask as u32),
            branch(JUMP_EQ, low, 0, rest),
        ],
        // a > b: the high half is greater; or it is equal, and so is the low half.
        Compare::Gt | Compare::Ge => vec![
            load_high,
            branch(JUMP_GT, high, 3, 0),
            branch(JUMP_EQ, high, 0, rest + 2),
            load_low,
            branch(if condition.compare == Compare::Gt { JUMP_GT } else { JUMP_GE }, low, 0, rest),
        ],
        // The same, turned round.
        Compare::Lt | Compare::Le => vec![
            load_high,
            branch(JUMP_GT, high, rest + 3, 0),
            branch(JUMP_EQ, high, 0, 2),
            load_low,
            branch(if condition.compare == Compare::Lt { JUMP_GE } else { JUMP_GT }, low, rest, 0),
        ],
    }
}

#[cfg(test)]
pub mod machine {
    //! Just enough of the kernel's interpreter to try programs.

    use super::*;

    /// What `program` says to a call.
    pub fn run(program: &[sock_filter], token: u32, number: u32, arguments: &[u64]) -> u32 {
        let (mut pc, mut a) = (0, 0u32);
        loop {
            let i = program[pc];
            pc += 1;
            match i.code {
                LOAD => {
                    a = match i.k {
                        NUMBER => number,
                        ARCHITECTURE => token,
                        at => {
                            let offset = at - ARGUMENTS;
                            let value = arguments.get(offset as usize / 8).copied().unwrap_or(0);
                            (value >> (8 * (offset % 8))) as u32
                        }
                    }
                }
                AND => a &= i.k,
                JUMP => pc += i.k as usize,
                RETURN => return i.k,
                code => {
                    let holds = match code {
                        JUMP_EQ => a == i.k,
                        JUMP_GT => a > i.k,
                        JUMP_GE => a >= i.k,
                        _ => panic!("unknown instruction {code:#x}"),
                    };
                    pc += usize::from(if holds { i.jt } else { i.jf });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{machine::run, *};

    const TOKEN: u32 = 7;

    fn program(calls: Vec<Call>) -> Vec<sock_filter> {
        let architecture = Architecture { token: TOKEN, calls, default: 1, unknown: 2, newest: 400 };
        compile(&[architecture], 3).unwrap()
    }

    fn plain(number: u32, action: u32) -> Call {
        Call { number, rules: vec![(Vec::new(), action)] }
    }

    #[test]
    fn numbers_are_found_and_others_get_the_defaults() {
        let program = program(vec![plain(0, 10), plain(1, 10), plain(5, 11), plain(400, 12), plain(900, 13)]);
        for (number, action) in [
            (0, 10),
            (1, 10),
            (2, 1),
            (5, 11),
            (6, 1),
            (400, 12),
            (401, 2),
            (900, 13),
            (901, 2),
            (u32::MAX, 2),
        ] {
            assert_eq!(run(&program, TOKEN, number, &[]), action, "call {number}");
        }
        assert_eq!(run(&program, 8, 0, &[]), 3);
    }

    #[test]
    fn long_programs_jump_far() {
        let program = program((0..400).map(|n| plain(n * 2, n + 100)).collect());
        for n in 0..200 {
            assert_eq!(run(&program, TOKEN, n * 2, &[]), n + 100);
            assert_eq!(run(&program, TOKEN, n * 2 + 1, &[]), 1);
        }
    }

    fn holds(condition: &Condition, argument: u64) -> bool {
        let value = condition.value;
        match condition.compare {
            Compare::Eq => argument == value,
            Compare::Ne => argument != value,
            Compare::Lt => argument < value,
            Compare::Le => argument <= value,
            Compare::Gt => argument > value,
            Compare::Ge => argument >= value,
            Compare::MaskedEq(mask) => argument & mask == value,
        }
    }

    fn interesting() -> impl Strategy<Value = u64> {
        // Halves that are often equal.
        (0u64..3, 0u64..3).prop_map(|(high, low)| high << 32 | low)
    }

    fn condition() -> impl Strategy<Value = Condition> {
        let compare = prop_oneof![
            Just(Compare::Eq),
            Just(Compare::Ne),
            Just(Compare::Lt),
            Just(Compare::Le),
            Just(Compare::Gt),
            Just(Compare::Ge),
            interesting().prop_map(Compare::MaskedEq),
        ];
        (0u8..3, compare, interesting()).prop_map(|(argument, compare, value)| Condition {
            argument,
            compare,
            value,
        })
    }

    proptest! {
        #[test]
        fn rules_mean_what_they_say(
            rules in prop::collection::vec((prop::collection::vec(condition(), 0..4), 10u32..20), 1..4),
            arguments in prop::collection::vec(interesting(), 3),
        ) {
            let first = rules.iter().find(|(conditions, _)| {
                conditions.iter().all(|condition| holds(condition, arguments[usize::from(condition.argument)]))
            });
            let expected = first.map_or(1, |(_, action)| *action);
            let program = program(vec![Call { number: 9, rules }]);
            prop_assert_eq!(run(&program, TOKEN, 9, &arguments), expected);
        }
    }
}
