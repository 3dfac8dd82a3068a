//! An ordinary user of the machine, who exists in the calling thread's [`crate::world::World`] only.
//!
//! The user database and the ranges of subordinate ids are copies with one more entry, mounted over the machine's own in the
//! world's mount namespace: the machine never hears of him.

use std::os::unix::fs::{PermissionsExt, chown, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::mount::MsFlags;

use crate::oci::Runtime;

/// His user and group id.
pub const ID: u32 = 54_321;

/// The first of the ids that /etc/subuid and /etc/subgid give him.
pub const FIRST_SUBORDINATE: u32 = 5_432_100;

/// How many they are.
pub const SUBORDINATES: u32 = 65_536;

/// His name.
const NAME: &str = "cofferdam-user";

/// The user, with his home and his runtime folder.
#[derive(Debug)]
pub struct User {
    home: PathBuf,
}

impl User {
    /// Makes him and his folders, below the world's own `/tmp`.
    pub fn make() -> Result<User> {
        let user = User { home: PathBuf::from("/tmp/home") };
        for folder in [user.home.clone(), user.runtime_folder()] {
            std::fs::create_dir_all(&folder)?;
            chown(&folder, Some(ID), Some(ID))?;
            std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o700))?;
        }
        let home = user.home.display();
        append("passwd", &format!("{NAME}:x:{ID}:{ID}::{home}:/bin/sh\n"))?;
        append("group", &format!("{NAME}:x:{ID}:\n"))?;
        for file in ["subuid", "subgid"] {
            append(file, &format!("{NAME}:{FIRST_SUBORDINATE}:{SUBORDINATES}\n"))?;
        }
        Ok(user)
    }

    /// His home.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// His XDG_RUNTIME_DIR.
    pub fn runtime_folder(&self) -> PathBuf {
        self.home.join("run")
    }

    /// Gives him a folder with all that is in it.
    pub fn give(&self, folder: &Path) -> Result<()> {
        lchown(folder, Some(ID), Some(ID)).with_context(|| format!("giving {}", folder.display()))?;
        if folder.symlink_metadata()?.is_dir() {
            for entry in std::fs::read_dir(folder)? {
                self.give(&entry?.path())?;
            }
        }
        Ok(())
    }

    /// A program that he starts, with his environment and nothing else.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .uid(ID)
            .gid(ID)
            .env_clear()
            .env("HOME", &self.home)
            .env("XDG_RUNTIME_DIR", self.runtime_folder())
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .current_dir(&self.home)
            .stdin(Stdio::null());
        command
    }

    /// A copy of a program where he can reach it.
    pub fn program(&self, source: &Path) -> Result<PathBuf> {
        let place = self.home.join(source.file_name().unwrap_or_default());
        if !place.exists() {
            std::fs::copy(source, &place).with_context(|| format!("copying {}", source.display()))?;
        }
        Ok(place)
    }

    /// A call of an OCI runtime by him, with the state folder that the runtime chooses.
    pub fn call(&self, runtime: &Runtime, arguments: &[&str]) -> Result<Command> {
        let mut command = self.command(self.program(runtime.program())?);
        command.args(arguments);
        Ok(command)
    }
}

/// A copy of a file of /etc with one more line, over the file.
fn append(file: &str, line: &str) -> Result<()> {
    let (own, copy) = (Path::new("/etc").join(file), Path::new("/tmp").join(file));
    let before = std::fs::read_to_string(&own).unwrap_or_default();
    if !own.exists() {
        std::fs::write(&own, "")?;
    }
    std::fs::write(&copy, before + line)?;
    nix::mount::mount(Some(&copy), &own, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("mounting over {}", own.display()))
}
