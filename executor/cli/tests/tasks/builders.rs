//! Images as others build them, and images of very many layers, run as tasks.

use std::path::Path;
use std::process::{Command, Stdio};

use cofferdam_executor::Digest;
use cofferdam_tests::images::Images;
use cofferdam_tests::world::World;
use cofferdam_tests::{needs, pace};
use serde_json::{Value, json};

use crate::host::{call, settle, settled_world, succeed};

/// What the step of the build does, by the programs that Debian's smallest system has.
const STEP: &str = r#"set -e
cp /bin/cat /usr/local/bin/capable
perl -e 'my ($f, $n, $v) = ("/usr/local/bin/capable", "security.capability", pack("V5", 0x02000001, 4, 0, 0, 0));
    syscall(188, $f, $n, $v, 20, 0) == 0 or die $!'
ln /usr/local/bin/capable /usr/local/bin/linked
truncate -s 64M /var/lib/sparse
printf end >> /var/lib/sparse
rm -rf /usr/share/doc
chmod 1777 /srv
"#;

/// What a task sees of it: the file's capability, its links, the holes, the end of the sparse file, what was deleted, a mode.
const LOOK: &str = r#"set -e
perl -e 'my ($f, $n, $v) = ("/usr/local/bin/linked", "security.capability", "\0" x 64);
    my $l = syscall(191, $f, $n, $v, 64); print unpack("H*", substr($v, 0, $l)), "\n"'
stat -c %h /usr/local/bin/capable
test $(stat -c %b /var/lib/sparse) -lt 1000
stat -c %s /var/lib/sparse
tail -c 3 /var/lib/sparse
test ! -e /usr/share/doc
stat -c ' %a' /srv
cmp /bin/cat /usr/local/bin/capable
dpkg --verify coreutils libc6 perl-base | grep -v ' /usr/share/doc' || true
"#;

const SEEN: &str = "0100000204000000000000000000000000000000\n2\n67108867\nend 1777";

#[test]
fn a37_a46_what_podman_builds_from_a_debian_of_debootstrap_runs() {
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: the build's step makes system calls by their numbers on x86-64");
        return;
    }
    if !needs::full("podman builds upon a Debian")
        || !needs::programs(&["podman"])
        || !Images::are_available()
    {
        return;
    }
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    let context = world.files().join("context");
    std::fs::create_dir(&context).unwrap();
    let layout = Images::get().unwrap().layout();
    let recipe =
        format!("FROM oci:{}:debian\nCOPY step.sh /step.sh\nRUN sh /step.sh\n", layout.to_str().unwrap());
    std::fs::write(context.join("Containerfile"), recipe).unwrap();
    std::fs::write(context.join("step.sh"), STEP).unwrap();
    let storage = world.files().join("podman");
    let podman = |words: &[&str]| {
        let mut command = Command::new("podman");
        command.arg("--root").arg(storage.join("root")).arg("--runroot").arg(storage.join("run"));
        command.args(["--storage-driver", "vfs"]).args(words).stdin(Stdio::null());
        cofferdam_tests::world::succeed(&mut command).unwrap()
    };
    let folder = context.to_str().unwrap();
    podman(&["build", "--quiet", "--isolation", "chroot", "--layers=false", "-t", "localhost/built", folder]);
    let archive = context.join("archive").to_str().unwrap().to_owned();
    podman(&["save", "--quiet", "--format", "docker-archive", "-o", &archive, "localhost/built"]);
    let id = succeed(&world, &["import", &archive]);
    assert_eq!(succeed(&world, &["run", "--rm", "--network", "none", &id, "sh", "-c", LOOK]), SEEN);
    succeed(&world, &["rmi", "-f", &id]);
    std::fs::remove_dir_all(&storage).unwrap();
    settle(&watch);
}

#[test]
fn a44_images_of_499_and_700_layers_run_and_show_every_layer() {
    if !Path::new("/bin/busybox").exists() {
        println!("skipped: needs the program /bin/busybox");
        return;
    }
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    for count in [499, 700] {
        let id = succeed(&world, &["import", &many_layers(&world, count)]);
        let words =
            ["run", "--rm", "--network", "none", &id, "/bin/busybox", "grep", "-r", "", "/layers", "/last"];
        let answer = succeed(&world, &words);
        let mut seen: Vec<&str> = answer.lines().collect();
        seen.sort_unstable();
        let shown = (1..count).filter(|layer| layer + 1 == count || !deletes(layer + 1));
        let mut expected: Vec<String> = shown.map(|layer| format!("/layers/{layer}:{layer}")).collect();
        expected.push(format!("/last:{}", count - 1));
        expected.sort_unstable();
        assert_eq!(seen, expected, "{count} layers");
        succeed(&world, &["rmi", "-f", &id]);
    }
    settle(&watch);
}

/// CVE-2022-23648 is the other way: a link in the volume's place led to the host, and its files were copied.
#[test]
fn fs_10_fs_11_t16_volumes_begin_with_what_the_image_itself_has_in_their_place() {
    if !Path::new("/bin/busybox").exists() {
        println!("skipped: needs the program /bin/busybox");
        return;
    }
    let Some(world) = settled_world() else { return };
    let host = world.files().join("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("secret"), "of the host").unwrap();
    let mut layer = Vec::new();
    add(&mut layer, "bin/busybox", 0o755, &std::fs::read("/bin/busybox").unwrap());
    put(&mut layer, "vol/", (b'5', ""), 0o1777, b"");
    add(&mut layer, "vol/file", 0o640, b"words\n");
    add(&mut layer, "vol/sub/deep", 0o644, b"deep\n");
    add(&mut layer, "other/deeper", 0o644, b"deeper\n");
    put(&mut layer, "link", (b'2', host.to_str().unwrap()), 0o777, b"");
    put(&mut layer, "inside", (b'2', "/other"), 0o777, b"");
    let volumes = json!({ "Volumes": { "/vol": {}, "/link": {}, "/inside": {} } });
    let image = succeed(&world, &["import", &docker_archive(&world, "volumes", &volumes, vec![layer])]);
    let watch = world.watch();
    let sh = |options: &[&str], script: &str| {
        let words =
            [&["run", "--rm", "--network", "none"], options, &[&image, "/bin/busybox", "sh", "-c", script]];
        succeed(&world, &words.concat())
    };
    let seen =
        sh(&[], "stat -c '%A %u' /vol /vol/file; cat /vol/file /vol/sub/deep /inside/deeper; ls -A /link/");
    assert_eq!(seen.lines().collect::<Vec<_>>(), ["drwxrwxrwt 0", "-rw-r----- 0", "words", "deep", "deeper"]);
    // Once: what a task has left in a volume is what the next one finds.
    let named = ["-v", "kept:/vol"];
    assert_eq!(sh(&named, "cat /vol/file; rm /vol/file; echo other >/vol/own"), "words");
    assert_eq!(sh(&named, "ls /vol"), "own\nsub");
    assert_eq!(
        sh(&["-v", "read:/vol:ro"], "cat /vol/file; touch /vol/x || echo read-only").lines().count(),
        2
    );
    assert_eq!(sh(&["-v", "empty:/vol:nocopy"], "ls -A /vol"), "");
    let bound = format!("{}:/vol", host.display());
    assert_eq!(sh(&["-v", &bound], "ls -A /vol"), "secret", "what is the host's stays as it is");
    let places = ["/proc/self/attr", "/dev", "/proc", "/sys/fs/cgroup", "/", "/../../etc"];
    for place in places.into_iter().take(pace::rounds(6, 2) as usize) {
        let mut layer = Vec::new();
        add(&mut layer, "bin/busybox", 0o755, b"never executed");
        let config = json!({ "Volumes": { place: {} } });
        let image = succeed(&world, &["import", &docker_archive(&world, "refused", &config, vec![layer])]);
        let refused = call(&world, &["run", "--rm", "--network", "none", &image, "/bin/busybox"]);
        assert!(refused.code == Some(125) && refused.stderr.contains("volume"), "{place}: {refused:?}");
        succeed(&world, &["rmi", "-f", &image]);
    }
    for name in ["kept", "read", "empty"] {
        std::fs::remove_dir_all(world.root().join("volumes").join(name)).unwrap();
    }
    settle(&watch);
}

/// Whether a layer deletes what the one below it brought.
fn deletes(layer: usize) -> bool {
    layer.is_multiple_of(3)
}

/// A docker archive of so many layers: a shell at the bottom, then a file of its own in each, and one that all overwrite.
fn many_layers(world: &World, count: usize) -> String {
    let mut layers = Vec::new();
    for layer in 0..count {
        let mut tar = Vec::new();
        if layer == 0 {
            add(&mut tar, "bin/busybox", 0o755, &std::fs::read("/bin/busybox").unwrap());
        } else {
            add(&mut tar, &format!("layers/{layer}"), 0o644, format!("{layer}\n").as_bytes());
            add(&mut tar, "last", 0o644, format!("{layer}\n").as_bytes());
        }
        if deletes(layer) && layer > 0 {
            add(&mut tar, &format!("layers/.wh.{}", layer - 1), 0o644, b"");
        }
        layers.push(tar);
    }
    docker_archive(world, &count.to_string(), &json!({}), layers)
}

/// The path of a docker archive of these layers.
fn docker_archive(world: &World, name: &str, config: &Value, layers: Vec<Vec<u8>>) -> String {
    let ended = |(number, mut tar): (usize, Vec<u8>)| {
        tar.extend([0; 1024]);
        (format!("{number}.tar"), tar)
    };
    let entries: Vec<(String, Vec<u8>)> = layers.into_iter().enumerate().map(ended).collect();
    let layers: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
    let diff_ids: Vec<String> = entries.iter().map(|(_, tar)| Digest::of(tar).to_string()).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids }, "config": config,
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": null, "Layers": layers }]).to_string();
    let mut archive = Vec::new();
    add(&mut archive, "manifest.json", 0o644, manifest.as_bytes());
    add(&mut archive, "config.json", 0o644, config.to_string().as_bytes());
    for (name, tar) in &entries {
        add(&mut archive, name, 0o644, tar);
    }
    archive.extend([0; 1024]);
    let path = world.files().join(format!("{name}.tar"));
    std::fs::write(&path, archive).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A file.
fn add(tar: &mut Vec<u8>, name: &str, mode: u32, contents: &[u8]) {
    put(tar, name, (b'0', ""), mode, contents);
}

/// An entry in the oldest format of tar that has an owner's number: its name, its kind and where it leads, its mode, its bytes.
fn put(tar: &mut Vec<u8>, name: &str, (kind, target): (u8, &str), mode: u32, contents: &[u8]) {
    let mut header = [0_u8; 512];
    let fields = [
        (0, name.to_owned()),
        (100, format!("{mode:07o}\0{:07o}\0{:07o}\0{:011o}\0{:011o}\0        ", 0, 0, contents.len(), 0)),
        (156, char::from(kind).to_string()),
        (157, target.to_owned()),
        (257, "ustar\x0000".to_owned()),
    ];
    for (at, field) in fields {
        header[at..at + field.len()].copy_from_slice(field.as_bytes());
    }
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend(header);
    tar.extend(contents);
    tar.resize(tar.len().next_multiple_of(512), 0);
}
