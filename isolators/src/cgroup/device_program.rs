//! The device rules as an eBPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE`, for version 2.
//!
//! ```text
//! r2 = kind, r3 = access asked for, r4 = major, r5 = minor
//! for each exception: not about this device or access → the next one
//!                     about it → return the opposite of the default
//! return the default
//! ```
//!
//! What "about this access" means is version 1's: with everything denied an exception must allow all that is asked for at
//! once; with everything allowed it is enough that an exception denies a part of it.

use super::devices::{Access, DeviceKind, DevicePolicy, Exception};

/// Loads, of `struct bpf_cgroup_dev_ctx` at r1.
const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const MOVE_NUMBER: u8 = 0xb4; // BPF_ALU | BPF_MOV | BPF_K
const AND_NUMBER: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const IF_NOT_EQUAL: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const IF_EQUAL: u8 = 0x16; // BPF_JMP32 | BPF_JEQ | BPF_K
const IF_REGISTERS_DIFFER: u8 = 0x5e; // BPF_JMP32 | BPF_JNE | BPF_X
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

/// `BPF_DEVCG_DEV_BLOCK` and `BPF_DEVCG_DEV_CHAR`.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

impl DevicePolicy {
    /// The program, one 64-bit word an instruction, as bpf(2) takes it on a little-endian machine. JMP32 needs Linux 5.1.
    #[must_use]
    pub fn program(&self) -> Vec<u64> {
        let mut program = vec![
            instruction(LOAD_WORD, 2, 1, 0, 0),
            instruction(MOVE, 3, 2, 0, 0),
            instruction(AND_NUMBER, 2, 0, 0, 0xffff),
            instruction(SHIFT_RIGHT, 3, 0, 0, 16),
            instruction(LOAD_WORD, 4, 1, 4, 0),
            instruction(LOAD_WORD, 5, 1, 8, 0),
        ];
        for exception in &self.exceptions {
            program.append(&mut self.block(exception));
        }
        program.extend(answer(self.allowed_by_default));
        program
    }

    fn block(&self, exception: &Exception) -> Vec<u64> {
        // A test leaves the block by a jump whose length is known when the block is whole: (op, register, operand).
        let mut tests: Vec<(u8, u8, i32)> = Vec::with_capacity(6);
        let kind = match exception.devices.kind {
            DeviceKind::Block => BLOCK,
            DeviceKind::Character => CHARACTER,
        };
        tests.push((IF_NOT_EQUAL, 2, kind));
        if self.allowed_by_default {
            tests.push((MOVE, 1, 3));
            tests.push((AND_NUMBER, 1, i32::from(exception.access.0)));
            tests.push((IF_EQUAL, 1, 0));
        } else if exception.access != Access::ALL {
            tests.push((MOVE, 1, 3));
            tests.push((AND_NUMBER, 1, i32::from(exception.access.0)));
            tests.push((IF_REGISTERS_DIFFER, 1, 3));
        }
        for (register, number) in [(4, exception.devices.major), (5, exception.devices.minor)] {
            if let Some(number) = number {
                tests.push((IF_NOT_EQUAL, register, number.cast_signed()));
            }
        }
        let end = tests.len() + 2;
        let mut block: Vec<u64> = tests
            .iter()
            .enumerate()
            .map(|(place, (operation, register, operand))| {
                // A block has at most eight instructions.
                let out = i16::try_from(end - place - 1).unwrap_or(i16::MAX);
                match *operation {
                    MOVE => instruction(MOVE, *register, *operand as u8, 0, 0),
                    AND_NUMBER => instruction(AND_NUMBER, *register, 0, 0, *operand),
                    IF_REGISTERS_DIFFER => {
                        instruction(IF_REGISTERS_DIFFER, *register, *operand as u8, out, 0)
                    }
                    test => instruction(test, *register, 0, out, *operand),
                }
            })
            .collect();
        block.extend(answer(!self.allowed_by_default));
        block
    }
}

fn answer(allow: bool) -> [u64; 2] {
    [instruction(MOVE_NUMBER, 0, 0, 0, i32::from(allow)), instruction(EXIT, 0, 0, 0, 0)]
}

/// `struct bpf_insn`: operation, two registers of four bits, a jump distance or offset, an operand.
fn instruction(operation: u8, destination: u8, source: u8, offset: i16, operand: i32) -> u64 {
    u64::from(operation)
        | u64::from(source << 4 | destination) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(operand.cast_unsigned()) << 32
}

#[cfg(test)]
mod tests {
    use super::super::devices::Defaults;
    use super::*;
    use oci_spec::runtime::LinuxDeviceCgroup;

    /// A second reading of the instruction set, independent of how the program is made.
    fn run(program: &[u64], context: [u32; 3]) -> u32 {
        let mut registers = [0_u32; 11];
        let mut at = 0_usize;
        for _ in 0..program.len() {
            let word = program[at].to_le_bytes();
            let (destination, source) = (usize::from(word[1] & 15), usize::from(word[1] >> 4));
            let offset = i16::from_le_bytes([word[2], word[3]]);
            let operand = u32::from_le_bytes([word[4], word[5], word[6], word[7]]);
            at += 1;
            let jump = match word[0] {
                0x61 => {
                    assert_eq!(source, 1, "only the context is read");
                    registers[destination] = context[usize::try_from(offset).unwrap() / 4];
                    false
                }
                0xbc => {
                    registers[destination] = registers[source];
                    false
                }
                0xb4 => {
                    registers[destination] = operand;
                    false
                }
                0x54 => {
                    registers[destination] &= operand;
                    false
                }
                0x74 => {
                    registers[destination] >>= operand;
                    false
                }
                0x56 => registers[destination] != operand,
                0x16 => registers[destination] == operand,
                0x5e => registers[destination] != registers[source],
                0x95 => return registers[0],
                other => panic!("operation {other:#x}"),
            };
            if jump {
                at += usize::try_from(offset).unwrap();
            }
        }
        panic!("no answer");
    }

    fn context(kind: DeviceKind, major: u32, minor: u32, access: Access) -> [u32; 3] {
        let kind = match kind {
            DeviceKind::Block => 1,
            DeviceKind::Character => 2,
        };
        [u32::from(access.0) << 16 | kind, major, minor]
    }

    fn agrees(policy: &DevicePolicy) {
        let program = policy.program();
        for kind in [DeviceKind::Character, DeviceKind::Block] {
            for major in [0, 1, 5, 8, 10, 136, 4095, u32::MAX] {
                for minor in [0, 1, 3, 20, 229, 0x000f_ffff] {
                    for access in (1..8).map(Access) {
                        let expected = policy.allows(kind, major, minor, access);
                        let answer = run(&program, context(kind, major, minor, access)) == 1;
                        assert_eq!(answer, expected, "{kind:?} {major}:{minor} {access} under {policy:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_program_answers_as_version_1_would() {
        agrees(&DevicePolicy::new(&[], Defaults::Strict).unwrap());
        agrees(&DevicePolicy::new(&[], Defaults::Compatible).unwrap());
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut roll = |sides: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % sides
        };
        let (mut compared, mut refused) = (0, 0);
        for _ in 0..400 {
            let count = roll(8);
            let rules: Vec<LinuxDeviceCgroup> = (0..count)
                .map(|_| {
                    let mut rule = serde_json::json!({"allow": roll(3) > 0});
                    rule["type"] = ["a", "b", "c", "c"][roll(4) as usize].into();
                    rule["access"] = ["r", "w", "m", "rw", "rwm"][roll(5) as usize].into();
                    if roll(3) > 0 {
                        rule["major"] = [1, 5, 8, 10][roll(4) as usize].into();
                    }
                    if roll(3) > 0 {
                        rule["minor"] = [0, 3, 20, 229][roll(4) as usize].into();
                    }
                    serde_json::from_value(rule).unwrap()
                })
                .collect();
            match DevicePolicy::new(&rules, Defaults::Strict) {
                Ok(policy) => {
                    agrees(&policy);
                    compared += 1;
                }
                Err(_) => refused += 1,
            }
        }
        assert!(compared > 200, "{compared} compared, {refused} refused");
    }
}
