//! `cofferdam cni test`, as authors of plugins call it.

use std::path::Path;
use std::process::Command;

use cofferdam_tests::world::{World, run};
use cofferdam_tests::{needs, programs};

use crate::install;

#[test]
fn a4_the_command_ends_with_1_for_the_reference_macvlan_and_with_0_for_ours() {
    if !needs::root() || !needs::programs(&["ip", "tc", "nft"]) {
        return;
    }
    let world = World::enter().unwrap();
    let ours = install(&world.files().join("bin"));
    let test = |plugin: &Path, format: &str| {
        let only = ["--only", "1.", "--only", "4.twice", "--only", "6.ipam", "--only", "15.first"];
        let mut command = Command::new(programs::path("cofferdam"));
        let output = run(command.args(["cni", "test", "--format", format]).args(only).arg(plugin)).unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let watch = world.watch();
    let (status, text) = test(&ours.join("bridge"), "tap");
    assert_eq!(status, Some(0), "{text}");
    assert!(text.starts_with("TAP version 13\n1..7\nok 1 - 1.answer "), "{text}");
    assert!(text.contains("# SKIP it is no chained plugin"), "{text}");
    let theirs = Path::new("/usr/lib/cni/macvlan");
    if needs::met(theirs.exists(), "needs containernetworking-plugins") {
        let (status, text) = test(theirs, "junit");
        assert_eq!(status, Some(1), "{text}");
        assert!(text.contains("<failure message=") && text.contains("link eth0 macvlan"), "{text}");
        let (status, text) = test(theirs, "text");
        assert_eq!(status, Some(1), "{text}");
        assert!(text.contains("FAIL 6.ipam") && text.contains("CNI_COMMAND='ADD'"), "{text}");
    }
    watch.end();
}
