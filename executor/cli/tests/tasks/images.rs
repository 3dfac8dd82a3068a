//! The verbs of `cofferdam image`, and that what they print for programs is what docs/images.md says.

use std::os::unix::fs::FileExt;
use std::path::Path;

use cofferdam_executor::{Digest, ImageBuilder, ImageRef};
use cofferdam_tests::world::World;
use serde_json::Value;

use crate::host::{call, cofferdam, settle, settled_world, succeed};

fn archive(world: &World, file: &str, contents: &str) -> String {
    let name = ImageRef::parse("docker.io/library/mine:1").unwrap();
    let bytes =
        ImageBuilder::new().name(&name).file("etc/data", 0o644, contents).label("k", "v").build().unwrap();
    let path = world.files().join(file);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

fn json(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn stored(world: &World) -> std::path::PathBuf {
    let layers = world.root().join("images/layers");
    let mut found =
        std::fs::read_dir(layers).unwrap().map(|layer| layer.unwrap().path().join("diff/etc/data"));
    found.find(|path| path.exists()).unwrap()
}

fn flip(path: &Path) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 0).unwrap();
}

/// An OCI layout with an artifact named `localhost/chart:1`.
fn artifact(folder: &Path) {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |kind: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        serde_json::json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()})
    };
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/x.chart",
        "config": put("application/vnd.oci.empty.v1+json", b"{}"),
        "layers": [put("application/x.chart.content", b"a chart")],
    });
    let mut entry = put("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
    entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "localhost/chart:1"});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
    std::fs::write(folder.join("index.json"), index.to_string()).unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[test]
fn a21_an_artifact_is_listed_and_told_of_and_run_refuses_it_by_name() {
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    let layout = world.files().join("layout");
    artifact(&layout);
    succeed(&world, &["load", layout.to_str().unwrap()]);
    let listed = succeed(&world, &["images", "localhost/chart"]);
    assert!(listed.contains("localhost/chart:1") && listed.contains("artifact"), "{listed}");
    let inspected: Value =
        serde_json::from_str(&succeed(&world, &["image", "inspect", "localhost/chart:1"])).unwrap();
    assert_eq!(inspected[0]["artifact"], "application/x.chart");
    assert_eq!(inspected[0]["configuration"], Value::Null);
    assert_eq!(inspected[0]["blobs"][0]["size"], 7);
    for words in [
        &["run", "--rm", "localhost/chart:1", "true"][..],
        &["run", "-d", "--pull", "never", "localhost/chart:1"],
        &["image", "history", "localhost/chart:1"],
        &["image", "diff", "localhost/chart:1"],
    ] {
        let answer = call(&world, words);
        assert_eq!(answer.code, Some(125), "{words:?}: {answer:?}");
        for part in ["not a runnable image", "localhost/chart:1", "application/x.chart"] {
            assert!(answer.stderr.contains(part), "{words:?}: {answer:?}");
        }
    }
    assert_eq!(succeed(&world, &["ps", "-aq"]), "");
    succeed(&world, &["rmi", "localhost/chart:1"]);
    settle(&watch);
}

#[test]
fn a89_the_embedded_image_is_told_of_tagged_and_removed_by_its_short_name() {
    let Some(world) = settled_world() else { return };
    succeed(&world, &["rmi", "demo"]);
    let watch = world.watch();
    for words in
        [&["image", "inspect", "demo"][..], &["image", "rm", "demo"], &["push", "demo", "127.0.0.1:1/x"]]
    {
        let answer = call(&world, words);
        assert_eq!(answer.code, Some(125), "{words:?}: {answer:?}");
        assert!(answer.stderr.contains("part of this program"), "{words:?}: {answer:?}");
    }
    assert_eq!(call(&world, &["image", "exists", "demo"]).code, Some(1));
    let digest = succeed(&world, &["pull", "demo"]);
    for words in [&["image", "inspect", "demo"][..], &["inspect", "demo"]] {
        let inspected: Value = serde_json::from_str(&succeed(&world, words)).unwrap();
        assert_eq!(inspected[0]["digest"], digest.trim());
    }
    succeed(&world, &["image", "exists", "demo"]);
    succeed(&world, &["image", "history", "demo"]);
    succeed(&world, &["image", "tag", "demo", "localhost/kept:1"]);
    assert!(succeed(&world, &["image", "rm", "demo"]).contains("Untagged: cofferdam.invalid/demo"));
    assert!(succeed(&world, &["rmi", "localhost/kept:1"]).contains(&format!("Deleted: {}", digest.trim())));
    settle(&watch);
}

#[test]
fn a89_a90_images_are_taken_in_named_told_of_written_out_verified_and_pruned() {
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    let (first, second) = (archive(&world, "first.tar", "one"), archive(&world, "second.tar", "two"));

    // Names count when they are asked for; one that moves is told of.
    let id = succeed(&world, &["import", &first]).trim().to_owned();
    assert!(id.starts_with("sha256:") && !id.contains(' '), "{id}");
    let listed = json(&succeed(&world, &["image", "ls", "--format", "json"]));
    let listed = listed.into_iter().find(|image| image["id"] == id.as_str()).unwrap();
    assert_eq!(listed["names"], serde_json::json!([]));
    let summary = ["artifact", "created", "digest", "id", "names", "platform", "size_bytes", "stored_at"];
    assert_eq!(keys(&listed), summary);
    succeed(&world, &["load", "-i", &first]);
    let moved = call(&world, &["image", "load", "-i", &second]);
    assert!(moved.code == Some(0) && moved.stderr.contains("mine:1 was the name of image"), "{moved:?}");
    succeed(&world, &["image", "tag", &id, "localhost/other:2", "third"]);

    let inspected: Value =
        serde_json::from_str(&succeed(&world, &["image", "inspect", "third", "mine:1"])).unwrap();
    assert_eq!(inspected[0]["id"], id.as_str());
    assert_eq!(inspected[0]["configuration"]["config"]["Labels"]["k"], "v");
    let mut all = [&summary[..], &["blobs", "configuration", "layers"]].concat();
    all.sort_unstable();
    assert_eq!(keys(&inspected[0]), all);
    assert_eq!(keys(&inspected[0]["layers"][0]), ["blob", "blob_bytes", "diff_id", "unpacked_bytes"]);
    let history = json(&succeed(&world, &["image", "history", "--format", "json", "third"]));
    assert_eq!(keys(&history[0]), ["comment", "created", "created_by", "diff_id", "size_bytes"]);
    let changes = json(&succeed(&world, &["image", "diff", "--format", "json", "mine:1", "third"]));
    assert_eq!(changes, [serde_json::json!({"path": "/etc/data", "change": "changed", "size": 3})]);
    assert_eq!(succeed(&world, &["image", "diff", "third"]), "A /\nA /etc\nA /etc/data");
    let usage = json(&succeed(&world, &["image", "du", "--format", "json"]));
    let usage_keys = ["images", "images_bytes", "loose_bytes", "reclaimable_bytes", "snapshots"];
    assert_eq!(keys(&usage[0]), usage_keys);
    let image_keys = ["bytes", "digest", "names", "own_bytes", "snapshots", "used_at"];
    assert_eq!(keys(&usage[0]["images"][0]), image_keys);

    // Out and in again: the same image.
    for format in ["oci-archive", "docker-archive", "oci-dir"] {
        let out = world.files().join(format).to_str().unwrap().to_owned();
        succeed(&world, &["image", "export", "--format", format, "-o", &out, "third", "mine:1"]);
        let again = succeed(&world, &["image", "load", &out]);
        assert_eq!(again.lines().count(), 2, "{again}");
        assert!(again.contains(&id), "{again}");
    }

    // Damage is found, told, and healed by the same archive.
    let verify = |world: &World| call(world, &["image", "verify", "--format", "json"]);
    let sound = verify(&world);
    assert_eq!(
        (sound.code, keys(&json(&sound.stdout)[0])),
        (Some(0), vec!["blobs", "bytes", "findings", "layers"])
    );
    flip(&stored(&world));
    let found = verify(&world);
    assert_eq!(found.code, Some(1));
    let finding = &json(&found.stdout)[0]["findings"][0];
    assert_eq!(keys(finding), ["images", "path", "reason", "verdict"]);
    assert_eq!(finding["verdict"], "discarded");
    let told = call(&world, &["image", "verify"]);
    assert!(told.code == Some(1) && told.stdout.contains("pull or import its images again"), "{told:?}");
    succeed(&world, &["image", "load", &first, "--replace"]);
    succeed(&world, &["image", "load", &second, "--replace"]);
    assert_eq!(verify(&world).code, Some(0));

    // The option reaches the store by flag and by variable alike.
    let blobs = || std::fs::read_dir(world.root().join("images/blobs/sha256")).unwrap().count();
    let before = blobs();
    let kept = archive(&world, "kept.tar", "three");
    succeed(&world, &["--keep-blobs", "always", "--durability", "sync", "import", &kept]);
    assert_eq!(blobs(), before + 3, "a manifest, a configuration and the layer");
    let config = world.files().join("config.toml");
    std::fs::write(&config, "[store]\nkeep-blobs = \"always\"\ndurability = \"none\"\n").unwrap();
    let config = config.to_str().unwrap().to_owned();
    let by_file = archive(&world, "file.tar", "four");
    succeed(&world, &["--config", &config, "import", &by_file]);
    assert_eq!(blobs(), before + 6);
    let over_file = archive(&world, "over.tar", "five");
    succeed(&world, &["--config", &config, "--keep-blobs", "never", "import", &over_file]);
    assert_eq!(blobs(), before + 8, "an option counts for more than the file");

    let told = json(&succeed(&world, &["image", "prune", "--dry-run", "--all", "--format", "json"]));
    assert_eq!(keys(&told[0]), ["bytes", "collected", "images", "untagged"]);
    succeed(&world, &["image", "prune"]);
    let left = json(&succeed(&world, &["images", "--format", "json"]));
    assert!(left.iter().all(|image| !image["names"].as_array().unwrap().is_empty()), "{left:?}");
    for image in left.iter().filter(|image| !image["names"][0].as_str().unwrap().contains("demo")) {
        succeed(&world, &["image", "rm", "--force", image["id"].as_str().unwrap()]);
    }
    settle(&watch);
}

#[test]
fn a88_refusals_say_what_was_refused_why_and_what_to_do() {
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    let first = archive(&world, "first.tar", "one");
    let directory = world.files().join("full");
    std::fs::create_dir_all(directory.join("something")).unwrap();
    let directory = directory.to_str().unwrap().to_owned();
    succeed(&world, &["load", &first]);
    flip(&stored(&world));
    for (words, expected) in [
        (&["image", "history", "nosuch"][..], &["no such image: nosuch", "`cofferdam image ls`"][..]),
        (&["image", "export", "-o", &directory, "--format", "oci-dir", "mine:1"], &[&directory, "not empty"]),
        (&["image", "export", "-o", "/dev/null", "mine:1"], &["mine:1", "layer sha256:", "wrong DiffID"]),
        (&["image", "tag", "mine:1", "UPPER:/"], &["UPPER:/"]),
        (&["image", "prune", "--idle", "soon"], &["soon"]),
        (&["image", "load", "/etc/passwd"], &["/etc/passwd", "archive"]),
    ] {
        let refused = call(&world, words);
        assert_eq!(refused.code, Some(125), "{words:?}: {refused:?}");
        for word in expected {
            assert!(refused.stderr.contains(word), "{words:?} lacks {word}: {refused:?}");
        }
    }
    // What is known to be damaged is not run, and the message says how it is healed.
    assert_eq!(call(&world, &["image", "verify"]).code, Some(1));
    let refused = call(&world, &["run", "--rm", "--pull", "never", "mine:1", "true"]);
    for word in ["mine:1", "incomplete", "layer sha256:", "pull or import it again"] {
        assert!(refused.stderr.contains(word), "lacks {word}: {refused:?}");
    }
    succeed(&world, &["rmi", "-f", "mine:1"]);
    settle(&watch);
}

#[test]
fn a64_a_command_that_removes_does_not_wait_for_the_disk() {
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    for remove in [&["rmi", "mine:1"][..], &["image", "prune", "--all"]] {
        succeed(&world, &["load", &archive(&world, "large.tar", "contents")]);
        // Nobody can delete while this is held.
        let store = world.root().join("images");
        let lock = std::fs::File::open(store.join("trash")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let output = cofferdam(&world, remove).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let trash = || std::fs::read_dir(store.join("trash")).unwrap().count();
        assert!(trash() > 0, "{remove:?}");
        let listed = succeed(&world, &["images", "--format", "{{.repository}}", "mine"]);
        assert_eq!(listed, "", "it is gone for everybody");
        // The process that it was left to goes on by itself.
        drop(lock);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while trash() > 0 {
            assert!(std::time::Instant::now() < deadline, "{remove:?}: nobody deletes");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    succeed(&world, &["run", "--rm", "demo", "true"]);
    settle(&watch);
}

#[test]
fn a89_listings_are_filtered_and_filled_into_templates() {
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    let id = succeed(&world, &["load", &archive(&world, "first.tar", "one")]);
    let id = id.split(' ').next().unwrap();
    succeed(&world, &["tag", "mine:1", "localhost/other:2"]);
    let digest = succeed(&world, &["image", "inspect", "--format", "{{.Digest}}", "mine:1"]);
    let both = "docker.io/library/mine 1\nlocalhost/other 2";
    let mine = "docker.io/library/mine 1";
    let template = "{{.Repository}} {{.Tag}}";
    for (words, expected) in [
        (&["--filter", "label=k"][..], both),
        (&["--filter", "label=k=v", "mine"], mine),
        (&["--filter", "label=k=w"], ""),
        (&["--filter", "reference=*/other:?"], "localhost/other 2"),
        (&["--filter", "dangling=true"], ""),
        (&["--filter", "dangling=false", "--filter", "reference=library/mine"], mine),
        (&["--filter", "reference=mine", "--filter", "reference=*/other"], both),
        (&["mine:2"], ""),
    ] {
        let words = [&["images", "--format", template], words].concat();
        let mut lines: Vec<String> = succeed(&world, &words).lines().map(str::to_owned).collect();
        lines.sort();
        assert_eq!(lines.join("\n"), expected, "{words:?}");
    }
    assert_eq!(succeed(&world, &["images", "-q", "--no-trunc", "mine"]), id);
    let listed = succeed(&world, &["images", "--digests", "--noheading", "mine:1"]);
    assert!(listed.contains(&digest) && listed.lines().count() == 1, "{listed}");
    let labels = "{{json .Config.Config.Labels}} {{.config.config.labels.k}} {{.Config.Labels.k}} {{.Os}}";
    assert_eq!(succeed(&world, &["image", "inspect", "-f", labels, "mine:1"]), "{\"k\":\"v\"} v v linux");
    let wrong = call(&world, &["images", "--format", "{{.nosuch}}"]);
    assert!(
        wrong.code == Some(125) && wrong.stderr.contains("there is no field nosuch; there are"),
        "{wrong:?}"
    );
    assert_eq!(call(&world, &["image", "exists", "mine:1"]).code, Some(0));
    assert_eq!(call(&world, &["image", "exists", "nothing"]).code, Some(1));
    succeed(&world, &["rmi", "--force", id]);
    settle(&watch);
}

/// A root file system with what builders and unpackers get wrong: file capabilities, hard links, holes, odd modes.
fn awkward_rootfs(world: &World) -> std::path::PathBuf {
    let rootfs = world.files().join("rootfs");
    for folder in ["bin", "etc", "tmp", "var/lib"] {
        std::fs::create_dir_all(rootfs.join(folder)).unwrap();
    }
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    std::fs::hard_link(rootfs.join("bin/busybox"), rootfs.join("bin/sh")).unwrap();
    std::fs::copy("/bin/busybox", rootfs.join("bin/capable")).unwrap();
    set_capability(&rootfs.join("bin/capable"));
    let sparse = std::fs::File::create(rootfs.join("var/lib/sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"end", (64 << 20) - 3).unwrap();
    std::fs::set_permissions(rootfs.join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))
        .unwrap();
    rootfs
}

/// `cap_net_raw=ep`, as `setcap` writes it: revision 2, effective.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn set_capability(file: &Path) {
    rustix::fs::setxattr(file, "security.capability", &CAPABILITY, rustix::fs::XattrFlags::empty()).unwrap();
}

/// Runs an image and checks that everything came through.
fn check_awkward(world: &World, image: &str, builder: &str) {
    let script = "stat -c %h /bin/busybox; stat -c %s /var/lib/sparse; tail -c 3 /var/lib/sparse; \
        test $(stat -c %b /var/lib/sparse) -lt 1000 && echo; stat -c %a /tmp";
    let script = script.replace("stat ", "busybox stat ").replace("tail ", "busybox tail ");
    let words = ["run", "--rm", "--network", "none", image, "/bin/sh", "-c", &script];
    assert_eq!(succeed(world, &words), "2\n67108864\nend\n1777", "{builder}");
    let layers = std::fs::read_dir(world.root().join("images/layers")).unwrap();
    let files = layers.map(|layer| layer.unwrap().path().join("diff/bin/capable"));
    let mut value = [0; 64];
    let length = files
        .filter(|path| path.exists())
        .map(|path| rustix::fs::getxattr(&path, "security.capability", &mut value[..]).unwrap_or(0))
        .max();
    assert_eq!(length, Some(CAPABILITY.len()), "{builder}");
    assert_eq!(value[..20], CAPABILITY, "{builder}");
}

#[test]
fn a37_a46_images_of_buildah_and_umoci_run_from_every_layout() {
    let programs = ["buildah", "umoci", "skopeo", "tar"];
    if !cofferdam_tests::needs::programs(&programs) || !Path::new("/bin/busybox").exists() {
        return;
    }
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    let rootfs = awkward_rootfs(&world);
    let at = |name: &str| world.files().join(name).to_str().unwrap().to_owned();
    let tool = |program: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new(program);
        cofferdam_tests::world::succeed(command.args(arguments).stdin(std::process::Stdio::null())).unwrap()
    };
    // umoci: one layer, an OCI layout in a directory.
    let layout = at("layout");
    tool("umoci", &["init", "--layout", &layout]);
    let image = format!("{layout}:awkward");
    tool("umoci", &["new", "--image", &image]);
    tool("umoci", &["insert", "--image", &image, rootfs.to_str().unwrap(), "/"]);
    // buildah: a base and a step over it, in both kinds of archive.
    let (storage, run) = (at("storage"), at("run"));
    let buildah = |words: &[&str]| {
        let global = ["--root", &storage, "--runroot", &run, "--storage-driver", "vfs"];
        tool("buildah", &[&global[..], words].concat())
    };
    tool(
        "tar",
        &[
            "--xattrs",
            "--xattrs-include=*",
            "-S",
            "-C",
            rootfs.to_str().unwrap(),
            "-cf",
            &at("rootfs.tar"),
            ".",
        ],
    );
    std::fs::write(
        at("Containerfile"),
        "FROM scratch\nADD rootfs.tar /\nCOPY Containerfile /etc/build\nCMD [\"/bin/sh\"]\n",
    )
    .unwrap();
    buildah(&[
        "bud",
        "--layers",
        "--isolation",
        "chroot",
        "-t",
        "awkward",
        "-f",
        &at("Containerfile"),
        &at("."),
    ]);
    for format in ["oci-archive", "docker-archive"] {
        let target = format!("{format}:{}:localhost/awkward:{format}", at(&format!("buildah-{format}")));
        buildah(&["push", "--quiet", "awkward", &target]);
    }
    for source in ["layout", "buildah-oci-archive", "buildah-docker-archive"] {
        let id = succeed(&world, &["import", &at(source)]);
        check_awkward(&world, &id, source);
        // What goes out comes in again and is the same to tasks.
        succeed(&world, &["image", "export", "--format", "docker-archive", "-o", &at("again"), &id]);
        succeed(&world, &["rmi", "-f", &id]);
        assert_eq!(succeed(&world, &["import", &at("again")]), id, "{source}");
        check_awkward(&world, &id, source);
        succeed(&world, &["rmi", "-f", &id]);
    }
    settle(&watch);
}
