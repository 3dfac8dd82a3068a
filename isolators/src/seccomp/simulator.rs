//! Runs a filter without the kernel: what would this call get?
//!
//! For `--explain`, for tests, and for ABIs that the machine at hand cannot execute.

use super::{Action, Instruction};

/// The record a filter sees for one call (`struct seccomp_data`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// The call number, x32 marker bit included.
    pub number: u32,
    /// The architecture word (`AUDIT_ARCH_*`).
    pub architecture: u32,
    /// Where the calling instruction lies.
    pub instruction_pointer: u64,
    /// The six arguments.
    pub arguments: [u64; 6],
}

/// The program's answer to `call` and how many instructions it took; `None` if the program is not one the kernel would load.
#[must_use]
pub fn simulate(program: &[Instruction], call: &Call) -> Option<(Action, usize)> {
    run(program, |offset| word(call, offset))
}

/// The program's answer to a call where neither its arguments nor its place are looked at.
pub(super) fn decided_by_number(program: &[Instruction], number: u32, architecture: u32) -> Option<Action> {
    let call = Call { number, architecture, ..Call::default() };
    run(program, |offset| word(&call, offset).filter(|_| offset < 8)).map(|(action, _)| action)
}

fn run(program: &[Instruction], word: impl Fn(u32) -> Option<u32>) -> Option<(Action, usize)> {
    let mut accumulator = 0;
    let mut at = 0;
    for steps in 1..=program.len() {
        let instruction = program.get(at)?;
        at += 1;
        let k = instruction.k;
        let holds = match instruction.code {
            0x20 => {
                accumulator = word(k)?;
                continue;
            }
            0x54 => {
                accumulator &= k;
                continue;
            }
            0x06 => return Some((Action(k), steps)),
            0x05 => {
                at += usize::try_from(k).ok()?;
                continue;
            }
            0x15 => accumulator == k,
            0x25 => accumulator > k,
            0x35 => accumulator >= k,
            0x45 => accumulator & k != 0,
            _ => return None,
        };
        at += usize::from(if holds { instruction.jt } else { instruction.jf });
    }
    None
}

/// The 32-bit word of `struct seccomp_data` at `offset`, in the byte order of this machine's ABI (little-endian words).
fn word(call: &Call, offset: u32) -> Option<u32> {
    let half =
        |value: u64, high: bool| if high { (value >> 32) as u32 } else { (value & 0xffff_ffff) as u32 };
    match offset {
        0 => Some(call.number),
        4 => Some(call.architecture),
        8 | 12 => Some(half(call.instruction_pointer, offset == 12)),
        16..64 if offset.is_multiple_of(4) => {
            let index = usize::try_from((offset - 16) / 8).ok()?;
            Some(half(*call.arguments.get(index)?, offset % 8 == 4))
        }
        _ => None,
    }
}
