//! Where a profile is one that seccompiler can express (one architecture, one action for what matches), our program and
//! its program give the same answer to every call.

#![cfg(target_arch = "x86_64")]

use std::collections::BTreeMap;

use cofferdam_isolators::seccomp::{Call, compile, simulate, syscalls};
use cofferdam_plan::op::Instruction;
use oci_spec::runtime::LinuxSeccomp;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

const AUDIT_ARCH_X86_64: u32 = 0xC000_003E;
const EPERM: u32 = 1;
/// Beyond the highest call that a profile names, ours says ENOSYS on purpose; `io_uring_register` is named to set that mark.
const HIGHEST: &str = "io_uring_register";

/// A call, and the argument, the comparison and the value that it is allowed with.
type Rule = (&'static str, Option<(u8, Comparison, u64)>);

#[derive(Clone, Copy)]
enum Comparison {
    Equal,
    Less,
    MaskedEqual(u64),
}

const RULES: [Rule; 9] = [
    ("read", None),
    ("write", None),
    ("personality", Some((0, Comparison::Equal, 0))),
    ("personality", Some((0, Comparison::Equal, 0xffff_ffff))),
    ("clone", Some((0, Comparison::MaskedEqual(0x7e02_0000), 0))),
    ("socket", Some((0, Comparison::Less, 3))),
    ("socket", Some((0, Comparison::Equal, 16))),
    ("prctl", Some((1, Comparison::Less, 0x1_0000_0000))),
    (HIGHEST, None),
];

fn ours() -> Vec<Instruction> {
    let rules: Vec<_> = RULES
        .iter()
        .map(|(name, condition)| {
            let arguments: Vec<_> = condition
                .iter()
                .map(|(index, comparison, value)| match comparison {
                    Comparison::Equal => serde_json::json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"}),
                    Comparison::Less => serde_json::json!({"index": index, "value": value, "op": "SCMP_CMP_LT"}),
                    Comparison::MaskedEqual(mask) => {
                        serde_json::json!({"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"})
                    }
                })
                .collect();
            serde_json::json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": arguments})
        })
        .collect();
    let profile: LinuxSeccomp = serde_json::from_value(serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": EPERM, "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules,
    }))
    .expect("a profile");
    compile(&profile).expect("our program").program
}

fn theirs() -> Vec<Instruction> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (name, condition) in RULES {
        let chain = rules.entry(number(name).into()).or_default();
        if let Some((index, comparison, value)) = condition {
            let operator = match comparison {
                Comparison::Equal => SeccompCmpOp::Eq,
                Comparison::Less => SeccompCmpOp::Lt,
                Comparison::MaskedEqual(mask) => SeccompCmpOp::MaskedEq(mask),
            };
            let condition =
                SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value).expect("a condition");
            chain.push(SeccompRule::new(vec![condition]).expect("a rule"));
        }
    }
    let filter =
        SeccompFilter::new(rules, SeccompAction::Errno(EPERM), SeccompAction::Allow, TargetArch::x86_64)
            .expect("a filter");
    let program = BpfProgram::try_from(filter).expect("their program");
    program.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect()
}

fn number(name: &str) -> u32 {
    let native = cofferdam_isolators::seccomp::Architecture::native().expect("a known architecture");
    syscalls::number(name, native).expect("a known call")
}

#[test]
fn both_give_the_same_answer_wherever_both_can_express_the_question() {
    const VALUES: [u64; 12] =
        [0, 1, 2, 3, 16, 17, 0x0200_0000, 0x7e02_0000, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0010, u64::MAX];
    let (ours, theirs) = (ours(), theirs());
    let mut allowed = 0;
    for call_number in 0..=number(HIGHEST) {
        for first in VALUES {
            for second in VALUES {
                let call = Call {
                    number: call_number,
                    architecture: AUDIT_ARCH_X86_64,
                    arguments: [first, second, 0, 0, 0, 0],
                    ..Call::default()
                };
                let (our_answer, _) = simulate(&ours, &call).expect("our program ends");
                let (their_answer, _) = simulate(&theirs, &call).expect("their program ends");
                assert_eq!(our_answer, their_answer, "{call:x?}");
                allowed += u32::from(our_answer.0 == 0x7fff_0000);
            }
        }
    }
    assert!(allowed > 0, "the profile allows something");
}

#[test]
fn both_kill_a_call_through_another_abi() {
    const AUDIT_ARCH_I386: u32 = 0x4000_0003;
    const KILL_PROCESS: u32 = 0x8000_0000;
    let call = Call { architecture: AUDIT_ARCH_I386, ..Call::default() };
    for program in [ours(), theirs()] {
        assert_eq!(simulate(&program, &call).expect("it ends").0.0, KILL_PROCESS);
    }
}
