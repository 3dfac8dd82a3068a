//! config-linux.md: "Sysctl", "Seccomp", "Personality", "Memory Policy", "IntelRdt".

use serde_json::json;

use crate::case::{Case, case, chapter, sampled};

#[test]
fn what_the_kernel_is_asked_for_is_as_the_specification_says() {
    chapter("config-linux.md: sysctl, seccomp, personality, memory policy", sampled(cases()));
}

fn cases() -> Vec<Case> {
    let mut cases = parameters();
    cases.extend(system_calls());
    cases
}

fn parameters() -> Vec<Case> {
    vec![
        case("a parameter of the network namespace", "config-linux.md, Sysctl")
            .set("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1" }))
            .probe("cat /proc/sys/net/ipv4/ip_forward")
            .prints("1"),
        case("a parameter of the ipc namespace", "config-linux.md, Sysctl")
            .set("/linux/sysctl", json!({ "kernel.shmmni": "123" }))
            .probe("cat /proc/sys/kernel/shmmni")
            .prints("123"),
        case("a parameter with slashes", "sysctl(8), as config-linux.md refers to")
            .set("/linux/sysctl", json!({ "net/ipv4/conf/lo/forwarding": "1" }))
            .probe("cat /proc/sys/net/ipv4/conf/lo/forwarding")
            .prints("1"),
        case("a parameter of the host is refused", "config-linux.md, Sysctl: namespaced parameters")
            .set("/linux/sysctl", json!({ "vm.swappiness": "10" }))
            .refused("/linux/sysctl/vm.swappiness"),
        case("a parameter of a shared namespace is refused", "config-linux.md, Sysctl")
            .set("/linux/namespaces", json!([{ "type": "pid" }, { "type": "uts" }, { "type": "mount" }]))
            .set("/linux/sysctl", json!({ "kernel.shmmni": "123" }))
            .refused("/linux/sysctl/kernel.shmmni"),
        case("a personality of 32 bits", "config-linux.md, Personality, domain")
            .set("/linux/personality", json!({ "domain": "LINUX32" }))
            .probe("uname -m")
            .prints("i686"),
        case("an unknown personality is refused", "config-linux.md, Personality, domain: LINUX or LINUX32")
            .set("/linux/personality", json!({ "domain": "UNIX" }))
            .refused("personality"),
        case("a memory policy binds to nodes", "config-linux.md, Memory Policy")
            .set(
                "/linux/memoryPolicy",
                json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"] }),
            )
            .probe("head -n 1 /proc/self/numa_maps | grep -o 'bind=static:0'")
            .prints("bind=static:0"),
        case("a memory policy without its nodes is refused", "config-linux.md, Memory Policy, nodes")
            .set("/linux/memoryPolicy", json!({ "mode": "MPOL_BIND" }))
            .refused("/linux/memoryPolicy/nodes"),
        case("an unknown memory policy is refused", "config-linux.md, Memory Policy, mode")
            .set("/linux/memoryPolicy", json!({ "mode": "MPOL_MINE" }))
            .refused("memoryPolicy"),
        case(
            "cache allocation is refused where there is none",
            "config-linux.md, IntelRdt: MUST generate an error",
        )
        .set("/linux/intelRdt", json!({ "closID": "cofferdam-test", "l3CacheSchema": "L3:0=f" }))
        .refused("/linux/intelRdt"),
    ]
}

fn system_calls() -> Vec<Case> {
    let profile = |action: &str, errno: Option<u32>, names: &[&str]| {
        let mut rule = json!({ "names": names, "action": action });
        if let Some(errno) = errno {
            rule["errnoRet"] = json!(errno);
        }
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] })
    };
    vec![
        case("a call that gives an error", "config-linux.md, Seccomp, SCMP_ACT_ERRNO")
            .set("/linux/seccomp", profile("SCMP_ACT_ERRNO", None, &["mkdir", "mkdirat"]))
            .probe("mkdir /x 2>&1 | grep -o 'not permitted'")
            .prints("not permitted"),
        case("an error of one's choice", "config-linux.md, Seccomp, errnoRet")
            .set("/linux/seccomp", profile("SCMP_ACT_ERRNO", Some(28), &["mkdir", "mkdirat"]))
            .probe("mkdir /x 2>&1 | grep -o 'No space left'")
            .prints("No space left"),
        case("a call that kills", "config-linux.md, Seccomp, SCMP_ACT_KILL_PROCESS")
            .set("/linux/seccomp", profile("SCMP_ACT_KILL_PROCESS", None, &["mkdir", "mkdirat"]))
            .probe("mkdir /x 2>/dev/null; echo $?")
            .shows(&["159"]),
        case("a call that is logged is allowed", "config-linux.md, Seccomp, SCMP_ACT_LOG")
            .set("/linux/seccomp", profile("SCMP_ACT_LOG", None, &["mkdir", "mkdirat"]))
            .probe("mkdir /x && echo made")
            .prints("made"),
        case("a rule with an argument", "config-linux.md, Seccomp, args")
            .set(
                "/linux/seccomp",
                json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["kill"],
                "action": "SCMP_ACT_ERRNO", "args": [{ "index": 1, "value": 10, "op": "SCMP_CMP_EQ" }] }] }),
            )
            .probe("sleep 9 & kill -USR1 $! 2>/dev/null; echo $?; kill -TERM $!; echo $?")
            .prints("1\n0"),
        case(
            "calls that the profile does not know are ignored",
            "config-linux.md, Seccomp, names: unknown names",
        )
        .set("/linux/seccomp", profile("SCMP_ACT_ERRNO", None, &["call_of_tomorrow", "mkdir", "mkdirat"]))
        .probe("mkdir /x 2>&1 | grep -o 'not permitted'")
        .prints("not permitted"),
        case("the filter holds without no-new-privileges too", "config-linux.md, Seccomp")
            .set("/process/noNewPrivileges", json!(false))
            .set("/linux/seccomp", profile("SCMP_ACT_ERRNO", None, &["mkdir", "mkdirat"]))
            .probe("grep Seccomp: /proc/self/status; mkdir /x 2>&1 | grep -o 'not permitted'")
            .prints("Seccomp:\t2\nnot permitted"),
        case("a filter may refuse getcwd", "config-linux.md, Seccomp: applies to the process")
            .set("/linux/seccomp", profile("SCMP_ACT_ERRNO", None, &["getcwd"]))
            .probe("echo here")
            .shows(&["here"]),
        case("an unknown action is refused", "config-linux.md, Seccomp, action")
            .set("/linux/seccomp", profile("SCMP_ACT_MAYBE", None, &["mkdir"]))
            .refused("seccomp"),
    ]
}
