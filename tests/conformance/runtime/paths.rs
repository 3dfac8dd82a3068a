//! config-linux.md: "Rootfs Mount Propagation", "Masked Paths", "Readonly Paths".

use serde_json::json;

use crate::case::{Case, case, chapter};

#[test]
fn propagation_and_paths_are_as_the_specification_says() {
    chapter("config-linux.md: rootfs propagation, masked and read-only paths", cases());
}

fn cases() -> Vec<Case> {
    let root = "awk '$5 == \"/\" { print $7 }' /proc/self/mountinfo | cut -d: -f1";
    let propagation = |name, word: &str| {
        case(name, "config-linux.md, Rootfs Mount Propagation")
            .set("/linux/rootfsPropagation", json!(word))
            .probe(root)
    };
    vec![
        propagation("a private root", "private").prints("-"),
        propagation("a private root, of all mounts", "rprivate").prints("-"),
        propagation("a slave root", "slave").shows(&[""]),
        propagation("a slave root, of all mounts", "rslave").shows(&[""]),
        propagation("a shared root", "shared").prints("shared"),
        propagation("a shared root, of all mounts", "rshared").prints("shared"),
        propagation("an unbindable root", "unbindable").prints("unbindable"),
        propagation("an unbindable root, of all mounts", "runbindable").prints("unbindable"),
        propagation("an unknown propagation is refused", "public").refused("/linux/rootfsPropagation"),
        case("a masked file is empty and a masked folder too", "config-linux.md, Masked Paths")
            .file("rootfs/secret/file", "x")
            .file("rootfs/other", "x")
            .set("/linux/maskedPaths", json!(["/secret", "/other", "/absent"]))
            .probe("ls -A /secret | wc -l; wc -c < /other; touch /secret/x 2>/dev/null; echo $?; ls / | grep -c absent")
            .outcome(|_, outcome| crate::case::same("printed", outcome.stdout.as_str(), "0\n0\n1\n0\n")),
        case("a read-only path refuses writes", "config-linux.md, Readonly Paths")
            .file("rootfs/fixed/file", "x\n")
            .set("/linux/readonlyPaths", json!(["/fixed", "/absent"]))
            .probe("cat /fixed/file; touch /fixed/new 2>/dev/null; echo $?; echo y > /fixed/file; echo $?")
            .prints("x\n1\n1"),
        case("a read-only path may be the root", "config-linux.md, Readonly Paths")
            .set("/linux/readonlyPaths", json!(["/"]))
            .probe("touch /new 2>/dev/null; echo $?; touch /dev/new && echo $?")
            .prints("1\n0"),
        case("the root is not masked, which would mask nothing", "config-linux.md, Masked Paths")
            .set("/linux/maskedPaths", json!(["/bin/.."]))
            .refused("/linux/maskedPaths/0"),
        case("the masks of a default configuration", "config-linux.md, Masked Paths and Readonly Paths")
            .probe("head -c 1 /proc/kcore | wc -c; wc -c < /proc/keys; echo 1 > /proc/sysrq-trigger; echo $?")
            .prints("0\n0\n1"),
    ]
}
