//! CRIU from Debian 13, beside the system: Debian 12's does not know today's kernels.
//!
//! apt fetches the packages, CRIU's and those of every library of it, with lists and a state of its own, so that nothing
//! of the system's apt changes. They are unpacked in cargo's target folder, and run by their own dynamic loader.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::images;
use crate::needs;
use crate::world::succeed;

/// The release whose CRIU works on today's kernels.
const SUITE: &str = "trixie";

/// Where apt looks for the release's key.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The folder to put first on the search path, so that `criu` is found; says why when there is none.
pub fn folder() -> Option<PathBuf> {
    if !needs::root() || !needs::programs(&["apt-get", "dpkg-deb"]) {
        return None;
    }
    match get() {
        Ok(folder) => Some(folder),
        Err(error) => {
            needs::met(false, &format!("CRIU could not be fetched: {error:#}").replace('\n', " "));
            None
        }
    }
}

/// The search path with CRIU on it.
pub fn search_path(folder: &Path) -> String {
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default())
}

fn get() -> Result<PathBuf> {
    let folder = images::cache().join("criu-1");
    if folder.exists() {
        return Ok(folder);
    }
    let parent = folder.parent().context("the fixtures' folder has no parent")?;
    std::fs::create_dir_all(parent)?;
    let lock = File::create(parent.join("criu-lock"))?;
    lock.lock()?;
    if !folder.exists() {
        let partial = parent.join("criu-partial");
        let _ = std::fs::remove_dir_all(&partial);
        fetch(&partial)?;
        wrap(&partial, &folder)?;
        std::fs::rename(&partial, &folder)?;
    }
    Ok(folder)
}

fn fetch(folder: &Path) -> Result<()> {
    let apt = folder.join("apt");
    for name in ["etc", "state/lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(apt.join(name))?;
    }
    std::fs::write(apt.join("status"), "")?;
    let source = format!("deb [signed-by={KEYRING}] http://deb.debian.org/debian {SUITE} main\n");
    std::fs::write(apt.join("etc/sources.list"), source)?;
    apt_get(&apt, &["update"])?;
    apt_get(&apt, &["install", "--yes", "--no-install-recommends", "--download-only", "criu"])?;
    for package in std::fs::read_dir(apt.join("cache/archives"))? {
        let package = package?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            succeed(Command::new("dpkg-deb").arg("--extract").arg(package).arg(folder))?;
        }
    }
    std::fs::remove_dir_all(apt).context("removing apt's working files")
}

fn apt_get(folder: &Path, arguments: &[&str]) -> Result<()> {
    let at = |name: &str| folder.join(name).display().to_string();
    let mut command = Command::new("apt-get");
    for (option, value) in [
        ("Dir::Etc::sourcelist", at("etc/sources.list")),
        ("Dir::Etc::sourceparts", "/dev/null".into()),
        ("Dir::State", at("state")),
        ("Dir::State::status", at("status")),
        ("Dir::Cache", at("cache")),
        ("APT::Sandbox::User", "root".into()),
        ("Acquire::Languages", "none".into()),
        ("Acquire::Retries", "3".into()),
    ] {
        command.arg("--option").arg(format!("{option}={value}"));
    }
    command.env("DEBIAN_FRONTEND", "noninteractive");
    succeed(command.arg("--quiet").args(arguments)).map(drop)
}

/// The program by its own loader and libraries: the system's are older.
fn wrap(folder: &Path, final_folder: &Path) -> Result<()> {
    let usr = final_folder.join("usr");
    let usr = usr.display();
    let script = format!(
        "#!/bin/sh\nexec {usr}/lib64/ld-linux-x86-64.so.2 --library-path {usr}/lib/x86_64-linux-gnu {usr}/sbin/criu \"$@\"\n"
    );
    let path = folder.join("criu");
    std::fs::write(&path, script)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
        .context("making the script executable")
}
