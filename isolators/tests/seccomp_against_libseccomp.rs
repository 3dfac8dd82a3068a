//! Our filters beside libseccomp's: the same profile, compiled twice, asked about the same calls.
//!
//! libseccomp is a test oracle only. Where gcc or libseccomp's headers are missing the tests say so and pass.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use cofferdam_isolators::capabilities::CapSet;
use cofferdam_isolators::seccomp::{
    Action, Architecture, Call, Filter, Instruction, compile_for, default, simulate, syscalls,
};
use cofferdam_tests::pace;
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};
use serde_json::{Value, json};

/// The oracle program, built once a test run; `None` where it cannot be.
fn oracle() -> Option<&'static PathBuf> {
    static ORACLE: OnceLock<Option<PathBuf>> = OnceLock::new();
    ORACLE
        .get_or_init(|| {
            let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
                .join(format!("libseccomp-oracle-{}", std::process::id()));
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/libseccomp_oracle.c");
            let built =
                Command::new("gcc").arg("-O1").arg("-o").arg(&target).arg(source).arg("-lseccomp").output();
            match built {
                Ok(output) if output.status.success() => Some(target),
                _ => {
                    println!("skipped: needs gcc and libseccomp's headers");
                    None
                }
            }
        })
        .as_ref()
}

/// What the oracle writes for `script`; `None` if it refuses a rule.
fn ask(oracle: &PathBuf, script: &str) -> Option<Vec<u8>> {
    let mut child = Command::new(oracle).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    match output.status.code() {
        Some(0) => Some(output.stdout),
        Some(3) => None,
        other => panic!("oracle ended with {other:?} on\n{script}"),
    }
}

fn parse(bytes: &[u8]) -> Vec<Instruction> {
    bytes
        .chunks_exact(8)
        .map(|b| Instruction {
            code: u16::from_le_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
        })
        .collect()
}

/// A profile as the lines that make libseccomp do what runc would make it do.
fn script(profile: &LinuxSeccomp) -> String {
    let number = |action: LinuxSeccompAction, errno: Option<u32>| action.as_u32(errno);
    let default = number(profile.default_action(), profile.default_errno_ret());
    let mut lines = format!("init {default}\noptimize 2\n");
    for arch in profile.architectures().as_deref().unwrap_or_default() {
        lines += &format!("arch {}\n", *arch as u32);
    }
    for rule in profile.syscalls().as_deref().unwrap_or_default() {
        let action = number(rule.action(), rule.errno_ret());
        if action == default {
            continue;
        }
        for name in rule.names() {
            for conditions in condition_sets(rule) {
                lines += &format!("rule {action} {name}{conditions}\n");
            }
        }
    }
    lines + "export\n"
}

fn condition_sets(rule: &LinuxSyscall) -> Vec<String> {
    let args = rule.args().clone().unwrap_or_default();
    let texts: Vec<String> = args
        .iter()
        .map(|a| format!(" {} {} {} {}", a.index(), a.op() as u32, a.value(), a.value_two().unwrap_or(0)))
        .collect();
    let repeated = args.iter().enumerate().any(|(i, a)| args[..i].iter().any(|b| b.index() == a.index()));
    if repeated { texts } else { vec![texts.concat()] }
}

/// A small generator: the same cases in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[usize::try_from(self.roll(list.len() as u64)).unwrap()]
    }
}

const BOUNDARIES: [u64; 14] = [
    0,
    1,
    2,
    7,
    8,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0001,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_0000_0001,
    u64::MAX,
];

/// What the profile says about a call, word for word and slowly; `None` where the rules do not speak of it by name.
fn reference(profile: &LinuxSeccomp, call: &Call) -> Option<Action> {
    let x32 = call.architecture == Architecture::X86_64.audit_word() && call.number & 0x4000_0000 != 0;
    let architecture = Architecture::ALL
        .into_iter()
        .find(|a| a.audit_word() == call.architecture && (*a == Architecture::X32) == x32)?;
    let name = syscalls::name(call.number, architecture)?;
    let bits = if architecture.compares_64_bits() { u64::MAX } else { 0xffff_ffff };
    let holds = |arg: &LinuxSeccompArg| {
        let (given, value) = (call.arguments[arg.index()] & bits, arg.value() & bits);
        match arg.op() {
            LinuxSeccompOperator::ScmpCmpNe => given != value,
            LinuxSeccompOperator::ScmpCmpLt => given < value,
            LinuxSeccompOperator::ScmpCmpLe => given <= value,
            LinuxSeccompOperator::ScmpCmpEq => given == value,
            LinuxSeccompOperator::ScmpCmpGe => given >= value,
            LinuxSeccompOperator::ScmpCmpGt => given > value,
            LinuxSeccompOperator::ScmpCmpMaskedEq => given & value == arg.value_two().unwrap_or(0) & bits,
        }
    };
    let rules: Vec<&LinuxSyscall> = profile
        .syscalls()
        .iter()
        .flatten()
        .filter(|rule| rule.names().iter().any(|known| known == name))
        .collect();
    rules.first()?;
    let matching = rules.iter().find(|rule| {
        let args = rule.args().clone().unwrap_or_default();
        if condition_sets(rule).len() > 1 { args.iter().any(holds) } else { args.iter().all(holds) }
    });
    Some(Action(match matching {
        Some(rule) => rule.action().as_u32(rule.errno_ret()),
        None => profile.default_action().as_u32(profile.default_errno_ret()),
    }))
}

/// Whether several alternatives with bounds meet on one call. libseccomp 2.5 merges their high words into one node and gets
/// some of them wrong (mended in parts in 2.6): there the slow reading decides.
fn merges_bounds(profile: &LinuxSeccomp, call: &Call) -> bool {
    let number =
        |name: &String| Architecture::ALL.into_iter().any(|a| syscalls::number(name, a) == Some(call.number));
    let rules: Vec<&LinuxSyscall> =
        profile.syscalls().iter().flatten().filter(|rule| rule.names().iter().any(number)).collect();
    let alternatives: usize = rules.iter().map(|rule| condition_sets(rule).len()).sum();
    let bound = |arg: &LinuxSeccompArg| {
        !matches!(arg.op(), LinuxSeccompOperator::ScmpCmpEq | LinuxSeccompOperator::ScmpCmpMaskedEq)
    };
    alternatives > 1 && rules.iter().flat_map(|rule| rule.args().iter().flatten()).any(bound)
}

/// Asks both programs about `numbers` with boundary arguments; returns how many answers were compared, and how many of
/// libseccomp's the slow reading refuted.
fn compare(
    profile: &LinuxSeccomp,
    ours: &[Instruction],
    theirs: &[Instruction],
    numbers: &[u32],
    dice: &mut Dice,
) -> (u64, u64) {
    let words = [0xc000_003e_u32, 0x4000_0003, 0xc000_00b7, 0x4000_0028, 0xc000_00f3, 0, u32::MAX];
    let (mut compared, mut refuted) = (0, 0);
    for architecture in words {
        for number in numbers {
            for _ in 0..6 {
                // 32-bit kernels entry points zero-extend; x32 does not, so its high words are noise that both ignore.
                let narrow = architecture & 0x8000_0000 == 0;
                let mut arguments = [0; 6];
                for argument in &mut arguments {
                    *argument = *dice.pick(&BOUNDARIES);
                    if narrow {
                        *argument &= 0xffff_ffff;
                    }
                }
                let call = Call { number: *number, architecture, instruction_pointer: 0, arguments };
                let (mine, _) = simulate(ours, &call).expect("our program is well-formed");
                let (theirs, _) = simulate(theirs, &call).expect("their program is well-formed");
                compared += 1;
                if mine == theirs {
                    continue;
                }
                let listed = simulate(ours, &Call { number: 0, ..call }).unwrap().0 != Action::KILL_PROCESS;
                let expected = reference(profile, &call).filter(|_| listed && merges_bounds(profile, &call));
                assert_eq!(Some(mine), expected, "{call:x?}, libseccomp {theirs:x?}\n{}", script(profile));
                refuted += 1;
            }
        }
    }
    (compared, refuted)
}

fn numbers(names: &[&str]) -> Vec<u32> {
    let mut numbers: Vec<u32> = names
        .iter()
        .flat_map(|name| Architecture::ALL.into_iter().filter_map(|a| syscalls::number(name, a)))
        .collect();
    numbers.extend([
        0,
        511,
        512,
        999,
        0x3fff_ffff,
        0x4000_0000,
        0x4000_0400,
        0x7fff_ffff,
        0x8000_0000,
        u32::MAX - 1,
        u32::MAX,
    ]);
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

fn compile(profile: &Value) -> (LinuxSeccomp, Filter) {
    let profile: LinuxSeccomp = serde_json::from_value(profile.clone()).unwrap();
    let filter = compile_for(&profile, Architecture::X86_64).unwrap();
    (profile, filter)
}

#[test]
fn call_numbers_agree_with_libseccomp() {
    let Some(oracle) = oracle() else { return };
    let mut script = String::new();
    let mut asked = Vec::new();
    for architecture in Architecture::ALL {
        // Debian's libseccomp knows no LoongArch; big-endian and POWER tables are asked like the others.
        if architecture == Architecture::Loongarch64 {
            continue;
        }
        for name in syscalls::names() {
            script += &format!("resolve {name} {}\n", architecture.to_oci() as u32);
            asked.push((name, architecture));
        }
    }
    let output = String::from_utf8(ask(oracle, &script).unwrap()).unwrap();
    let mut known = 0;
    for ((name, architecture), line) in asked.into_iter().zip(output.lines()) {
        let theirs: i64 = line.parse().unwrap();
        let ours = syscalls::number(name, architecture);
        // Negative: unknown to the installed release, or reached through another call there.
        if let Ok(theirs) = u32::try_from(theirs) {
            known += 1;
            assert_eq!(ours, Some(theirs), "{name} on {architecture:?}");
        }
    }
    assert!(known > 2500, "only {known} numbers were compared");
}

#[test]
fn podmans_profile_gets_the_same_answers() {
    let Some(oracle) = oracle() else { return };
    let Ok(text) = std::fs::read_to_string("/usr/share/containers/seccomp.json") else {
        println!("skipped: needs podman's profile");
        return;
    };
    let engine: Value = serde_json::from_str(&text).unwrap();
    for capabilities in
        [vec![], vec!["CAP_SYS_ADMIN"], vec!["CAP_SYS_PTRACE", "CAP_SYS_TIME", "CAP_DAC_READ_SEARCH"]]
    {
        let (profile, filter) = compile(&resolve(&engine, &capabilities));
        let theirs = parse(&ask(oracle, &script(&profile)).unwrap());
        let names: Vec<&str> = syscalls::names().collect();
        let (compared, refuted) =
            compare(&profile, &filter.program, &theirs, &numbers(&names), &mut Dice(88_172_645_463_325_252));
        assert_eq!(refuted, 0);
        println!("{compared} answers; {} instructions, libseccomp {}", filter.program.len(), theirs.len());
        assert!(filter.program.len() <= theirs.len());
        cost(&filter.program, &theirs);
    }
}

/// Docker's default profile, for which engines' users pay with every system call: no call costs more than libseccomp's tree
/// on average, and neither does any by the clock.
#[test]
fn dockers_default_profile_costs_no_more_than_with_libseccomp() {
    let Some(oracle) = oracle() else { return };
    let profile = default::profile(default::Style::Docker, CapSet::DEFAULT, Architecture::X86_64);
    let filter = compile_for(&profile, Architecture::X86_64).unwrap();
    let theirs = parse(&ask(oracle, &script(&profile)).unwrap());
    println!("{} instructions, libseccomp {}", filter.program.len(), theirs.len());
    cost(&filter.program, &theirs);
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: needs x86-64, for which the filters are");
        return;
    }
    // Calls whose answer depends on no argument are remembered by the kernel (Linux 5.11); that of personality is not.
    for (name, call) in [("getppid", getppid as fn()), ("personality", personality)] {
        let (bare, mine, other) =
            (nanoseconds(&[], call), nanoseconds(&filter.program, call), nanoseconds(&theirs, call));
        println!("{name}: {bare:.0} ns without a filter, {mine:.0} with ours, {other:.0} with libseccomp's");
        // By instructions it is exact, and holds above; by the clock where nothing else is at work.
        let as_time = |nanoseconds: f64| std::time::Duration::from_secs_f64(nanoseconds / 1e9);
        pace::held(name, as_time(mine), as_time(2.0 * other + 100.0));
    }
}

fn getppid() {
    std::hint::black_box(rustix::process::getppid());
}

fn personality() {
    const PER_QUERY: u32 = u32::MAX;
    let _ = cofferdam_linux::process::set_personality(PER_QUERY);
}

/// What one call takes under a filter, in a thread of its own: the best of some rounds.
fn nanoseconds(program: &[Instruction], call: fn()) -> f64 {
    const ROUNDS: u32 = 20;
    const CALLS: u32 = 5_000;
    let filter: Vec<_> = program
        .iter()
        .map(|i| cofferdam_linux::seccomp::SockFilter { code: i.code, jt: i.jt, jf: i.jf, k: i.k })
        .collect();
    let measure = || {
        if !filter.is_empty() {
            rustix::thread::set_no_new_privs(true).unwrap();
            cofferdam_linux::seccomp::load(&filter, 0).unwrap();
        }
        let round = |_| {
            let begin = std::time::Instant::now();
            (0..CALLS).for_each(|_| call());
            begin.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
        };
        (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
    };
    std::thread::scope(|scope| scope.spawn(measure).join().unwrap())
}

/// Mean instructions per call over all native numbers: ours may not be above libseccomp's tree.
fn cost(ours: &[Instruction], theirs: &[Instruction]) {
    let native = syscalls::names().filter_map(|name| syscalls::number(name, Architecture::X86_64));
    let (mut mine, mut other, mut calls) = (0, 0, 0);
    for number in native {
        let call = Call { number, architecture: 0xc000_003e, ..Call::default() };
        mine += simulate(ours, &call).unwrap().1;
        other += simulate(theirs, &call).unwrap().1;
        calls += 1;
    }
    println!(
        "mean instructions a call: {:.1}, libseccomp {:.1}",
        mine as f64 / calls as f64,
        other as f64 / calls as f64
    );
    assert!(mine <= other);
}

/// Resolves an engine's profile (includes, excludes) the way podman does on x86-64.
fn resolve(engine: &Value, capabilities: &[&str]) -> Value {
    let holds = |list: &Value| {
        let caps = list["caps"].as_array().cloned().unwrap_or_default();
        let arches = list["arches"].as_array().cloned().unwrap_or_default();
        (
            !caps.is_empty() && caps.iter().all(|c| capabilities.contains(&c.as_str().unwrap())),
            !arches.is_empty() && arches.iter().any(|a| ["amd64", "x86_64"].contains(&a.as_str().unwrap())),
            caps.is_empty(),
            arches.is_empty(),
        )
    };
    let mut rules = Vec::new();
    for rule in engine["syscalls"].as_array().unwrap() {
        let (caps, arches, no_caps, no_arches) = holds(&rule["includes"]);
        let (without_caps, without_arches, ..) = holds(&rule["excludes"]);
        if (caps || no_caps) && (arches || no_arches) && !without_caps && !without_arches {
            let mut rule = rule.clone();
            let object = rule.as_object_mut().unwrap();
            object.retain(|key, value| {
                ["names", "action", "args", "errnoRet"].contains(&key.as_str()) && !value.is_null()
            });
            rules.push(rule);
        }
    }
    json!({
        "defaultAction": engine["defaultAction"],
        "defaultErrnoRet": engine["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    })
}

#[test]
fn generated_profiles_get_the_same_answers() {
    let Some(oracle) = oracle() else { return };
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let (mut profiles, mut refused, mut compared, mut refuted) = (0, 0, 0, 0);
    for case in 0..300 {
        let value = generate(&mut dice, case);
        let (profile, filter) = compile(&value);
        let Some(theirs) = ask(oracle, &script(&profile)) else {
            refused += 1;
            continue;
        };
        let names: Vec<String> =
            profile.syscalls().iter().flatten().flat_map(|rule| rule.names().iter().cloned()).collect();
        let names: Vec<&str> =
            names.iter().map(String::as_str).chain(["socketcall", "ipc", "read"]).collect();
        let counts = compare(&profile, &filter.program, &parse(&theirs), &numbers(&names), &mut dice);
        compared += counts.0;
        refuted += counts.1;
        profiles += 1;
    }
    println!(
        "{profiles} profiles, {compared} answers, {refuted} of libseccomp's refuted, {refused} profiles it refused"
    );
    assert!(profiles > 250 && refuted * 100 < compared);
}

/// One profile. Alternatives on one call share an action: where they overlap with different ones, libseccomp 2.5 itself
/// depends on the order in which its tree was built.
fn generate(dice: &mut Dice, case: u64) -> Value {
    let actions = [
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_TRAP",
        "SCMP_ACT_LOG",
        "SCMP_ACT_TRACE",
    ];
    let calls = [
        "read",
        "write",
        "socket",
        "bind",
        "clone",
        "personality",
        "ioctl",
        "semop",
        "shmget",
        "openat",
        "chown32",
        "_llseek",
        "getpid",
        "mmap2",
        "accept4",
        "set_tls",
        "waitpid",
        "keyctl",
        "msgctl",
        "send",
    ];
    let operators = [
        "SCMP_CMP_NE",
        "SCMP_CMP_LT",
        "SCMP_CMP_LE",
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_MASKED_EQ",
    ];
    // Permissive, or ENOSYS already: the extra answer for newer calls has tests of its own.
    let (default, errno) =
        *dice.pick(&[("SCMP_ACT_ALLOW", None), ("SCMP_ACT_LOG", None), ("SCMP_ACT_ERRNO", Some(38))]);
    let mut per_call: Vec<Value> = Vec::new();
    for call in calls {
        if dice.roll(3) == 0 {
            continue;
        }
        let action = *dice.pick(&actions);
        let errno = dice.roll(200);
        for _ in 0..=dice.roll(2) {
            let args: Vec<Value> = (0..dice.roll(4))
                .map(|_| {
                    let op = *dice.pick(&operators);
                    let value = *dice.pick(&BOUNDARIES);
                    let two = *dice.pick(&BOUNDARIES) & value;
                    json!({"index": dice.roll(6), "op": op, "value": value, "valueTwo": two})
                })
                .collect();
            let mut rule = json!({"names": [call], "action": action, "args": args});
            if matches!(action, "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE") {
                rule["errnoRet"] = json!(errno);
            }
            per_call.push(rule);
        }
    }
    let architectures = match case % 4 {
        0 => json!([]),
        1 => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        2 => json!(["SCMP_ARCH_X86", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        _ => json!(["SCMP_ARCH_X32"]),
    };
    let mut profile = json!({"defaultAction": default, "architectures": architectures, "syscalls": per_call});
    if let Some(errno) = errno {
        profile["defaultErrnoRet"] = json!(errno);
    }
    profile
}

#[test]
fn tighter_conditions_win_over_wider_ones_as_in_libseccomp() {
    let Some(oracle) = oracle() else { return };
    let rule = |op: &str, value: u64, errno: u32| json!({"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": [{"index": 1, "op": op, "value": value}]});
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        rule("SCMP_CMP_GE", 2, 1), rule("SCMP_CMP_GT", 0x8000_0000, 2), rule("SCMP_CMP_EQ", 0xffff_ffff, 3), rule("SCMP_CMP_EQ", 7, 4),
    ]});
    let (profile, filter) = compile(&profile);
    let theirs = parse(&ask(oracle, &script(&profile)).unwrap());
    assert_eq!(compare(&profile, &filter.program, &theirs, &[16, 54], &mut Dice(7)).1, 0);
    let answer = |value: u64| {
        let call = Call {
            number: 16,
            architecture: 0xc000_003e,
            arguments: [0, value, 0, 0, 0, 0],
            ..Call::default()
        };
        simulate(&filter.program, &call).unwrap().0
    };
    assert_eq!(answer(7), Action::errno(4));
    assert_eq!(answer(8), Action::errno(1));
    assert_eq!(answer(0x8000_0001), Action::errno(2));
    assert_eq!(answer(0xffff_ffff), Action::errno(3));
    assert_eq!(answer(1), Action::ALLOW);
}
