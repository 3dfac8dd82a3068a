//! Against what others wrote: Debian's docker-registry, with images that skopeo pushes.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod support;

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam_image::{
    Credential, CredentialSource, Error, ImageBuilder, ImageRef, ImportOptions, Kind, PullOptions, Secret,
};
use support::*;

/// bcrypt of "secret".
const PASSWORD_HASH: &str = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";

/// A docker-registry of its own on a free port of loopback, ended with the value.
struct DockerRegistry {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl DockerRegistry {
    fn start(with_password: bool) -> DockerRegistry {
        let folder = temporary_folder();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let passwords = folder.path().join("htpasswd");
        std::fs::write(&passwords, format!("user:{PASSWORD_HASH}\n")).unwrap();
        let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", passwords.display());
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{}",
            folder.path().join("data").display(),
            if with_password { auth.as_str() } else { "" }
        );
        let path = folder.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        DockerRegistry { child, port, folder }
    }

    fn push(&self, archive: &[u8], name: &str, extra: &[&str]) {
        let path = self.folder.path().join("push.tar");
        std::fs::write(&path, archive).unwrap();
        let source = format!("oci-archive:{}", path.display());
        let target = format!("docker://127.0.0.1:{}/{name}", self.port);
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--dest-tls-verify=false"])
            .args(extra)
            .args([&source, &target])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn name(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        // Its own child, by its own pid; both fail only if it is gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn image(name: &str) -> Vec<u8> {
    let image = ImageBuilder::new().file("etc/name", 0o644, name).directory("tmp", 0o1777).command(&["/x"]);
    image.build().unwrap_or_default()
}

#[test]
fn images_that_skopeo_pushes_to_docker_registry_are_pulled() {
    if !is_root() || !has_program("docker-registry") || !has_program("skopeo") {
        return;
    }
    let registry = DockerRegistry::start(false);
    let test = TestStore::new();
    let imported = test
        .store
        .import(&mut image("one").as_slice(), &ImportOptions::default(), &|_| {})
        .unwrap()
        .remove(0);
    let expected = test.mount(&imported).tree();
    for (name, extra) in [
        ("a/oci:1", &[][..]),
        ("a/docker:1", &["--format", "v2s2"][..]),
        ("a/zstd:1", &["--dest-compress-format", "zstd"][..]),
    ] {
        registry.push(&image("one"), name, extra);
        let pulled = test.pull(&registry.name(name)).unwrap();
        assert_eq!(test.mount(&pulled).tree(), expected, "{name}");
        assert_eq!(pulled.layers[0].diff_id, imported.layers[0].diff_id);
    }
    assert_eq!(test.list("layers").len(), 1, "one layer, however it is packed");

    let error = test.pull(&registry.name("a/oci:2")).unwrap_err();
    assert!(error.to_string().contains("unknown tag") && error.to_string().contains("it has 1"), "{error}");
    let error = test.pull(&registry.name("no/such")).unwrap_err();
    assert!(error.to_string().contains("unknown image"), "{error}");
    let platform = Some("linux/s390x".parse().unwrap());
    let name = ImageRef::parse(&registry.name("a/oci:1")).unwrap();
    let error = test.store.pull(&name, &PullOptions { platform, ..options() }, &|_| {}).unwrap_err();
    assert!(matches!(error, Error::WrongPlatform { .. }), "{error}");

    // A layer that rots in the registry's storage.
    registry.push(&image("two"), "a/rotten:1", &[]);
    let layer = largest_blob(&registry.folder.path().join("data"), &test);
    let mut bytes = std::fs::read(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&layer, bytes).unwrap();
    let error = test.pull(&registry.name("a/rotten:1")).unwrap_err();
    assert!(error.to_string().contains("corrupt layer"), "{error}");
}

/// The newest layer blob of the registry's storage.
fn largest_blob(data: &Path, _test: &TestStore) -> std::path::PathBuf {
    let mut pending = vec![data.to_owned()];
    let mut newest: Option<(std::time::SystemTime, std::path::PathBuf)> = None;
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.ends_with("data")
                && std::fs::read(&path).is_ok_and(|bytes| bytes.starts_with(&[0x1f, 0x8b]))
                && let Ok(time) = entry.metadata().and_then(|metadata| metadata.modified())
                && newest.as_ref().is_none_or(|(newest, _)| time > *newest)
            {
                newest = Some((time, path));
            }
        }
    }
    newest.map(|(_, path)| path).unwrap_or_default()
}

#[test]
fn docker_registry_with_a_password_takes_it_from_an_auth_file() {
    if !is_root() || !has_program("docker-registry") || !has_program("skopeo") {
        return;
    }
    let registry = DockerRegistry::start(true);
    registry.push(&image("private"), "a/b:1", &["--dest-creds", "user:secret"]);
    let test = TestStore::new();
    let error = test.pull(&registry.name("a/b:1")).unwrap_err();
    assert!(error.kind() == Kind::Denied && error.to_string().contains("unauthorised"), "{error}");
    let path = test.folder.path().join("auth.json");
    let auths = format!(r#"{{"auths":{{"127.0.0.1:{}":{{"auth":"dXNlcjpzZWNyZXQ="}}}}}}"#, registry.port);
    std::fs::write(&path, auths).unwrap();
    let given = Credential::Basic { user: "user".into(), password: Secret::new("secret") };
    for credentials in [CredentialSource::File(path), CredentialSource::Given(given)] {
        let mut options = options();
        options.client.credentials = credentials;
        test.store.pull(&ImageRef::parse(&registry.name("a/b:1")).unwrap(), &options, &|_| {}).unwrap();
    }
}

/// The folder to be listed by [`child_that_lists`].
const LIST: &str = "COFFERDAM_TEST_LIST";

/// Not a test of its own: lists a tree from inside of another mount namespace.
#[test]
fn child_that_lists() {
    let Ok(folder) = std::env::var(LIST) else { return };
    for line in matrix::show(Path::new(&folder)) {
        println!("\nline {}", line.replace('\n', " "));
    }
}

/// What every peer makes of the images in `rows/*`, one answer a file: `ok` and the tree, or `error` and the reason.
const DRIVE_PEERS: &str = r#"
cd "$FOLDER"
list() { COFFERDAM_TEST_LIST="$2" "$SELF" --exact child_that_lists --nocapture 2>&1 | sed -n 's/^line //p' > "$1.tree"; echo ok > "$1"; }
fail() { echo "error $(tail -n 1 "$1.log" | cut -c 1-200)" > "$1"; }
containerd --config containerd.toml > containerd.log 2>&1 &
daemon=$!
for try in $(seq 200); do ctr --address sock version > /dev/null 2>&1 && break; sleep 0.05; done
for row in rows/*; do
    if umoci unpack --image "$row/oci:latest" "$row/bundle" > "$row/umoci.log" 2>&1
    then list "$row/umoci" "$row/bundle/rootfs"; else fail "$row/umoci"; fi

    podman="podman --root podman --runroot podman-run --storage-driver overlay"
    if id=$($podman pull -q "oci:$row/oci:latest" 2> "$row/podman.log") \
        && mounted=$($podman image mount "$id" 2>> "$row/podman.log")
    then list "$row/podman" "$mounted"; $podman image umount "$id" > /dev/null 2>&1; else fail "$row/podman"; fi

    name="matrix/${row#rows/}"
    mkdir "$row/mount"
    tar -C "$row/oci" -cf "$row/oci.tar" .
    if ctr --address sock images import --base-name "$name" "$row/oci.tar" > "$row/containerd.log" 2>&1 \
        && ctr --address sock images mount "$name:latest" "$row/mount" >> "$row/containerd.log" 2>&1
    then list "$row/containerd" "$row/mount"; umount "$row/mount"; else fail "$row/containerd"; fi
done
kill $daemon
wait $daemon
"#;

const PEERS: [&str; 3] = ["umoci", "podman", "containerd"];

/// An OCI layout in a folder, with whatever lies the row tells.
fn write_layout(row: &matrix::Row, folder: &Path) {
    let documents = row.documents();
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    for bytes in [&documents.config, &documents.manifest] {
        std::fs::write(blobs.join(cofferdam_image::Digest::of(bytes).hex()), bytes).unwrap();
    }
    for (digest, bytes) in &documents.blobs {
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
    }
    let mut manifest = descriptor(OCI_MANIFEST, &documents.manifest);
    manifest.truncate(manifest.len() - 1);
    let name = r#""annotations":{"org.opencontainers.image.ref.name":"latest"}"#;
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{manifest},{name}}}]}}"#);
    std::fs::write(folder.join("index.json"), index).unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[test]
fn a31_the_peers_differ_where_cofferdam_does_what_it_must() {
    if !is_root() || !["umoci", "podman", "containerd", "ctr"].iter().all(|name| has_program(name)) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let rows = matrix::rows();
    for (number, row) in rows.iter().enumerate() {
        write_layout(row, &folder.path().join(format!("rows/{number:02}/oci")));
    }
    let at = |name: &str| folder.path().join(name).display().to_string();
    let unwanted = "\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"";
    let config = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [{unwanted}]\n[grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
        at("containerd"),
        at("containerd-state"),
        at("sock"),
        at("sock.ttrpc"),
    );
    std::fs::write(folder.path().join("containerd.toml"), config).unwrap();
    // Whatever is mounted goes with the namespace.
    let driver = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", DRIVE_PEERS])
        .env("FOLDER", folder.path())
        .env("SELF", std::env::current_exe().unwrap())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(driver.status.success(), "{}", String::from_utf8_lossy(&driver.stderr));

    let mut met = [0; 3];
    println!("{:34} {:10} {:10} {:10} {:10}", "case", "cofferdam", "umoci", "podman", "containerd");
    for (number, row) in rows.iter().enumerate() {
        let (own, _) = row.pull();
        assert!(row.is_met(&own), "{}: {own:?}", row.case);
        let answers = PEERS.map(|peer| {
            let path = folder.path().join(format!("rows/{number:02}/{peer}"));
            let answer = std::fs::read_to_string(&path).unwrap_or_else(|_| "error no answer".to_owned());
            match answer.trim().strip_prefix("error ") {
                Some(reason) => Err(reason.to_owned()),
                None => {
                    let tree = std::fs::read_to_string(path.with_extension("tree")).unwrap_or_default();
                    Ok(tree.lines().map(str::to_owned).collect())
                }
            }
        });
        let word = |answer: &Result<Vec<String>, String>| match (row.is_met(answer), answer) {
            (true, _) => "as it must",
            (false, Ok(_)) => "other tree",
            (false, Err(_)) => "refuses",
        };
        let [umoci, podman, containerd] = [0, 1, 2].map(|peer| word(&answers[peer]));
        println!("{:34} {:10} {umoci:10} {podman:10} {containerd:10}", row.case, "as it must");
        for (peer, answer) in answers.iter().enumerate() {
            met[peer] += usize::from(row.is_met(answer));
            if !row.is_met(answer) {
                println!("    {}: {answer:?}", PEERS[peer]);
            }
        }
        // A case in which every peer does otherwise is suspect, unless it is known to be theirs to mend.
        let agreed = answers.iter().any(|answer| row.is_met(answer));
        assert!(agreed || row.alone, "{}: no peer agrees: {answers:?}", row.case);
    }
    for (peer, count) in PEERS.iter().zip(met) {
        assert!(count >= rows.len() / 3, "{peer} was not driven well: it agrees in {count} cases only");
        assert!(count < rows.len(), "{peer} has caught up: say so in the table");
    }
}
