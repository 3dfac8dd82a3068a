//! The Debian packages that the gate needs, each with its reason, and their installation.

use std::process::Command;

use anyhow::Result;

use crate::command::{command, demand, exists};

/// A Debian package and what the gate uses it for.
struct Needed {
    package: &'static str,
    reason: &'static str,
}

const fn needed(package: &'static str, reason: &'static str) -> Needed {
    Needed { package, reason }
}

/// In the order in which a reader would ask: build, images, network, peers, virtual machine.
const NEEDED: &[Needed] = &[
    needed("gcc", "links everything; compiles zstd and ring"),
    needed("libc6-dev", "the static C library that the binaries carry"),
    needed("libseccomp-dev", "what our seccomp compiler is compared with"),
    needed("ca-certificates", "HTTPS registries"),
    needed("busybox-static", "the smallest image; the virtual machine's shell"),
    needed("debootstrap", "the Debian image's files"),
    needed("umoci", "makes images that we did not make ourselves"),
    needed("buildah", "makes images that we did not make ourselves"),
    needed("skopeo", "pushes images as others push them"),
    needed("docker-registry", "the registry that pulls are tested with"),
    needed("zstd", "zstd layers made by another program"),
    needed("erofs-utils", "erofs images made by another program"),
    needed("openssl", "certificates for the HTTPS registry"),
    needed("curl", "reaches published ports as an operator would"),
    needed("iproute2", "network namespaces and a second opinion on links"),
    needed("nftables", "a second opinion on firewall rules"),
    needed("iptables", "the reference port mapping plugin"),
    needed("containernetworking-plugins", "the reference CNI plugins"),
    needed("runc", "peer: every conformance test runs on it too"),
    needed("crun", "peer"),
    needed("podman", "drives cofferdam-oci as its runtime"),
    needed("conmon", "podman's monitor"),
    needed("uidmap", "maps an ordinary user's subordinate ids"),
    needed("containerd", "calls cofferdam-oci through its shim; brings ctr"),
    needed("docker.io", "Docker and Swarm call cofferdam-oci"),
    needed("slurm-wlm", "srun --container calls cofferdam-oci"),
    needed("systemd", "makes containers' scopes; run as a user's manager"),
    needed("strace", "counts system calls"),
    needed("hyperfine", "times whole processes"),
    needed("socat", "talks to sockets in tests"),
    needed("jq", "reads JSON in tests"),
    needed("qemu-system-x86", "runs the pure cgroup v2 virtual machine"),
    needed("e2fsprogs", "makes the virtual machine's disk"),
    needed("btrfs-progs", "a file system with quota groups to limit writable layers by"),
    needed("apparmor", "compiles a profile for it: its kernel has AppArmor on"),
    needed("binutils", "strips the programs that go on it"),
];

/// Installs what is missing. Without root or apt it says what it would have installed and goes on.
pub(crate) fn install() -> Result<()> {
    let missing: Vec<&Needed> = NEEDED.iter().filter(|needed| !is_installed(needed.package)).collect();
    if missing.is_empty() {
        println!("  all {} packages are installed", NEEDED.len());
        return Ok(());
    }
    for needed in &missing {
        println!("  missing: {} ({})", needed.package, needed.reason);
    }
    if !exists("apt-get") {
        println!("  no apt-get here: tests that need these will say so");
        return Ok(());
    }
    // A source that cannot be reached is no reason to give up: the packages may come from another.
    let _ = crate::command::succeeds(&mut apt("update -q"))?;
    let mut install = apt("install -q -y --no-install-recommends");
    demand(install.args(missing.iter().map(|needed| needed.package)))
}

fn is_installed(package: &str) -> bool {
    let query = command("dpkg-query", "--show --showformat=${Status}").arg(package).output();
    query.is_ok_and(|output| output.stdout == b"install ok installed")
}

fn apt(arguments: &str) -> Command {
    let mut apt = command("apt-get", arguments);
    // Services (the registry) must not be started: the tests run their own. invoke-rc.d starts none in runlevel 1.
    apt.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    apt
}
