//! From a profile to one decision table an architecture.
//!
//! The semantics are libseccomp's, as runc drives it, because that is what profile authors have tested against:
//!
//! - a rule whose action is the default action says nothing and is skipped;
//! - an unconditional rule beats every conditional rule on the same call, whatever the order; the first of several wins;
//! - the conditions of one rule must all hold, unless two of them look at the same argument: then each is a rule of its own;
//! - several conditional rules on one call are alternatives. Where alternatives with different actions overlap, the one on the
//!   higher argument index is asked first, then equality before bounds, then the tighter bound.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeSet;

use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};

use super::Error;
use super::action::{self, Action};
use super::architecture::Architecture;
use super::multiplex::Door;
use super::syscalls::Numbers;

/// How many arguments a system call has.
const ARGUMENTS: usize = 6;

/// One comparison of one argument, 64-bit and unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u8,
    pub(super) comparison: Comparison,
}

/// What an argument is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Equal(u64),
    GreaterOrEqual(u64),
    Greater(u64),
    MaskedEqual { mask: u64, value: u64 },
}

/// Conditions that must all hold, and what then happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Alternative {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
}

/// What happens to one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The same whatever the arguments are.
    Always(Action),
    /// The first alternative that holds; the default action if none does.
    Alternatives(Box<[Alternative]>),
}

/// A rule, read once for all architectures.
#[derive(Debug)]
pub(super) struct Rule<'a> {
    /// Its place in the profile.
    index: usize,
    action: Action,
    alternatives: Vec<Vec<Condition>>,
    calls: Vec<Call<'a>>,
}

/// A call that a rule names.
#[derive(Debug)]
struct Call<'a> {
    name: &'a str,
    numbers: Numbers,
}

impl<'a> Rule<'a> {
    /// Reads the rule at `index` of the profile; names that no architecture has go to `unknown`.
    pub(super) fn read(
        index: usize,
        rule: &'a LinuxSyscall,
        unknown: &mut BTreeSet<&'a str>,
    ) -> Result<Self, Error> {
        let errno_pointer = || format!("{}/errnoRet", pointer(index));
        let action = action::parse(rule.action(), rule.errno_ret(), &errno_pointer)?;
        let alternatives = conditions(rule.args().as_deref().unwrap_or_default(), index)?;
        let mut calls = Vec::with_capacity(rule.names().len());
        let mut last = None;
        for name in rule.names() {
            let Some(numbers) = Numbers::next(name, last) else {
                unknown.insert(name);
                continue;
            };
            last = Some(numbers);
            calls.push(Call { name, numbers });
        }
        Ok(Self { index, action, alternatives, calls })
    }
}

fn pointer(index: usize) -> String {
    format!("/linux/seccomp/syscalls/{index}")
}

/// The decisions for one architecture.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) architecture: Architecture,
    /// By call number as a filter sees it, in order.
    pub(super) decisions: Vec<(u32, Decision)>,
    /// The highest call number the profile mentions, whether a decision came of it or not.
    pub(super) newest: Option<u32>,
}

impl Table {
    /// Gathers what `rules` say about calls of `architecture`.
    pub(super) fn build(
        architecture: Architecture,
        rules: &[Rule<'_>],
        default: Action,
    ) -> Result<Self, Error> {
        let mut newest = None;
        let calls = rules.iter().map(|rule| rule.calls.len()).sum();
        let (mut said, mut order) = (Vec::with_capacity(calls), Vec::with_capacity(calls));
        let mut say = |number: u32, rule, call, door| {
            // By number, and of what is said of one number as the profile has it.
            order.push(u64::from(number) << 32 | said.len() as u64);
            said.push(Said { rule, call, door });
        };
        for rule in rules {
            for call in &rule.calls {
                let number = call.numbers.on(architecture);
                newest = newest.max(number.filter(|number| is_ordinary(architecture, *number)));
                if rule.action == default {
                    continue;
                }
                if let Some(number) = number {
                    say(number, rule, call, None);
                }
                let door = call.numbers.door().filter(|_| architecture.multiplexes());
                let number = door.and_then(Door::numbers).and_then(|numbers| numbers.on(architecture));
                if let Some(number) = number {
                    say(number, rule, call, door);
                }
            }
        }
        order.sort_unstable();
        let number = |key: u64| (key >> 32) as u32;
        let decided = |of_one: &[u64]| {
            let all = of_one.iter().map(|key| &said[(key & u64::from(u32::MAX)) as usize]);
            Ok((number(of_one[0]), decide(all)?))
        };
        let decisions = order.chunk_by(|one, other| number(*one) == number(*other)).map(decided);
        Ok(Self { architecture, decisions: decisions.collect::<Result<_, _>>()?, newest })
    }
}

/// ARM's private calls lie far above the table and say nothing about a kernel's age.
fn is_ordinary(architecture: Architecture, number: u32) -> bool {
    const ARM_PRIVATE: u32 = 0x000f_0000;
    architecture != Architecture::Arm || number < ARM_PRIVATE
}

/// What a rule says of a number: because it names the call, or one that is reached through it.
struct Said<'a> {
    rule: &'a Rule<'a>,
    call: &'a Call<'a>,
    door: Option<Door>,
}

impl Said<'_> {
    /// The conditions of an alternative, behind the door if there is one.
    fn behind_door(&self, conditions: &[Condition]) -> Vec<Condition> {
        let Some(door) = self.door else { return conditions.to_vec() };
        let first = Condition { argument: 0, comparison: Comparison::Equal(door.operation()) };
        let rest = conditions.iter().copied().filter(|condition| condition.argument != 0);
        std::iter::once(first).chain(rest).collect()
    }
}

/// What becomes of all that is said of one number.
fn decide<'a>(all: impl Iterator<Item = &'a Said<'a>>) -> Result<Decision, Error> {
    let mut list: Vec<Alternative> = Vec::new();
    for said in all {
        let action = said.rule.action;
        for conditions in &said.rule.alternatives {
            let conditions = said.behind_door(conditions);
            if conditions.is_empty() {
                return Ok(Decision::Always(action));
            }
            match list.binary_search_by(|known| precedence(&known.conditions, &conditions)) {
                Err(place) => list.insert(place, Alternative { conditions, action }),
                Ok(place) if list[place].action == action => {}
                Ok(_) => {
                    let (pointer, syscall) = (pointer(said.rule.index), said.call.name.to_owned());
                    return Err(Error::Contradiction { pointer, syscall });
                }
            }
        }
    }
    Ok(Decision::Alternatives(list.into()))
}

/// The alternatives that a rule's arguments stand for; one without conditions where it has none.
fn conditions(args: &[LinuxSeccompArg], rule: usize) -> Result<Vec<Vec<Condition>>, Error> {
    let mut parsed = Vec::with_capacity(args.len());
    for (index, arg) in args.iter().enumerate() {
        parsed.push(condition(arg).ok_or_else(|| Error::ArgumentIndex {
            pointer: format!("{}/args/{index}/index", pointer(rule)),
            index: arg.index(),
        })?);
    }
    parsed.sort_by_key(|condition| condition.argument);
    let repeated = parsed.windows(2).any(|pair| pair[0].argument == pair[1].argument);
    Ok(if repeated { parsed.into_iter().map(|one| vec![one]).collect() } else { vec![parsed] })
}

/// What an operator makes of `value` and `valueTwo`.
type Compare = fn(u64, u64) -> Comparison;

/// The runtime-spec's operators, in the order of their names.
pub(super) const OPERATORS: [(LinuxSeccompOperator, Compare); 7] = [
    (LinuxSeccompOperator::ScmpCmpEq, |value, _| Comparison::Equal(value)),
    (LinuxSeccompOperator::ScmpCmpGe, |value, _| Comparison::GreaterOrEqual(value)),
    (LinuxSeccompOperator::ScmpCmpGt, |value, _| Comparison::Greater(value)),
    (LinuxSeccompOperator::ScmpCmpLe, |value, _| Comparison::LessOrEqual(value)),
    (LinuxSeccompOperator::ScmpCmpLt, |value, _| Comparison::Less(value)),
    (LinuxSeccompOperator::ScmpCmpMaskedEq, |mask, value| Comparison::MaskedEqual { mask, value }),
    (LinuxSeccompOperator::ScmpCmpNe, |value, _| Comparison::NotEqual(value)),
];

fn condition(arg: &LinuxSeccompArg) -> Option<Condition> {
    let argument = u8::try_from(arg.index()).ok().filter(|index| usize::from(*index) < ARGUMENTS)?;
    let (_, compare) = OPERATORS.into_iter().find(|(operator, _)| *operator == arg.op())?;
    // An absent valueTwo means zero: Docker's own profile writes its clone rule that way.
    Some(Condition { argument, comparison: compare(arg.value(), arg.value_two().unwrap_or(0)) })
}

/// Which of two alternatives is asked first; equal only if they hold for the same arguments by the same words.
fn precedence(left: &[Condition], right: &[Condition]) -> Ordering {
    for (a, b) in left.iter().zip(right) {
        let order = condition_precedence(a, b);
        if order.is_ne() {
            return order;
        }
    }
    left.len().cmp(&right.len())
}

fn condition_precedence(left: &Condition, right: &Condition) -> Ordering {
    key(left).cmp(&key(right))
}

/// Sorts higher arguments first, then equality, upper bounds, lower bounds; within a kind the tighter first.
fn key(condition: &Condition) -> (Reverse<u8>, u8, u64, u64) {
    let (kind, value, mask) = match condition.comparison {
        Comparison::Equal(value) => (0, !value, u64::MAX),
        Comparison::MaskedEqual { mask, value } => (1, !value, !mask),
        Comparison::NotEqual(value) => (2, !value, 0),
        Comparison::Less(value) => (3, value, 0),
        Comparison::LessOrEqual(value) => (3, value, 1),
        Comparison::Greater(value) => (4, !value, 0),
        Comparison::GreaterOrEqual(value) => (4, !value, 1),
    };
    (Reverse(condition.argument), kind, value, mask)
}
