//! What the compiler takes: one container, or one more process of it, as values.

use std::path::PathBuf;

use cofferdam_plan::{ContainerId, HostPath};
use oci_spec::runtime::{Process, Spec};

/// Where the root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rootfs {
    /// The directory that `root.path` names, relative to the bundle.
    Bundle,
    /// The layers of an image, uppermost first, under a writable layer.
    Overlay {
        /// Read-only layers, uppermost first.
        lower: Vec<Layer>,
        /// Writable layer.
        upper: PathBuf,
        /// Overlay's work directory, on the file system of `upper`.
        work: PathBuf,
        /// An empty directory on the host that the layers are stacked on, in the container's mount namespace alone.
        onto: PathBuf,
        /// A file with an ext4 file system, in whose root `upper` and `work` are.
        disk: Option<PathBuf>,
    },
    /// A directory with everything in it, this container's alone.
    Directory(PathBuf),
    /// The host's own root: a host command, isolated by cgroups and namespaces only.
    Host,
}

/// A read-only layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    /// A directory.
    Directory(PathBuf),
    /// A file with an EROFS image.
    Erofs(PathBuf),
}

/// What `start` has to wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gate {
    /// Nothing: the process goes on to the program at once.
    Open,
    /// A knock on a socket at this path.
    Socket(HostPath),
}

/// Who gets the master of the process's terminal, in the console slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Console {
    /// There is no terminal.
    #[default]
    None,
    /// Somebody who shows it as it is.
    Sent,
    /// Somebody who copies it to a terminal that ends lines by itself: this one leaves line ends alone.
    Fronted,
}

/// How the container's cgroup is managed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupManager {
    /// By the file system, here.
    #[default]
    Cgroupfs,
    /// By systemd, as a scope of its own; limits are written here all the same.
    Systemd,
    /// Not at all: the process stays where the caller is.
    Disabled,
}

/// One container to be planned.
#[derive(Debug, Clone)]
pub struct Container<'a> {
    /// Its id.
    pub id: &'a ContainerId,
    /// Its bundle directory, absolute.
    pub bundle: &'a std::path::Path,
    /// Its configuration.
    pub spec: &'a Spec,
    /// Where its root comes from.
    pub rootfs: &'a Rootfs,
    /// What it waits for.
    pub gate: Gate,
    /// Whether a socket for the terminal's master fills the console slot, and for whom.
    pub console: Console,
    /// Whether descriptors for standard input, output and error fill their slots.
    pub stdio: bool,
    /// How many descriptors from 3 up the program keeps.
    pub preserve_fds: u32,
    /// Do not pivot: the host's root is an initramfs.
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// How cgroups are managed.
    pub cgroup_manager: CgroupManager,
}

/// One more process of a running container.
#[derive(Debug, Clone)]
pub struct Joining<'a> {
    /// The container's configuration, as it was created.
    pub spec: &'a Spec,
    /// Its id.
    pub id: &'a ContainerId,
    /// Its first process.
    pub init_pid: i32,
    /// Its bundle directory.
    pub bundle: &'a std::path::Path,
    /// Whether the namespaces are lent by the first process, which is still ours and lets nobody but root look into it, and
    /// fill the slots of [`crate::compile::lent`]; otherwise they are joined by its pidfd.
    pub lent: bool,
    /// The process to start.
    pub process: &'a Process,
    /// What it executes, where that is not its first argument (hooks).
    pub program: Option<&'a str>,
    /// As in [`Container`].
    pub console: Console,
    /// As in [`Container`].
    pub stdio: bool,
    /// As in [`Container`].
    pub preserve_fds: u32,
    /// The container's cgroup, as its state says; `None` leaves the process where the caller is.
    pub cgroup: Option<&'a str>,
    /// Whether a process was let in that may trace, which the container's own may not.
    pub tracers: bool,
    /// Cgroups below it that the process goes to: `PATH`, or `CONTROLLER:PATH`.
    pub below: &'a [String],
}
