//! From decision tables to classic BPF.
//!
//! ```text
//! load the architecture word
//! native?  ── tree over call numbers ── answer, or a chain of argument comparisons ── answer
//! other?   ── its tree …
//! none of them: kill
//! ```
//!
//! Neighbouring numbers with the same answer become one interval, and the tree is a balanced search over the interval
//! borders. Profiles allow long runs of calls, so this costs six or seven comparisons for Docker's profile where a tree over
//! single numbers costs as many and a list some hundreds. No path to an unconditional answer loads an argument: the kernel
//! can then prove "always allowed" once at load time and skip the filter for that call (its action cache, since 5.11).

use super::action::Action;
use super::architecture::{Architecture, X32_SYSCALL_BIT};
use super::rules::{Alternative, Comparison, Decision, Table};
use super::{Error, Instruction};

/// `BPF_MAXINSNS`: the kernel refuses longer programs.
pub(super) const MAX_INSTRUCTIONS: usize = 4096;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const IF_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets into `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// A half-open run of call numbers, up to the next run's start, with one decision.
struct Run<'a> {
    start: u32,
    answer: Answer<'a>,
}

/// A decision, with what its comparisons need to know about the ABI.
#[derive(PartialEq)]
enum Answer<'a> {
    Always(Action),
    Alternatives(&'a [Alternative], Words),
}

/// Begins a run, unless the one before it has the same answer and goes on.
fn begin<'a>(runs: &mut Vec<Run<'a>>, start: u32, answer: Answer<'a>) {
    if runs.last().is_none_or(|before| before.answer != answer) {
        runs.push(Run { start, answer });
    }
}

/// Puts the program together: native architecture first, then the others, then the kill for every foreign one.
///
/// # Errors
/// [`Error::TooLong`] where the kernel's limit of 4,096 instructions is passed.
pub(super) fn assemble(
    tables: &[Table],
    default: Action,
    enosys_for_newer: bool,
) -> Result<Vec<Instruction>, Error> {
    let mut program = vec![statement(LOAD, ARCHITECTURE)];
    let mut words: Vec<u32> = tables.iter().map(|table| table.architecture.audit_word()).collect();
    words.dedup();
    for word in words {
        let mut section = vec![statement(LOAD, NUMBER)];
        let runs = runs(tables, word, default, enosys_for_newer);
        tree(&mut section, &runs, default)?;
        if let Ok(distance) = u8::try_from(section.len()) {
            program.push(Instruction { code: IF_EQUAL, jt: 0, jf: distance, k: word });
        } else {
            program.push(Instruction { code: IF_EQUAL, jt: 1, jf: 0, k: word });
            program.push(statement(JUMP, length(&section)?));
        }
        program.append(&mut section);
    }
    program.push(statement(RETURN, Action::KILL_PROCESS.0));
    length(&program)?;
    Ok(program)
}

/// The whole number space of one architecture word as runs, merged and in order.
fn runs(tables: &[Table], word: u32, default: Action, enosys_for_newer: bool) -> Vec<Run<'_>> {
    let mut runs = Vec::new();
    let mine: Vec<&Table> = tables.iter().filter(|table| table.architecture.audit_word() == word).collect();
    let x86_64_word = word == Architecture::X86_64.audit_word();
    let has_x32 = mine.iter().any(|table| table.architecture == Architecture::X32);
    let has_x86_64 = mine.iter().any(|table| table.architecture == Architecture::X86_64);

    if x86_64_word && !has_x86_64 {
        begin(&mut runs, 0, Answer::Always(Action::KILL_PROCESS));
    }
    for table in mine {
        table_runs(&mut runs, table, default, enosys_for_newer);
    }
    if x86_64_word && !has_x32 {
        begin(&mut runs, X32_SYSCALL_BIT, Answer::Always(Action::KILL_PROCESS));
        // A tracer that skips a call sets its number to -1, and the filter runs again on that: not an x32 call.
        begin(&mut runs, u32::MAX, Answer::Always(default));
    }
    runs
}

fn table_runs<'a>(runs: &mut Vec<Run<'a>>, table: &'a Table, default: Action, enosys_for_newer: bool) {
    let newest = table.newest.filter(|_| enosys_for_newer);
    let unmentioned = |number: u32| {
        let newer = newest.is_some_and(|newest| number > newest);
        Answer::Always(if newer { Action::ENOSYS } else { default })
    };
    let mut next = Some(table.architecture.number_base());
    let gap = |runs: &mut Vec<Run<'a>>, from: u32, to: Option<u32>| {
        if to.is_some_and(|to| to <= from) {
            return;
        }
        begin(runs, from, unmentioned(from));
        // Within a gap the answer changes once, behind the newest number the profile knows.
        if let Some(newest) = newest.filter(|newest| *newest >= from && to.is_none_or(|to| *newest < to)) {
            begin(runs, newest + 1, unmentioned(newest + 1));
        }
    };
    for (number, decision) in &table.decisions {
        if let Some(from) = next {
            gap(runs, from, Some(*number));
        }
        let answer = match decision {
            Decision::Always(action) => Answer::Always(*action),
            Decision::Alternatives(list) => Answer::Alternatives(list, Words::of(table.architecture)),
        };
        begin(runs, *number, answer);
        next = number.checked_add(1);
    }
    if let Some(from) = next {
        gap(runs, from, None);
    }
}

/// A balanced search over `runs`; the accumulator holds the call number.
fn tree(program: &mut Vec<Instruction>, runs: &[Run<'_>], default: Action) -> Result<(), Error> {
    match runs {
        [] => return leaf(program, &Answer::Always(default), default),
        [only] => return leaf(program, &only.answer, default),
        _ => {}
    }
    let (low, high) = runs.split_at(runs.len() / 2);
    let border = high[0].start;
    let fork = program.len();
    program.push(Instruction { code: IF_AT_LEAST, jt: 0, jf: 0, k: border });
    tree(program, low, default)?;
    // How far it is over the lower half is known once that is there.
    let left = &program[fork + 1..];
    if let Ok(distance) = u8::try_from(left.len()) {
        program[fork].jt = distance;
    } else {
        let over = statement(JUMP, length(left)?);
        program[fork].jf = 1;
        program.insert(fork + 1, over);
    }
    tree(program, high, default)
}

fn leaf(program: &mut Vec<Instruction>, answer: &Answer<'_>, default: Action) -> Result<(), Error> {
    match answer {
        Answer::Always(action) => program.push(statement(RETURN, action.0)),
        Answer::Alternatives(list, words) => {
            for group in list.chunk_by(|left, right| words.share_loads(left, right)) {
                match group {
                    [one] => program.append(&mut words.alternative(one)?),
                    several => program.append(&mut words.value_list(several)?),
                }
                length(program)?;
            }
            program.push(statement(RETURN, default.0));
        }
    }
    Ok(())
}

/// How arguments lie in memory on one architecture.
#[derive(Clone, Copy, PartialEq)]
struct Words {
    wide: bool,
    high_first: bool,
}

/// Where a comparison goes when it is decided.
#[derive(Clone, Copy, PartialEq)]
enum Exit {
    /// Go on with the next instruction.
    On,
    /// The condition holds: skip the rest of its instructions.
    Holds,
    /// The condition fails: leave the alternative.
    Fails,
}

/// An instruction whose jumps are not laid out yet.
struct Draft {
    code: u16,
    k: u32,
    then: Exit,
    otherwise: Exit,
}

impl Words {
    fn of(architecture: Architecture) -> Self {
        Self { wide: architecture.compares_64_bits(), high_first: architecture.is_big_endian() }
    }

    /// Whether two neighbours ask for a value of the same bits of the same argument and lead to the same answer: a list of
    /// socket families, say. Their high words must be equal too.
    fn share_loads(self, left: &Alternative, right: &Alternative) -> bool {
        match (equality(left), equality(right)) {
            (Some((a, value)), Some((b, other))) => {
                a == b && left.action == right.action && (!self.wide || high(value) == high(other))
            }
            _ => false,
        }
    }

    /// One answer for a list of values: the words are loaded once.
    fn value_list(self, group: &[Alternative]) -> Result<Vec<Instruction>, Error> {
        let mut program = Vec::with_capacity(group.len() + 8);
        // A jump reaches 255 instructions: longer lists are cut.
        for part in group.chunks(200) {
            let mut drafts = Vec::new();
            for (place, alternative) in part.iter().enumerate() {
                let Some(((argument, mask), value)) = equality(alternative) else { continue };
                let comparison = Comparison::MaskedEqual { mask, value };
                if place == 0 {
                    drafts = self.condition(argument, comparison);
                    drafts.pop();
                }
                let last = place + 1 == part.len();
                drafts.push(test(
                    IF_EQUAL,
                    low(value),
                    Exit::Holds,
                    if last { Exit::Fails } else { Exit::On },
                ));
            }
            lay_out(&mut program, vec![drafts])?;
            program.push(statement(RETURN, part[0].action.0));
        }
        Ok(program)
    }

    /// All conditions of one alternative and its answer; falls behind its own end where one fails.
    fn alternative(self, alternative: &Alternative) -> Result<Vec<Instruction>, Error> {
        let mut parts: Vec<Vec<Draft>> = Vec::new();
        for condition in alternative.conditions.iter().filter(|condition| !always_holds(condition.comparison))
        {
            parts.push(self.condition(condition.argument, condition.comparison));
        }
        let mut program = Vec::with_capacity(16);
        lay_out(&mut program, parts)?;
        program.push(statement(RETURN, alternative.action.0));
        Ok(program)
    }

    fn condition(self, argument: u8, comparison: Comparison) -> Vec<Draft> {
        let base = ARGUMENTS + 8 * u32::from(argument);
        let (low, high) = if self.high_first { (base + 4, base) } else { (base, base + 4) };
        let mut drafts = Vec::with_capacity(6);
        if self.wide {
            self.high_word(&mut drafts, high, comparison);
        }
        low_word(&mut drafts, low, comparison);
        drafts
    }

    /// Decides on the high word where it can, and goes on to the low word where it is equal.
    fn high_word(self, drafts: &mut Vec<Draft>, offset: u32, comparison: Comparison) {
        use Exit::{Fails, Holds, On};
        if let Comparison::MaskedEqual { mask, value } = comparison {
            if high(mask) != 0 || high(value) != 0 {
                masked(drafts, offset, high(mask), high(value));
            }
            return;
        }
        drafts.push(load(offset));
        match comparison {
            Comparison::Equal(value) => drafts.push(test(IF_EQUAL, high(value), On, Fails)),
            Comparison::NotEqual(value) => drafts.push(test(IF_EQUAL, high(value), On, Holds)),
            Comparison::Greater(value) | Comparison::GreaterOrEqual(value) => {
                drafts.push(test(IF_GREATER, high(value), Holds, On));
                drafts.push(test(IF_EQUAL, high(value), On, Fails));
            }
            Comparison::Less(value) | Comparison::LessOrEqual(value) => {
                drafts.push(test(IF_GREATER, high(value), Fails, On));
                drafts.push(test(IF_EQUAL, high(value), On, Holds));
            }
            Comparison::MaskedEqual { .. } => {}
        }
    }
}

/// Resolves the exits of conditions that must all hold; one instruction, the answer, follows them.
fn lay_out(program: &mut Vec<Instruction>, parts: Vec<Vec<Draft>>) -> Result<(), Error> {
    let end = program.len() + parts.iter().map(Vec::len).sum::<usize>();
    let mut end_of_part = program.len();
    for part in parts {
        end_of_part += part.len();
        for draft in part {
            let here = program.len() + 1;
            let distance = |exit: Exit| {
                let target = match exit {
                    Exit::On => here,
                    Exit::Holds => end_of_part,
                    Exit::Fails => end + 1,
                };
                // Six conditions of at most six instructions, or a list of 200: always within reach.
                u8::try_from(target - here).map_err(|_| Error::TooLong { instructions: end })
            };
            let (jt, jf) = match draft.code {
                LOAD | AND => (0, 0),
                _ => (distance(draft.then)?, distance(draft.otherwise)?),
            };
            program.push(Instruction { code: draft.code, jt, jf, k: draft.k });
        }
    }
    Ok(())
}

/// The argument, the mask and the value of an alternative that is one test for equality.
fn equality(alternative: &Alternative) -> Option<((u8, u64), u64)> {
    let [only] = alternative.conditions.as_slice() else { return None };
    match only.comparison {
        Comparison::Equal(value) => Some(((only.argument, u64::MAX), value)),
        Comparison::MaskedEqual { mask, value } if mask != 0 => Some(((only.argument, mask), value)),
        _ => None,
    }
}

/// Profiles write "in every other case" as a comparison that cannot fail.
fn always_holds(comparison: Comparison) -> bool {
    matches!(comparison, Comparison::GreaterOrEqual(0) | Comparison::MaskedEqual { mask: 0, value: 0 })
}

fn low_word(drafts: &mut Vec<Draft>, offset: u32, comparison: Comparison) {
    use Exit::{Fails, Holds};
    if let Comparison::MaskedEqual { mask, value } = comparison {
        return masked(drafts, offset, low(mask), low(value));
    }
    drafts.push(load(offset));
    drafts.push(match comparison {
        Comparison::Equal(value) => test(IF_EQUAL, low(value), Holds, Fails),
        Comparison::NotEqual(value) => test(IF_EQUAL, low(value), Fails, Holds),
        Comparison::Greater(value) => test(IF_GREATER, low(value), Holds, Fails),
        Comparison::GreaterOrEqual(value) => test(IF_AT_LEAST, low(value), Holds, Fails),
        Comparison::Less(value) => test(IF_AT_LEAST, low(value), Fails, Holds),
        Comparison::LessOrEqual(value) | Comparison::MaskedEqual { value, .. } => {
            test(IF_GREATER, low(value), Fails, Holds)
        }
    });
}

/// `(word & mask) == value`, going on where it holds.
fn masked(drafts: &mut Vec<Draft>, offset: u32, mask: u32, value: u32) {
    drafts.push(load(offset));
    if mask != u32::MAX {
        drafts.push(Draft { code: AND, k: mask, then: Exit::On, otherwise: Exit::On });
    }
    drafts.push(test(IF_EQUAL, value, Exit::On, Exit::Fails));
}

fn load(offset: u32) -> Draft {
    Draft { code: LOAD, k: offset, then: Exit::On, otherwise: Exit::On }
}

fn test(code: u16, k: u32, then: Exit, otherwise: Exit) -> Draft {
    Draft { code, k, then, otherwise }
}

const fn statement(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

const fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

const fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// The length as a jump distance, once it is known to be within the kernel's limit.
fn length(program: &[Instruction]) -> Result<u32, Error> {
    match u32::try_from(program.len()) {
        Ok(length) if program.len() <= MAX_INSTRUCTIONS => Ok(length),
        _ => Err(Error::TooLong { instructions: program.len() }),
    }
}
