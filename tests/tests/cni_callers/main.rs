//! Other programs that call CNI plugins, with ours in their plugin folder: podman's CNI backend and containerd's `ctr`.
//!
//! Each brings up a container on a network of our plugins, uses it as its users would, and takes it down; then nothing of the
//! attachment may be left: no link, no lease, no rule. The same steps run with the reference plugins as the control.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod calls;
mod workbench;

use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_tests::callers::{Called, Ground};
use cofferdam_tests::world::{run, succeed};
use cofferdam_tests::{needs, programs};
use nix::mount::{MntFlags, MsFlags};

/// Where callers look for plugins and configurations unless told otherwise, and keep what they know of attachments.
const THEIR_FOLDERS: [&str; 3] = ["/etc", "/opt", "/var/lib"];

/// Who the plugins are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plugins {
    Ours,
    Reference,
}

/// A host for callers of plugins: their folders are covered, a plugin folder and a network are there.
pub(crate) struct Host<'a> {
    pub(crate) ground: &'a Ground,
    pub(crate) plugins: PathBuf,
    /// A folder with the configuration of the network `matrix`.
    pub(crate) networks: PathBuf,
    covered: Vec<&'static str>,
}

impl<'a> Host<'a> {
    fn set(ground: &'a Ground, plugins: Plugins) -> Host<'a> {
        let folder = ground.folder(&format!("cni-{plugins:?}")).unwrap();
        let mut covered = Vec::new();
        for path in THEIR_FOLDERS.into_iter().filter(|path| Path::new(path).is_dir()) {
            cover(&folder, path);
            covered.push(path);
        }
        let networks = folder.join("net.d");
        std::fs::create_dir(&networks).unwrap();
        std::fs::write(networks.join("10-matrix.conflist"), network(&folder.join("leases"))).unwrap();
        let plugins = match plugins {
            Plugins::Ours => install(&folder.join("bin")),
            Plugins::Reference => "/usr/lib/cni".into(),
        };
        Host { ground, plugins, networks, covered }
    }

    /// What is left of attachments, as lines.
    pub(crate) fn left(&self) -> Vec<String> {
        let leases = self.networks.with_file_name("leases").join("matrix");
        let files = std::fs::read_dir(leases).into_iter().flatten().flatten();
        let names = files.filter_map(|entry| entry.file_name().into_string().ok());
        let mut left: Vec<String> = names.filter(|name| name.starts_with("10.")).collect();
        let links = succeed(Command::new("ip").args(["-oneline", "link"])).unwrap();
        left.extend(links.lines().filter(|line| line.contains("veth")).map(str::to_owned));
        let rules = succeed(Command::new("nft").args(["--stateless", "list", "ruleset"])).unwrap();
        let is_of_one = |line: &&str| line.contains("matrix/") || line.contains("chain CNI-DN-");
        left.extend(rules.lines().filter(is_of_one).map(str::to_owned));
        left
    }
}

impl Drop for Host<'_> {
    /// What all attachments share stays with whoever made it: here it goes, before the census.
    fn drop(&mut self) {
        let _ = run(Command::new("ip").args(["link", "delete", "matrix0"]));
        let _ = run(Command::new("nft").args(["flush", "ruleset"]));
        // podman mounts it upon itself, so that names of namespaces reach everybody.
        let _ = nix::mount::umount2("/run/netns", MntFlags::MNT_DETACH);
        for path in &self.covered {
            let _ = nix::mount::umount2(*path, MntFlags::MNT_DETACH);
        }
    }
}

fn cover(folder: &Path, path: &str) {
    let at = |name: &str| folder.join(format!("{name}{}", path.replace('/', "-")));
    for name in ["upper", "work"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    let options =
        format!("lowerdir={path},upperdir={},workdir={}", at("upper").display(), at("work").display());
    nix::mount::mount(Some("overlay"), path, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .unwrap();
}

/// The network as podman and containerd would be given it, in a version that both speak.
fn network(leases: &Path) -> String {
    serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "matrix",
        "plugins": [
            {
                "type": "bridge", "bridge": "matrix0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "dataDir": leases,
                    "ranges": [[{ "subnet": "10.70.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "firewall" },
            { "type": "tuning" },
        ],
    })
    .to_string()
}

/// Our plugins in a folder, as their own program puts them there.
pub(crate) fn install(folder: &Path) -> PathBuf {
    succeed(Command::new(programs::path("cofferdam-cni")).arg("install").arg(folder)).unwrap();
    folder.to_owned()
}

/// Runs a body in a world of its own, with the reference plugins as the control, then with ours; with a census of each.
pub(crate) fn with_plugins(callers: &[&str], body: impl Fn(&Host<'_>, &Called)) {
    if !needs::programs(&["nft", "runc", "iptables"]) || !Ground::is_there(callers) {
        return;
    }
    let _ = programs::path("cofferdam-cni");
    let ground = Ground::enter().unwrap();
    ground.archive().unwrap();
    let runtime = Called::control().unwrap().path;
    let has_reference = Path::new("/usr/lib/cni/bridge").exists() && needs::is_full();
    let control = Some(Plugins::Reference).filter(|_| has_reference);
    for plugins in control.into_iter().chain([Plugins::Ours]) {
        println!("with {plugins:?}");
        let watch = ground.watch();
        let name = if plugins == Plugins::Ours { "with-ours" } else { "with-theirs" };
        body(&Host::set(&ground, plugins), &Called { path: runtime.clone(), name });
        ground.sweep();
        watch.end();
    }
}
