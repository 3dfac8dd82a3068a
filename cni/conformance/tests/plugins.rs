//! The runner on our own plugins, in which it finds nothing, and on the reference plugins of Debian, in which it finds what
//! is wrong with them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_cni_conformance::{
    Choice, Error, Format, Profile, Report, Severity, Snapshot, Subject, Verdict, run,
};
use cofferdam_tests::pace;

const REFERENCE: &str = "/usr/lib/cni";
/// Each case waits for the kernel most of the time.
const JOBS: usize = 8;
/// Kinds that few kernels have: where one has them they are tested whole.
const RARE: [&str; 4] = ["dummy", "ipvlan", "vlan", "vrf"];

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}

/// Our plugins, installed in a folder as an operator would.
fn ours() -> tempfile::TempDir {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let done = Command::new(program()).arg("install").arg(folder.path()).status().unwrap();
    assert!(done.success());
    folder
}

/// The program, built first where nobody else has.
fn program() -> PathBuf {
    if let Some(folder) = std::env::var_os("COFFERDAM_BIN_DIR") {
        return PathBuf::from(folder).join("cofferdam-cni");
    }
    if let Some(cargo) = std::env::var_os("CARGO") {
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--package", "cofferdam-cni-plugins", "--bins"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(built.unwrap().success(), "cofferdam-cni does not build");
    }
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("cofferdam-cni")
}

fn known(program: impl Into<PathBuf>) -> Subject {
    let subject = Subject::known(program).unwrap();
    Subject { limit: pace::limit(subject.limit), ..subject }
}

fn test(program: &Path, only: &[&str]) -> Option<Report> {
    let only = only.iter().map(|begin| (*begin).to_owned()).collect();
    match run(&known(program), &Choice { only, jobs: JOBS }, |_| ()) {
        Ok(report) => Some(report),
        Err(error @ Error::Kernel { .. }) => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Our plugin of that name fails nothing that it must not.
fn is_conformant(kind: &str) {
    if !is_root() {
        return;
    }
    let ours = ours();
    let program = ours.path().join(kind);
    if !program.exists() {
        println!("skipped: {kind} is not among the built-in plugins");
        return;
    }
    // What malformed calls come to is the skeleton's, the same for all; and figures are for readers.
    let skeleton = ["1.", "13.", "14.", "16."];
    let is_example = ["bridge", "portmap"].contains(&kind);
    // A slow machine gets as far as what is left after DEL with those that every machine tests.
    let last = if RARE.contains(&kind) { 15 } else { pace::rounds(15, 5) };
    let groups: Vec<String> = (1..=last)
        .map(|group| format!("{group}."))
        .filter(|group| is_example || !skeleton.contains(&group.as_str()))
        .collect();
    let Some(report) = test(&program, &groups.iter().map(String::as_str).collect::<Vec<_>>()) else { return };
    for failure in report.failures(Severity::Should) {
        println!("{}: {:?}", failure.case.id, failure.verdict);
    }
    assert!(report.is_conformant(), "{}", report.print(Format::Text));
}

macro_rules! conformant {
    ($(fn $name:ident() $kind:literal)*) => {
        $(
            #[test]
            fn $name() {
                is_conformant($kind);
            }
        )*
    };
}

conformant! {
    fn a4_our_bandwidth_fails_nothing_that_it_must_not() "bandwidth"
    fn a4_our_bridge_fails_nothing_that_it_must_not() "bridge"
    fn a4_our_dummy_fails_nothing_that_it_must_not() "dummy"
    fn a4_our_firewall_fails_nothing_that_it_must_not() "firewall"
    fn a4_our_host_device_fails_nothing_that_it_must_not() "host-device"
    fn a4_our_host_local_fails_nothing_that_it_must_not() "host-local"
    fn a4_our_ipvlan_fails_nothing_that_it_must_not() "ipvlan"
    fn a4_our_loopback_fails_nothing_that_it_must_not() "loopback"
    fn a4_our_macvlan_fails_nothing_that_it_must_not() "macvlan"
    fn a4_our_portmap_fails_nothing_that_it_must_not() "portmap"
    fn a4_our_ptp_fails_nothing_that_it_must_not() "ptp"
    fn a4_our_sbr_fails_nothing_that_it_must_not() "sbr"
    fn a4_our_static_fails_nothing_that_it_must_not() "static"
    fn a4_our_tap_fails_nothing_that_it_must_not() "tap"
    fn a4_our_tuning_fails_nothing_that_it_must_not() "tuning"
    fn a4_our_vlan_fails_nothing_that_it_must_not() "vlan"
    fn a4_our_vrf_fails_nothing_that_it_must_not() "vrf"
}

#[test]
fn a4_every_plugin_of_ours_has_a_profile() {
    let ours = ours();
    let links = std::fs::read_dir(ours.path()).unwrap().map(|entry| entry.unwrap().file_name());
    for kind in links.filter(|name| name != "cofferdam-cni") {
        assert!(Profile::known().contains(&kind.to_str().unwrap()), "{kind:?}");
    }
}

/// The plugin, the case, and words of what is found.
const KNOWN_DEFECTS: &[(&str, &str, &str)] = &[
    // The interface stays behind when the address manager fails.
    ("macvlan", "6.ipam", "link eth0 macvlan"),
    ("bridge", "6.ipam", "link eth0 veth"),
    // The masquerade rules stay behind when the namespace has gone first.
    ("bridge", "5.netns-gone", "masquerade"),
    // Rules are known by address alone: a late DEL takes the new holder's.
    ("firewall", "9.late-del", "after the late DEL"),
    // CHECK of an attachment with IPv4 alone looks for chains of IPv6.
    ("portmap", "7.passes", "CHECK ended with 1"),
    // Codes and checks.
    ("bridge", "6.exhausted", "999"),
    ("bridge", "7.tampered", "masquerade-removed"),
    // DEL that cannot succeed once something is gone.
    ("host-device", "4.twice", "Link not found"),
    ("host-device", "4.netns-gone", "DEL ended with 1"),
    ("host-device", "6.ipam", "link eth0"),
    ("sbr", "4.no-netns", "DEL ended with 1"),
    ("sbr", "4.netns-gone", "DEL ended with 1"),
    // CHECK that looks at nothing.
    ("sbr", "7.tampered", "rules-flushed"),
];

#[test]
fn a4_the_known_defects_of_the_reference_plugins_are_found() {
    if !is_root() {
        return;
    }
    if !Path::new(REFERENCE).join("bridge").exists() || !Path::new("/usr/sbin/iptables").exists() {
        println!("skipped: needs containernetworking-plugins and iptables");
        return;
    }
    for plugin in ["macvlan", "bridge", "firewall", "portmap", "host-device", "sbr"] {
        let defects: Vec<_> = KNOWN_DEFECTS.iter().filter(|(kind, ..)| *kind == plugin).collect();
        let ids: Vec<&str> = defects.iter().map(|(_, id, _)| *id).collect();
        let Some(report) = test(&Path::new(REFERENCE).join(plugin), &ids) else { continue };
        for (_, id, words) in defects {
            let found = report.failures(Severity::Quality).find(|failure| failure.case.id == *id);
            let found = found.unwrap_or_else(|| panic!("{plugin}: {id} is not found"));
            assert!(format!("{:?}", found.verdict).contains(words), "{plugin}: {found:?}");
            assert!(found.replay.iter().any(|call| call.contains("CNI_COMMAND='ADD'")), "{found:?}");
        }
        assert!(!report.is_conformant(), "{plugin}");
    }
}

#[test]
fn a5_a_run_leaves_the_machine_as_it_was() {
    if !is_root() {
        return;
    }
    let ours = ours();
    let folders: Vec<PathBuf> = ["/etc/cni", "/run/cni", "/var/lib/cni"].map(PathBuf::from).to_vec();
    cofferdam_linux::namespace::with_new_netns(|| {
        // Others mount and unmount meanwhile: what would be ours is known by its name.
        let mounts = || {
            let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            table.lines().filter(|line| line.contains("cofferdam-cni-test-")).count()
        };
        let before = Snapshot::take(&folders);
        for plugin in ["bridge", "portmap"] {
            // In its default folder, too.
            let mut subject = known(ours.path().join(plugin));
            if plugin == "bridge" {
                subject.profile.config["ipam"]["dataDir"] = "/var/lib/cni/networks".into();
            }
            let only = ["5.", "6.killed", "8.parallel", "11.stale"].map(str::to_owned).to_vec();
            let report = run(&subject, &Choice { only, jobs: JOBS }, |_| ()).unwrap();
            assert!(report.is_conformant(), "{}", report.print(Format::Text));
        }
        assert_eq!(before.differences(&Snapshot::take(&folders)), Vec::<String>::new());
        assert_eq!(mounts(), 0);
    })
    .unwrap();
}

/// A script in a folder of its own, with a configuration that names it.
fn script(text: &str) -> (tempfile::TempDir, Subject) {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let path = folder.path().join("scripted");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let subject = Subject::new(path, Profile::of_config(r#"{"type":"scripted"}"#, "here").unwrap());
    (folder, subject)
}

fn choose(only: &[&str]) -> Choice {
    Choice { only: only.iter().map(|begin| (*begin).to_owned()).collect(), jobs: JOBS }
}

/// The processes that have this word among their arguments.
fn processes_with(word: &str) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.split('\0').any(|argument| argument == word)).count()
}

#[test]
fn a5_a_plugin_that_hangs_forks_and_raves_fails_and_leaves_no_process() {
    if !is_root() {
        return;
    }
    let far = format!("9{:07}", std::process::id());
    let (_folder, mut subject) = script(&format!(
        r#"[ "$CNI_COMMAND" = VERSION ] && {{ echo '{{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}}'; exit; }}
        setsid sleep {far} &
        while :; do printf 'r\033[31mubbish'; done &
        wait"#
    ));
    subject.limit = std::time::Duration::from_secs(1);
    let report = run(&subject, &choose(&["4.twice", "4.unknown", "14.children"]), |_| ()).unwrap();
    assert_eq!(report.failures(Severity::Must).count(), 3, "{}", report.print(Format::Text));
    let text = report.print(Format::Text) + &report.print(Format::Tap) + &report.print(Format::Junit);
    assert!(text.contains("did not end in time") && !text.contains('\x1b'), "{text}");
    assert_eq!(processes_with(&far), 0);
}

#[test]
fn a5_a_process_that_has_left_its_group_is_found_and_ended() {
    if !is_root() {
        return;
    }
    let far = format!("8{:07}", std::process::id());
    let (_folder, subject) = script(&format!(
        r#"cat >/dev/null
        case $CNI_COMMAND in
        VERSION) echo '{{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}}';;
        ADD) setsid sleep {far} </dev/null >/dev/null 2>&1 & echo '{{"cniVersion":"1.0.0"}}';;
        esac"#
    ));
    let report = run(&subject, &choose(&["14.children", "14.one-value"]), |_| ()).unwrap();
    let [failure] = &report.failures(Severity::Must).collect::<Vec<_>>()[..] else {
        panic!("{}", report.print(Format::Text))
    };
    assert_eq!(failure.case.id, "14.children");
    assert_eq!(processes_with(&far), 0);
}

#[test]
fn a4_a_chained_plugin_is_tested_behind_a_network_of_ones_own() {
    if !is_root() {
        return;
    }
    let network = r#"{"cniVersion":"1.0.0","name":"before","plugins":[
        {"type":"bridge","bridge":"mine0","isDefaultGateway":true,"ipMasq":true,
         "ipam":{"type":"host-local","dataDir":"@DATA@/leases","ranges":[[{"subnet":"10.83.0.0/24"}]]}}]}"#;
    let ours = ours();
    for kind in ["portmap", "firewall", "bandwidth"] {
        let mut subject = known(ours.path().join(kind)).after(network, "here").unwrap();
        subject.plugin_path = vec![ours.path().to_owned()];
        let only = ["2.", "4.netns-gone", "5.", "7.passes", "8.", "9.", "10.", "11.", "15."];
        let report = run(&subject, &choose(&only), |_| ()).unwrap();
        assert!(report.is_conformant(), "{}", report.print(Format::Text));
        let passes_on = report.outcomes.iter().find(|outcome| outcome.case.id == "15.passes-on").unwrap();
        assert!(matches!(passes_on.verdict, Verdict::Passed(_)), "{passes_on:?}");
    }
    let wrong = Subject::known(ours.path().join("portmap")).unwrap();
    let wrong = wrong.after(r#"{"plugins":[]}"#, "mine.conflist");
    assert!(wrong.unwrap_err().to_string().starts_with("mine.conflist is no network"));
}

#[test]
fn a_program_that_is_no_plugin_is_told_apart_from_one_that_fails() {
    if !is_root() {
        return;
    }
    let profile = || Profile::of_config(r#"{"type":"true"}"#, "here").unwrap();
    let refused = run(&Subject::new("/bin/true", profile()), &Choice::default(), |_| ()).unwrap_err();
    assert!(matches!(refused, Error::NoPlugin { .. }), "{refused}");
    let refused = run(&Subject::new("/etc/passwd", profile()), &Choice::default(), |_| ()).unwrap_err();
    assert!(matches!(refused, Error::NoProgram(_)), "{refused}");
    assert!(matches!(Subject::known("/bin/true").unwrap_err(), Error::NoProfile(_)));
    // Without the case that was meant, nothing would be tested and nothing fail.
    let (_folder, subject) = script("exit 0");
    let refused = run(&subject, &choose(&["1.", "1.nonsense"]), |_| ()).unwrap_err();
    assert!(matches!(&refused, Error::NoCase(word) if word == "1.nonsense"), "{refused}");
}
