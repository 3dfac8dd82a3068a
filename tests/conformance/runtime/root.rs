//! config.md, "Root" and "Specification version".

use serde_json::json;

use crate::case::{Case, case, chapter};

#[test]
fn the_root_is_as_the_specification_says() {
    chapter("config.md: specification version, root", cases());
}

fn cases() -> Vec<Case> {
    vec![
        case(
            "a version of another major number is refused",
            "config.md, Specification version: MUST be in SemVer v2.0.0",
        )
        .set("/ociVersion", json!("2.0.0"))
        .refused("/ociVersion"),
        case("a version that is none is refused", "config.md, Specification version")
            .set("/ociVersion", json!("one"))
            .refused("/ociVersion"),
        case("an older minor version is read", "config.md, Specification version")
            .set("/ociVersion", json!("1.0.0"))
            .probe("echo here")
            .prints("here"),
        case("the root is what the container sees at /", "config.md, Root, path")
            .file("rootfs/mark", "ours\n")
            .probe("cat /mark")
            .prints("ours"),
        case("a relative path is taken from the bundle", "config.md, Root, path: relative to the bundle")
            .set("/root/path", json!("./rootfs/../rootfs"))
            .probe("echo here")
            .prints("here"),
        case("a path where nothing is is refused", "config.md, Root, path: MUST exist")
            .set("/root/path", json!("absent"))
            .refused("no such file"),
        case("a root that is read-only refuses writes", "config.md, Root, readonly")
            .set("/root/readonly", json!(true))
            .probe("touch /file 2>/dev/null; echo $?; touch /dev/shm/file; echo $?")
            .prints("1\n0"),
        case("a root that is not read-only takes writes", "config.md, Root, readonly: defaults to false")
            .probe("touch /file; echo $?")
            .prints("0"),
        case(
            "unknown members are ignored",
            "spec.md, Extensibility: MUST NOT generate an error on unknown properties",
        )
        .set("/somethingElse", json!({ "a": [1] }))
        .set("/linux/somethingElse", json!(true))
        .probe("echo here")
        .prints("here"),
        case("an annotation may be anything", "config.md, Annotations: MUST ignore unknown keys")
            .set("/annotations", json!({ "org.example.key": "value", "empty": "" }))
            .probe("echo here")
            .prints("here"),
    ]
}
