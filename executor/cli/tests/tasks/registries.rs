//! Pulls and pushes from the command line: Debian's registry, the options' three doors, and Ctrl-C.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam_executor::{Config, Digest, Executor, ImageRequest, PullConfig, PullWhen};
use cofferdam_tests::registry::{Options, Registry};
use cofferdam_tests::world::World;
use cofferdam_tests::{needs, pace};

use crate::host::{call, cofferdam, settle, settled_world, succeed};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An OCI layout with one image of an empty layer, named `v1`; returns the manifest's digest.
pub(crate) fn layout(folder: &Path) -> Digest {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |kind: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{}}}"#, bytes.len())
    };
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let tar = [0; 1024];
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        Digest::of(&tar)
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{},"layers":[{}]}}"#,
        put("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        put("application/vnd.oci.image.layer.v1.tar", &tar)
    );
    let entry = put(MANIFEST, manifest.as_bytes());
    let name = r#""annotations":{"org.opencontainers.image.ref.name":"v1"}}"#;
    let entry = entry.trim_end_matches('}');
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{entry},{name}]}}"#);
    std::fs::write(folder.join("index.json"), index).unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    Digest::of(manifest.as_bytes())
}

fn pushed(world: &World, layout: &Path, target: &str) -> String {
    let layout = layout.display().to_string();
    succeed(world, &["push", "--layout", &layout, "v1", target])
}

#[test]
fn a23_an_image_goes_through_debians_registry_unchanged() {
    let Some(world) = settled_world() else { return };
    if !needs::programs(&["docker-registry", "skopeo"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let digest = layout(folder.path()).to_string();
    let storage = tempfile::tempdir().unwrap();
    let registry = Registry::start(storage.path(), Options::default()).unwrap();
    let first = format!("{}/first/image:v1", registry.address());
    let second = format!("{}/second/image:v2", registry.address());
    assert_eq!(pushed(&world, folder.path(), &first), digest);
    let sent = registry.log().matches("http.request.method=PUT").count();
    assert_eq!(pushed(&world, folder.path(), &first), digest);
    let again = registry.log().matches("http.request.method=PUT").count() - sent;
    assert!(again <= sent / 3, "the second push puts nothing but the manifest: {again} of {sent}");

    let watch = world.watch();
    assert_eq!(succeed(&world, &["pull", &first]), digest);
    let answer = call(&world, &["push", &first, &second]);
    assert_eq!(answer.stdout.trim_end(), digest, "{answer:?}");
    assert_eq!(answer.stderr.matches("mounted from another repository").count(), 2, "{answer:?}");
    let raw = Command::new("skopeo")
        .args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{second}")])
        .output()
        .unwrap();
    assert_eq!(Digest::of(&raw.stdout).to_string(), digest);
    for line in succeed(&world, &["pull", "--format", "json", &second]).lines() {
        assert!(line.starts_with(r#"{"event":""#), "{line}");
    }
    succeed(&world, &["rmi", "--force", &first, &second]);
    settle(&watch);
}

#[test]
fn a90_the_command_line_the_file_and_the_library_reach_the_same_policy() {
    let Some(world) = settled_world() else { return };
    if !needs::programs(&["docker-registry"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    layout(&folder.path().join("layout"));
    let storage = tempfile::tempdir().unwrap();
    let registry = Registry::start(storage.path(), Options::default()).unwrap();
    let image = format!("{}/x:v1", registry.address());
    pushed(&world, &folder.path().join("layout"), &image);
    let policy = folder.path().join("policy.json");
    std::fs::write(&policy, r#"{"default":[{"type":"reject"}]}"#).unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, format!("[pull]\npolicy = {:?}\n", policy.display().to_string())).unwrap();
    let (policy_text, file_text) = (policy.display().to_string(), file.display().to_string());
    for words in [
        &["pull", "--policy", &policy_text, &image][..],
        &["--config", &file_text, "pull", &image],
        &["--config", &file_text, "run", "--rm", &image, "true"],
        &["run", "--rm", "--policy", &policy_text, &image, "true"],
    ] {
        let answer = call(&world, words);
        assert_eq!(answer.code, Some(125), "{words:?}: {answer:?}");
        assert!(answer.stderr.contains("refused by the default of the policy"), "{words:?}: {answer:?}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = runtime.block_on(async {
        let pull = PullConfig { policy: Some(policy), ..PullConfig::default() };
        let executor = Executor::open(Config { pull, ..Config::below(folder.path()) }).await.unwrap();
        let request = ImageRequest { when: PullWhen::Always, ..ImageRequest::new(image.clone()) };
        executor.image(request, |_| {}).await.unwrap_err()
    });
    assert!(refused.to_string().contains("refused by the default of the policy"), "{refused}");
    std::fs::write(&file, "[pull]\nplain-htp = true\n").unwrap();
    let answer = call(&world, &["--config", &file_text, "pull", &image]);
    assert!(answer.code == Some(125) && answer.stderr.contains("plain-htp"), "{answer:?}");
    let nowhere = folder.path().join("nowhere").display().to_string();
    assert_eq!(call(&world, &["--config", &nowhere, "images"]).code, Some(125));
    succeed(&world, &["pull", &image]);
    succeed(&world, &["rmi", &image]);
}

#[test]
fn a1_every_tag_of_a_repository_is_pulled_when_asked_for() {
    let Some(world) = settled_world() else { return };
    if !needs::programs(&["docker-registry"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let digest = layout(folder.path()).to_string();
    let storage = tempfile::tempdir().unwrap();
    let registry = Registry::start(storage.path(), Options::default()).unwrap();
    let name = format!("{}/all/tags", registry.address());
    for tag in ["v1", "v2", "v3"] {
        pushed(&world, folder.path(), &format!("{name}:{tag}"));
    }
    let watch = world.watch();
    assert_eq!(succeed(&world, &["pull", "-q", "--all-tags", &name]), [&*digest; 3].join("\n"));
    let names: Vec<String> = ["v1", "v2", "v3"].map(|tag| format!("{name}:{tag}")).to_vec();
    for name in &names {
        succeed(&world, &["image", "exists", name]);
    }
    let refused = call(&world, &["pull", "--all-tags", &names[0]]);
    assert!(refused.code == Some(125) && refused.stderr.contains("names one image"), "{refused:?}");
    let unknown = call(&world, &["pull", "-a", &format!("{}/no/such", registry.address())]);
    assert!(unknown.code == Some(125) && unknown.stderr.contains("no/such"), "{unknown:?}");
    succeed(&world, &["rmi", "--force", &names[0], &names[1], &names[2]]);
    settle(&watch);
}

#[test]
fn a25_ctrl_c_ends_a_pull_at_once_and_leaves_nothing() {
    let Some(world) = settled_world() else { return };
    // It takes connections and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("{}/x", listener.local_addr().unwrap());
    let watch = world.watch();
    let mut pull = cofferdam(&world, &["pull", &image]).stderr(Stdio::null()).spawn().unwrap();
    let (connection, _) = listener.accept().unwrap();
    let start = Instant::now();
    let pid = rustix::process::Pid::from_child(&pull);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let status = pull.wait().unwrap();
    let took = start.elapsed();
    assert_eq!(status.code(), Some(130));
    assert!(took < pace::limit(Duration::from_millis(200)), "{took:?}");
    drop(connection);
    let tmp = std::fs::read_dir(world.root().join("images/tmp")).unwrap();
    assert_eq!(tmp.count(), 0);
    settle(&watch);
}
