//! What people do wrong with images most often, and what they are told: what was asked, what is wrong with it, where, and what
//! to do.

use std::process::Command;

use cofferdam_executor::ImageBuilder;
use cofferdam_tests::needs;
use cofferdam_tests::registry::{Access, Options, Registry, Writes};
use cofferdam_tests::world::World;

use crate::host::{Answer, call, program, settle, settled_world, succeed};
use crate::registries::layout;

/// The words after `cofferdam`, and all that is said; `…` is any text.
type Mistake<'a> = (&'a [&'a str], &'a str);

#[test]
fn a88_the_usual_mistakes_are_told_with_what_to_do() {
    if !needs::programs(&["docker-registry", "mount", "umount"]) {
        return;
    }
    let Some(world) = settled_world() else { return };
    let at = |name: &str| world.files().join(name).to_str().unwrap().to_owned();
    let folder = |name: &str| {
        std::fs::create_dir(at(name)).unwrap();
        at(name)
    };
    layout(folder("layout").as_ref());
    let storage = folder("storage");
    let [open, closed, private] = [
        Options::default(),
        Options { writes: Writes::Refused, ..Options::default() },
        Options { access: Access::Password, ..Options::default() },
    ]
    // All three serve the same.
    .map(|options| Registry::start(storage.as_ref(), options).unwrap());
    let addresses = [&open, &closed, &private].map(Registry::address);
    let [open, closed, private] = [&addresses[0], &addresses[1], &addresses[2]].map(String::as_str);
    let watch = world.watch();
    succeed(&world, &["push", "--layout", &at("layout"), "v1", &format!("{open}/x:v1")]);
    std::fs::write(at("text"), "no archive\n").unwrap();
    let name = cofferdam_executor::ImageRef::parse("mine:1").unwrap();
    let image = ImageBuilder::new().name(&name).file("a", 0o644, vec![7; 3 << 20]).build().unwrap();
    std::fs::write(at("mine.tar"), image).unwrap();
    let mine = succeed(&world, &["load", &at("mine.tar")]);
    let id = mine.split(' ').next().unwrap().to_owned();
    succeed(&world, &["tag", "mine:1", "also:2"]);
    let wrong = format!(r#"{{"auths":{{"{private}":{{"auth":"d3Jvbmc6d3Jvbmc="}}}}}}"#);
    std::fs::write(at("auth"), wrong).unwrap();
    std::fs::create_dir(at("full")).unwrap();
    std::fs::write(at("full/file"), "").unwrap();
    std::fs::create_dir(at("small")).unwrap();
    let mount = |program: &str, words: &[&str]| {
        assert!(Command::new(program).args(words).status().unwrap().success())
    };
    mount("mount", &["-t", "tmpfs", "-o", "size=2m,mode=700", "small", &at("small")]);
    let nothing = format!("{open}/x@sha256:{:064}", 1);
    let of = |address: &str, rest: &str| format!("{address}/{rest}");

    let mistakes: &[Mistake<'_>] = &[
        // Names.
        (&["pull", "a b"], "invalid image reference \"a b\": …"),
        (
            &["pull", &"0".repeat(64)],
            "invalid image reference \"0…0\": 64 hexadecimal digits name an image id, not a repository",
        ),
        (&["tag", "mine:1", "Mine"], "invalid image reference \"Mine\": …"),
        (&["rmi", "nothing"], "no such image: nothing; `cofferdam image ls` lists those that there are"),
        (
            &["image", "inspect", "nothing"],
            "no such image: nothing; `cofferdam image ls` lists those that there are",
        ),
        (
            &["run", "--rm", "--pull", "never", "nothing", "true"],
            "no such image: nothing:latest; `cofferdam image ls` lists those that there are",
        ),
        (&["push", "nothing"], "no such image: nothing; `cofferdam image ls` lists those that there are"),
        // Registries.
        (&["pull", &of(open, "y")], "unknown image: OPEN has no repository y; check how it is spelled"),
        (&["pull", &of(open, "x:v2")], "unknown tag: OPEN/x has no v2; it has v1"),
        (&["pull", &nothing], "unknown tag: OPEN/x has no sha256:0…1; it has v1"),
        (
            &["pull", "127.0.0.1:1/x"],
            "cannot connect to 127.0.0.1:1: Connection refused (os error 111); check the registry's address and whether it runs",
        ),
        (
            &["pull", &of(private, "x:v1")],
            "unauthorised: PRIVATE refuses x: it asks for a password, and no credential was found (log in first); credentials come from --authfile or the usual files of podman and docker",
        ),
        (
            &["pull", "--authfile", &at("auth"), &of(private, "x:v1")],
            "unauthorised: PRIVATE refuses x: …; credentials come from --authfile or the usual files of podman and docker",
        ),
        (
            &["pull", "--authfile", &at("nothing"), &of(private, "x:v1")],
            "cannot read the credentials FILES/nothing: No such file or directory (os error 2)",
        ),
        (&["push", "mine:1", &of(closed, "mine:1")], "denied: CLOSED forbids mine: …"),
        (
            &["pull", "--platform", "linux/s390x", &of(open, "x:v1")],
            "wrong platform: OPEN/x:v1 is for linux/…, not for linux/s390x",
        ),
        (&["pull", "--platform", "s390x", &of(open, "x:v1")], "…s390x…"),
        // Archives.
        (
            &["load", &at("text")],
            "image FILES/text: invalid archive: it is no tar archive, compressed or not",
        ),
        (&["load", &at("nothing")], "cannot open FILES/nothing: No such file or directory (os error 2)"),
        (
            &["import", &at("full")],
            "image FILES/full: invalid archive: it is neither an OCI image layout (which has oci-layout) nor what docker save writes (which has manifest.json)",
        ),
        (&["save", "-o", &at("full"), "--format", "oci-dir", "mine:1"], "…FILES/full…not empty…"),
        // What is there.
        (&["rmi", &id], "image sha256:… is in use by mine:1, also:2"),
        (
            &[&at("fresh"), "--limit", "entries=0", "import", &at("mine.tar")],
            "image FILES/mine.tar: layer sha256:…: the layer is refused: the number of entries exceeds the limit of 0; if the image is trusted, raise it with --limit entries=NUMBER",
        ),
        (
            &[&at("small"), "import", &at("mine.tar")],
            "…FILES/small/…No space left on device (os error 28); `cofferdam image prune --all` makes room",
        ),
    ];
    let mut failures = Vec::new();
    for (words, expected) in mistakes {
        let answer = match words {
            // In another store.
            [root, rest @ ..] if root.starts_with('/') => elsewhere(&world, root, rest),
            words => call(&world, words),
        };
        let said = answer
            .stderr
            .lines()
            .filter_map(|line| line.strip_prefix("cofferdam: "))
            .collect::<Vec<_>>()
            .join("\n");
        let said = said.replace(open, "OPEN").replace(closed, "CLOSED");
        let said = said.replace(private, "PRIVATE").replace(world.files().to_str().unwrap(), "FILES");
        if answer.code != Some(125) || !is_like(&said, expected) {
            failures.push(format!("{words:?} ended with {:?}:\n  {said}\n  {expected}", answer.code));
        }
    }
    mount("umount", &[&at("small")]);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // The other way round: with the limit raised it comes in.
    let raised = elsewhere(&world, &at("fresh"), &["--limit", "entries=1k", "import", &at("mine.tar")]);
    assert_eq!(raised.code, Some(0), "{raised:?}");
    succeed(&world, &["rmi", "-f", &id]);
    settle(&watch);
}

/// Runs the program with a store of its own.
fn elsewhere(world: &World, root: &str, words: &[&str]) -> Answer {
    let mut command = Command::new(program());
    command.arg("--state").arg(world.state()).args(["--root", root]).args(words);
    Answer::from(command.output().unwrap())
}

/// Whether a text is the pattern, in which `…` stands for any.
fn is_like(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}
