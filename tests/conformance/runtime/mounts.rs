//! config.md, "Mounts" and "Linux mount options".

use serde_json::json;

use crate::case::{Case, case, chapter, check, same, sampled};

#[test]
fn mounts_are_as_the_specification_says() {
    chapter("config.md: mounts", sampled(cases()));
}

/// The options of the mount at a path, from inside.
macro_rules! options_of {
    ($path:literal) => {
        concat!("awk '$5 == \"", $path, "\" { print $6 }' /proc/self/mountinfo")
    };
}

fn cases() -> Vec<Case> {
    let mut cases = places();
    cases.extend(attributes());
    cases.extend(id_maps());
    cases
}

fn places() -> Vec<Case> {
    vec![
        case("mounts are made in the order of the list", "config.md, Mounts: MUST be in the listed order")
            .mount(json!({ "destination": "/m", "type": "tmpfs", "source": "first" }))
            .mount(json!({ "destination": "/m/below", "type": "tmpfs", "source": "second" }))
            .probe("grep -o ' - tmpfs .* ' /proc/self/mountinfo | grep -oE 'first|second'")
            .prints("first\nsecond"),
        case("cgroup2 is version 2 whatever else the host has", "config.md, Mounts, type")
            .mount(json!({ "destination": "/two", "type": "cgroup2", "source": "cgroup2" }))
            .probe("grep -c ' /two .* - cgroup2 ' /proc/self/mountinfo; ls /two/cgroup.procs")
            .prints("1\n/two/cgroup.procs"),
        case("a destination that is missing is made", "config.md, Mounts, destination")
            .mount(json!({ "destination": "/a/b/c", "type": "tmpfs", "source": "tmpfs" }))
            .probe("touch /a/b/c/file && echo made")
            .prints("made"),
        case(
            "a relative destination is taken from the root",
            "config.md, Mounts, destination: relative to /",
        )
        .mount(json!({ "destination": "rel", "type": "tmpfs", "source": "tmpfs" }))
        .probe("grep -c ' /rel ' /proc/self/mountinfo")
        .prints("1"),
        case("a file is bound on a file that is missing", "config.md, Mounts, type bind")
            .file("data/file", "bound\n")
            .mount(json!({ "destination": "/etc/new/file", "source": "data/file", "options": ["bind"] }))
            .probe("cat /etc/new/file")
            .prints("bound"),
        case(
            "a relative source is taken from the bundle",
            "config.md, Mounts, source: relative to the bundle",
        )
        .file("data/file", "from the bundle\n")
        .mount(json!({ "destination": "/data", "type": "bind", "source": "data", "options": ["rbind"] }))
        .probe("cat /data/file")
        .prints("from the bundle"),
        case("the word bind needs no type", "config.md, Mounts: type is ignored for bind mounts")
            .file("data/file", "x\n")
            .mount(json!({ "destination": "/data", "type": "none", "source": "data", "options": ["bind"] }))
            .probe("cat /data/file")
            .prints("x"),
        case("a source that is missing is refused", "config.md, Mounts: MUST generate an error")
            .mount(json!({ "destination": "/data", "type": "bind", "source": "absent", "options": ["bind"] }))
            .refused("no such file"),
        case("a destination behind a link stays inside", "config.md, Mounts: resolved inside the root")
            .link("rootfs/way", "/../../inside")
            .mount(json!({ "destination": "/way/x", "type": "tmpfs", "source": "tmpfs" }))
            .probe("grep -c ' /inside/x ' /proc/self/mountinfo")
            .prints("1"),
        case(
            "a source in the container's own root shows what is mounted there",
            "config.md, Mounts: the listed order",
        )
        .file("data/file", "bound before\n")
        .mount(json!({ "destination": "/m", "source": "data", "options": ["bind"] }))
        .mount(json!({ "destination": "/again", "source": "rootfs/m", "options": ["rbind"] }))
        .probe("cat /again/file")
        .prints("bound before"),
        case("so it does in a user namespace", "config.md, Mounts: the listed order")
            .folder("rootfs/m")
            .folder("rootfs/again")
            .file("data/file", "bound before\n")
            .push("/linux/namespaces", json!({ "type": "user" }))
            .set("/linux/uidMappings", map())
            .set("/linux/gidMappings", map())
            .mount(json!({ "destination": "/m", "source": "data", "options": ["bind"] }))
            .mount(json!({ "destination": "/again", "source": "rootfs/m", "options": ["rbind"] }))
            .probe("cat /again/file")
            .prints("bound before"),
        case(
            "links in such a source stay inside",
            "config.md, Mounts, source; the image is not to be trusted",
        )
        .file("rootfs/inner/file", "inside\n")
        .link("rootfs/way", "/inner")
        .mount(json!({ "destination": "/again", "source": "rootfs/way", "options": ["bind"] }))
        .probe("cat /again/file")
        .prints("inside"),
        check(
            "a destination may be said as the host sees it",
            "as runc takes it off; config.md leaves it open",
            |bench| {
                let bundle = bench.bundle("grep -c ' /m ' /proc/self/mountinfo", |config| {
                    let at = bench.folder.join("bundle/rootfs/m");
                    config["mounts"].as_array_mut().into_iter().for_each(|mounts| {
                        mounts.push(json!({ "destination": at, "type": "tmpfs", "source": "tmpfs" }));
                    });
                })?;
                same("mounts", bench.runtime.run(&bench.id, bundle.path())?.stdout.trim(), "1")
            },
        ),
        case("data of a file system is handed on", "config.md, Mounts, options")
            .mount(json!({ "destination": "/m", "type": "tmpfs", "source": "tmpfs",
                "options": ["size=64k", "mode=1711", "uid=5"] }))
            .probe("stat -c '%a %u' /m; df -k /m | awk 'END { print $2 }'")
            .prints("1711 5\n64"),
        case(
            "data on a bind mount is no error",
            "config.md, Mounts, options: MAY be ignored for bind mounts",
        )
        .folder("data")
        .mount(json!({ "destination": "/data", "source": "data", "options": ["bind", "mode=755"] }))
        .probe("echo here")
        .prints("here"),
        case("tmpcopyup fills a tmpfs with what it covers", "config.md, Linux mount options, tmpcopyup")
            .file("rootfs/filled/deep/file", "kept\n")
            .link("rootfs/filled/link", "deep/file")
            .mount(json!({ "destination": "/filled", "type": "tmpfs", "source": "tmpfs",
                "options": ["tmpcopyup", "nodev"] }))
            .probe(
                "cat /filled/link; readlink /filled/link; grep -c ' /filled .* tmpfs ' /proc/self/mountinfo",
            )
            .prints("kept\ndeep/file\n1"),
        case("propagation is the mount's own", "config.md, Linux mount options, shared")
            .folder("data")
            .mount(json!({ "destination": "/data", "source": "data", "options": ["rbind", "rshared"] }))
            .probe("grep ' /data ' /proc/self/mountinfo | grep -c shared:")
            .prints("1"),
        case("a private mount is in no group", "config.md, Linux mount options, rprivate")
            .folder("data")
            .mount(json!({ "destination": "/data", "source": "data", "options": ["rbind", "rprivate"] }))
            .probe("grep ' /data ' /proc/self/mountinfo | grep -cE 'shared:|master:|unbindable'")
            .outcome(|_, outcome| crate::case::same("count", outcome.stdout.trim(), "0")),
        case("an unbindable mount is so", "config.md, Linux mount options, unbindable")
            .folder("data")
            .mount(json!({ "destination": "/data", "source": "data", "options": ["bind", "unbindable"] }))
            .probe("grep ' /data ' /proc/self/mountinfo | grep -c unbindable")
            .prints("1"),
    ]
}

fn attributes() -> Vec<Case> {
    let tree = |case: crate::case::Draft, options: serde_json::Value| {
        case.folder("data").mount(json!({ "destination": "/data", "source": "data", "options": options }))
    };
    vec![
        tree(case("ro, nosuid, nodev, noexec", "config.md, Linux mount options"), json!(["bind", "ro", "nosuid", "nodev", "noexec"]))
            .probe(options_of!("/data"))
            .shows(&["ro", "nosuid", "nodev", "noexec"]),
        tree(case("the last word wins", "mount(8), as config.md refers to"), json!(["bind", "ro", "rw"]))
            .probe("touch /data/file; echo $?")
            .prints("0"),
        tree(case("noatime and nodiratime", "config.md, Linux mount options"), json!(["bind", "noatime", "nodiratime"]))
            .probe(options_of!("/data"))
            .shows(&["noatime", "nodiratime"]),
        tree(case("nosymfollow", "config.md, Linux mount options, nosymfollow"), json!(["bind", "nosymfollow"]))
            .probe("ln -s /etc/passwd /data/link; cat /data/link 2>/dev/null; echo $?")
            .prints("1"),
        case("rro goes for the whole tree", "config.md, Linux mount options, rro")
            .folder("data/below")
            .mount(json!({ "destination": "/t", "type": "tmpfs", "source": "tmpfs" }))
            .mount(json!({ "destination": "/again", "type": "bind", "source": "/dev", "options": ["rbind", "rro"] }))
            .probe("touch /again/x 2>/dev/null; echo $?; touch /again/shm/x 2>/dev/null; echo $?")
            .prints("1\n1"),
        case("ro of a tree leaves what is below", "config.md, Linux mount options, ro: only the top")
            .mount(json!({ "destination": "/again", "type": "bind", "source": "/dev", "options": ["rbind", "ro"] }))
            .probe("touch /again/x 2>/dev/null; echo $?; file=$(mktemp -p /again/shm) && rm $file; echo $?")
            .prints("1\n0"),
        case("rnoexec and rnosuid go for the whole tree", "config.md, Linux mount options, rnoexec")
            .mount(json!({ "destination": "/again", "type": "bind", "source": "/dev",
                "options": ["rbind", "rnoexec", "rnosuid"] }))
            .probe("awk '$5 ~ \"^/again\" && ($6 !~ /noexec/ || $6 !~ /nosuid/)' /proc/self/mountinfo | wc -l")
            .prints("0"),
        case("words for trees count for a new file system", "config.md, Linux mount options, rro")
            .mount(json!({ "destination": "/m", "type": "tmpfs", "source": "tmpfs", "options": ["rro", "rnoexec"] }))
            .probe(options_of!("/m"))
            .shows(&["ro", "noexec"]),
    ]
}

fn map() -> serde_json::Value {
    json!([{ "containerID": 0, "hostID": 70000, "size": 1000 }])
}

fn id_maps() -> Vec<Case> {
    vec![
        case("a mount with id maps shows other owners", "config.md, Mounts, uidMappings and gidMappings")
            .file("data/file", "x")
            .mount(json!({ "destination": "/data", "type": "bind", "source": "data", "options": ["bind", "idmap"],
                "uidMappings": map(), "gidMappings": map() }))
            .probe("stat -c %u:%g /data/file")
            .prints("70000:70000"),
        case("ridmap goes for the whole tree", "config.md, Linux mount options, ridmap")
            .file("data/file", "x")
            .mount(json!({ "destination": "/data", "type": "bind", "source": "data", "options": ["rbind", "ridmap"],
                "uidMappings": map(), "gidMappings": map() }))
            .probe("stat -c %u:%g /data/file")
            .prints("70000:70000"),
        case("idmap without maps takes those of the container", "config.md, Linux mount options, idmap")
            .folder("rootfs/data")
            .file("data/file", "x")
            .push("/linux/namespaces", json!({ "type": "user" }))
            .set("/linux/uidMappings", map())
            .set("/linux/gidMappings", map())
            .mount(json!({ "destination": "/data", "type": "bind", "source": "data", "options": ["bind", "idmap"] }))
            .probe("stat -c %u:%g /data/file")
            .prints("0:0"),
        case("a source in the container's own root is mapped too", "config.md, Linux mount options, idmap")
            .file("data/file", "x")
            .mount(json!({ "destination": "/m", "source": "data", "options": ["bind"] }))
            .mount(json!({ "destination": "/again", "source": "rootfs/m", "options": ["bind", "idmap"],
                "uidMappings": map(), "gidMappings": map() }))
            .probe("stat -c %u:%g /again/file")
            .prints("70000:70000"),
        case("but not in a user namespace", "config.md, Linux mount options, idmap: MAY be refused where it cannot be")
            .folder("rootfs/m")
            .folder("rootfs/again")
            .folder("data")
            .push("/linux/namespaces", json!({ "type": "user" }))
            .set("/linux/uidMappings", map())
            .set("/linux/gidMappings", map())
            .mount(json!({ "destination": "/m", "source": "data", "options": ["bind"] }))
            .mount(json!({ "destination": "/again", "source": "rootfs/m", "options": ["bind", "idmap"] }))
            .outcome(|bench, outcome| {
                let named = outcome.stderr.contains("/mounts/7/uidMappings");
                anyhow::ensure!(!bench.runtime.is_ours() || outcome.status != Some(0) && named, "{outcome:?}");
                Ok(())
            }),
        case("one map without the other is refused", "config.md, Mounts, uidMappings: MUST be specified with gidMappings")
            .folder("data")
            .mount(json!({ "destination": "/data", "type": "bind", "source": "data", "options": ["bind"],
                "uidMappings": map() }))
            .refused("uidMappings"),
        case("idmap without any map is refused", "config.md, Linux mount options, idmap")
            .folder("data")
            .mount(json!({ "destination": "/data", "type": "bind", "source": "data", "options": ["bind", "idmap"] }))
            .refused("/mounts/6/options"),
    ]
}
