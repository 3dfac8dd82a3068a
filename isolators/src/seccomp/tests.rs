//! What a profile means, asked through the simulator; and what is refused.

use serde_json::{Value, json};

use super::*;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

fn try_compile(profile: Value) -> Result<Filter, Error> {
    compile_for(&serde_json::from_value(profile).unwrap(), Architecture::X86_64)
}

fn answer(filter: &Filter, architecture: u32, number: u32, arguments: [u64; 6]) -> Action {
    let call = Call { number, architecture, arguments, ..Call::default() };
    simulate(&filter.program, &call).unwrap().0
}

#[test]
fn every_action_has_its_word() {
    for (action, errno, expected) in [
        ("SCMP_ACT_KILL", None, Action::KILL_THREAD),
        ("SCMP_ACT_KILL_THREAD", None, Action::KILL_THREAD),
        ("SCMP_ACT_KILL_PROCESS", None, Action::KILL_PROCESS),
        ("SCMP_ACT_TRAP", None, Action::TRAP),
        ("SCMP_ACT_ERRNO", None, Action::errno(1)),
        ("SCMP_ACT_ERRNO", Some(0), Action::errno(0)),
        ("SCMP_ACT_ERRNO", Some(4095), Action::errno(4095)),
        ("SCMP_ACT_TRACE", None, Action::trace(1)),
        ("SCMP_ACT_TRACE", Some(65_535), Action::trace(65_535)),
        ("SCMP_ACT_LOG", None, Action::LOG),
    ] {
        let rule = json!({"names": ["getpid"], "action": action, "errnoRet": errno});
        let filter = try_compile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})).unwrap();
        assert_eq!(answer(&filter, X86_64, 39, [0; 6]), expected, "{action} {errno:?}");
        assert_eq!(answer(&filter, X86_64, 38, [0; 6]), Action::ALLOW);
    }
}

#[test]
fn a_filter_says_nothing_about_a_call_that_it_allows_by_its_number_alone() {
    let any = json!([{ "index": 0, "value": 7, "op": "SCMP_CMP_EQ" }]);
    for (default, action, args, ignored) in [
        ("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", None, false),
        ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", None, false),
        ("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", Some(&any), false),
        ("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW", None, true),
        ("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW", Some(&any), false),
        ("SCMP_ACT_LOG", "SCMP_ACT_ALLOW", None, true),
    ] {
        let mut rule = json!({ "names": ["read"], "action": action });
        if let Some(args) = args {
            rule["args"] = args.clone();
        }
        let profile = json!({ "defaultAction": default, "syscalls": [rule] });
        let filter = compile(&serde_json::from_value(profile).unwrap()).unwrap();
        assert_eq!(filter.ignores("read"), ignored, "{default} {action} {args:?}");
        assert_eq!(filter.ignores("close"), default == "SCMP_ACT_ALLOW", "{default}");
        assert!(!filter.ignores("no_such_call"));
    }
}

#[test]
fn only_the_native_abi_passes_where_no_architecture_is_listed() {
    let filter = try_compile(json!({"defaultAction": "SCMP_ACT_ALLOW"})).unwrap();
    for (architecture, number, expected) in [
        (X86_64, 0, Action::ALLOW),
        (X86_64, 0x3fff_ffff, Action::ALLOW),
        (X86_64, 0x4000_0000, Action::KILL_PROCESS),
        (X86_64, 0xffff_fffe, Action::KILL_PROCESS),
        (X86_64, u32::MAX, Action::ALLOW),
        (I386, 0, Action::KILL_PROCESS),
        (0xc000_00b7, 0, Action::KILL_PROCESS),
        (0x4000_0028, 0, Action::KILL_PROCESS),
        (0x8000_0008, 0, Action::KILL_PROCESS),
    ] {
        assert_eq!(answer(&filter, architecture, number, [0; 6]), expected, "{architecture:#x} {number:#x}");
    }
}

#[test]
fn calls_newer_than_the_profile_do_not_exist() {
    let rules = json!([{"names": ["read", "getpid"], "action": "SCMP_ACT_ALLOW"}, {"names": ["clone"], "action": "SCMP_ACT_ERRNO"}]);
    let profile = |default: &str, errno: Option<u32>| json!({"defaultAction": default, "defaultErrnoRet": errno, "architectures": ["SCMP_ARCH_X86"], "syscalls": rules});
    // The newest call mentioned is clone, 56 there and 120 here, although its rule says what the default says.
    for (default, errno, below, above) in [
        ("SCMP_ACT_ERRNO", None, Action::errno(1), Action::ENOSYS),
        ("SCMP_ACT_ERRNO", Some(5), Action::errno(5), Action::ENOSYS),
        ("SCMP_ACT_ERRNO", Some(38), Action::ENOSYS, Action::ENOSYS),
        ("SCMP_ACT_KILL_PROCESS", None, Action::KILL_PROCESS, Action::ENOSYS),
        ("SCMP_ACT_LOG", None, Action::LOG, Action::LOG),
        ("SCMP_ACT_TRACE", None, Action::trace(1), Action::trace(1)),
    ] {
        let filter = try_compile(profile(default, errno)).unwrap();
        for (architecture, mentioned, newest) in [(X86_64, 39, 56), (I386, 20, 120)] {
            assert_eq!(answer(&filter, architecture, mentioned, [0; 6]), Action::ALLOW, "{default}");
            assert_eq!(answer(&filter, architecture, newest - 1, [0; 6]), below, "{default}");
            assert_eq!(answer(&filter, architecture, newest + 1, [0; 6]), above, "{default}");
        }
    }
}

#[test]
fn an_unconditional_rule_wins_in_either_order() {
    let all = json!({"names": ["socket"], "action": "SCMP_ACT_ALLOW"});
    let some = json!({"names": ["socket"], "action": "SCMP_ACT_TRAP", "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]});
    for rules in [json!([all, some]), json!([some, all])] {
        let filter = try_compile(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules})).unwrap();
        assert_eq!(answer(&filter, X86_64, 41, [2, 0, 0, 0, 0, 0]), Action::ALLOW);
    }
}

#[test]
fn two_conditions_on_one_argument_are_alternatives_and_on_two_must_both_hold() {
    let profile = |args: Value| json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": args}]});
    let equal = |index: usize, value: u64| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    let either = try_compile(profile(json!([equal(1, 5), equal(1, 6)]))).unwrap();
    let both = try_compile(profile(json!([equal(0, 5), equal(1, 6)]))).unwrap();
    assert_eq!(answer(&either, X86_64, 16, [0, 5, 0, 0, 0, 0]), Action::ALLOW);
    assert_eq!(answer(&either, X86_64, 16, [0, 6, 0, 0, 0, 0]), Action::ALLOW);
    assert_eq!(answer(&both, X86_64, 16, [5, 6, 0, 0, 0, 0]), Action::ALLOW);
    assert_eq!(answer(&both, X86_64, 16, [5, 5, 0, 0, 0, 0]), Action::errno(1));
}

#[test]
fn names_nobody_knows_and_machines_without_a_table_are_told() {
    let filter = try_compile(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_MIPS", "SCMP_ARCH_NATIVE"],
        "syscalls": [{"names": ["read", "zz_new", "aa_new", "zz_new"], "action": "SCMP_ACT_ALLOW"}],
    }))
    .unwrap();
    assert_eq!(filter.skipped.syscalls, ["aa_new", "zz_new"]);
    assert_eq!(filter.skipped.architectures, [Arch::ScmpArchMips]);
    assert_eq!(answer(&filter, X86_64, 0, [0; 6]), Action::ALLOW);
}

#[test]
fn flags_are_those_the_kernel_can_take_here() {
    let all = [
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    ];
    let plain = try_compile(json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": all})).unwrap();
    assert_eq!(plain.flags, 2 | 4);
    let notify = json!({"names": ["mknod"], "action": "SCMP_ACT_NOTIFY"});
    let notifying = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": all, "listenerPath": "/run/a.sock", "listenerMetadata": "m", "syscalls": [notify]});
    let filter = try_compile(notifying).unwrap();
    assert_eq!(filter.flags, 2 | 4 | 8 | 32);
    assert_eq!(
        filter.notify,
        Some(Notify {
            listener_path: "/run/a.sock".into(),
            listener_metadata: "m".into(),
            asks_close: false
        })
    );
    assert_eq!(answer(&filter, X86_64, 133, [0; 6]), Action::NOTIFY);
}

#[test]
fn refusals_name_the_place() {
    let rule = |fields: Value| {
        let mut rule = json!({"names": ["getpid"], "action": "SCMP_ACT_ERRNO"});
        rule.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG"}, rule]})
    };
    let equal = json!({"index": 0, "value": 1, "op": "SCMP_CMP_EQ"});
    let contradiction = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["getpid"], "action": "SCMP_ACT_LOG", "args": [equal]},
        {"names": ["getpid"], "action": "SCMP_ACT_TRAP", "args": [equal]},
    ]});
    for (profile, pointer) in [
        (rule(json!({"errnoRet": 4096})), "/linux/seccomp/syscalls/1/errnoRet"),
        (rule(json!({"action": "SCMP_ACT_TRACE", "errnoRet": 65_536})), "/linux/seccomp/syscalls/1/errnoRet"),
        (
            rule(json!({"args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})),
            "/linux/seccomp/syscalls/1/args/0/index",
        ),
        (rule(json!({"action": "SCMP_ACT_NOTIFY"})), "/linux/seccomp/listenerPath"),
        (rule(json!({"action": "SCMP_ACT_NOTIFY", "names": ["write"]})), "/linux/seccomp/syscalls/1"),
        (
            rule(json!({"action": "SCMP_ACT_NOTIFY", "names": ["close_range", "close"]})),
            "/linux/seccomp/syscalls/1",
        ),
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "/linux/seccomp/defaultAction"),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}),
            "/linux/seccomp/defaultErrnoRet",
        ),
        (contradiction, "/linux/seccomp/syscalls/1"),
    ] {
        let error = try_compile(profile.clone()).unwrap_err();
        assert_eq!(error.pointer(), pointer, "{error} of {profile}");
        assert!(Refusal::from(error).to_string().starts_with(pointer));
    }
}

#[test]
fn what_no_filter_can_hold_is_refused_soon() {
    let started = std::time::Instant::now();
    let rule = |value: u64| json!({"names": ["ioctl"], "action": "SCMP_ACT_TRAP", "args": [{"index": 1, "value": value, "op": "SCMP_CMP_GT"}, {"index": 2, "value": value, "op": "SCMP_CMP_NE"}]});
    let long: Vec<Value> = (0..2000).map(rule).collect();
    let error = try_compile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": long})).unwrap_err();
    assert!(matches!(error, Error::TooLong { .. }), "{error}");
    let many = vec![
        serde_json::from_value(json!({"names": ["read"], "action": "SCMP_ACT_ALLOW"})).unwrap();
        MAX_RULES + 1
    ];
    let mut profile = LinuxSeccomp::default();
    profile.set_syscalls(Some(many));
    assert_eq!(
        compile_for(&profile, Architecture::X86_64).unwrap_err(),
        Error::TooManyRules { rules: MAX_RULES + 1 }
    );
    assert!(started.elapsed().as_secs() < 5);
}

#[test]
fn long_jumps_reach_over_large_trees() {
    // Alternating answers on every second call make the tree as large as it gets.
    let names: Vec<&str> =
        syscalls::names().enumerate().filter(|(place, _)| place % 2 == 0).map(|(_, name)| name).collect();
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
    });
    let filter = try_compile(profile).unwrap();
    assert!(filter.program.len() > 1000);
    for architecture in
        [Architecture::X86_64, Architecture::X86, Architecture::X32, Architecture::Aarch64, Architecture::Arm]
    {
        for (place, name) in syscalls::names().enumerate() {
            let Some(number) = syscalls::number(name, architecture) else { continue };
            if syscalls::name(number, architecture) != Some(name) {
                continue; // an old name of a renamed call
            }
            let allowed = answer(&filter, architecture.audit_word(), number, [0; 6]) == Action::ALLOW;
            let shared = architecture == Architecture::Arm && name.contains("sync_file_range");
            assert!(shared || allowed == (place % 2 == 0), "{name} on {architecture:?}");
        }
    }
}
