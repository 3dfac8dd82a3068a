//! The readiness protocol of service managers, sd_notify(3), across a container's walls.
//!
//! ```text
//! manager  <- READY, MAINPID -  start/run  <- READY -  ROOT/ID/notify/notify.sock = /run/notify/notify.sock in the container
//! ```
//!
//! The manager's socket itself is not given away: whoever has it can say anything in the name of the service.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use cofferdam_plan::ContainerId;
use oci_spec::runtime::{Mount, Spec};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, openat2, unlinkat};
use rustix::io::Errno;

use crate::error::Error;
use crate::runtime::Runtime;
use crate::state::{Record, file_error};

/// Where the container finds the socket.
const INSIDE: &str = "/run/notify";

/// The variable that names the socket.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// Largest message that is read, in bytes.
const MESSAGE_MAX_BYTES: usize = 4096;

/// The manager's socket, as this process's environment names it.
pub fn manager() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// A socket that the container's program tells its readiness on.
#[derive(Debug)]
pub struct Readiness {
    socket: UnixDatagram,
    manager: PathBuf,
}

impl Runtime {
    /// Gives a container to be a folder for the socket, and tells its program.
    pub fn announce_readiness(&self, id: &ContainerId, spec: &mut Spec) {
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        let mut mount = Mount::default();
        let options = ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned);
        mount
            .set_destination(INSIDE.into())
            .set_typ(Some("bind".to_owned()))
            .set_source(Some(folder(&self.directory(id))))
            .set_options(Some(options.into()));
        mounts.push(mount);
        spec.set_mounts(Some(mounts));
        if let Some(process) = spec.process_mut() {
            let mut env = process.env().clone().unwrap_or_default();
            env.push(format!("{VARIABLE}={INSIDE}/notify.sock"));
            process.set_env(Some(env));
        }
    }

    /// Listens for a created container that has a folder for it.
    pub fn listen_for_readiness(
        &self,
        id: &ContainerId,
        manager: PathBuf,
    ) -> Result<Option<Readiness>, Error> {
        let folder = folder(&self.directory(id));
        let Ok(opened) = std::fs::File::open(&folder) else { return Ok(None) };
        // Through the directory's descriptor: the state root may be deeper than a socket address is long.
        let path = PathBuf::from(format!("/proc/self/fd/{}/notify.sock", opened.as_raw_fd()));
        let failed = |error: std::io::Error| file_error("listening in", &folder, &error);
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).map_err(failed)?;
        // Whatever user the program runs as.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).map_err(failed)?;
        Ok(Some(Readiness { socket, manager }))
    }

    /// A descriptor of a container's first process and its pid, while it lives.
    pub fn first_process(&self, id: &ContainerId) -> Result<Option<(i32, OwnedFd)>, Error> {
        let record = Record::load(&self.directory(id), id.as_str())?;
        Ok(record.process().map(|process| (record.pid, process)))
    }
}

/// Makes the folder, where the container's configuration mounts it.
pub(crate) fn make_folder(directory: &Path, spec: &Spec) -> Result<(), Error> {
    let folder = folder(directory);
    let wanted = |mount: &Mount| mount.source().as_ref() == Some(&folder);
    if !spec.mounts().iter().flatten().any(wanted) {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .mode(0o755)
        .create(&folder)
        .map_err(|error| file_error("making", &folder, &error))
}

fn folder(directory: &Path) -> PathBuf {
    directory.join("notify")
}

/// Removes the socket from the folder in a container's `directory`. What somebody has mounted there is not looked into.
pub(crate) fn remove_socket(directory: impl AsFd) {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(folder) = openat2(directory, c"notify", flags, Mode::empty(), resolve) {
        let _ = unlinkat(folder, c"notify.sock", AtFlags::empty());
    }
}

impl Readiness {
    /// Waits until the program is ready or gone, and tells the manager, also which process is the service.
    pub fn pass_on(&self, process: &OwnedFd, main_pid: Option<i32>) -> Result<(), Errno> {
        loop {
            let mut descriptors = [
                PollFd::new(&self.socket, PollFlags::IN),
                PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN),
            ];
            match poll(&mut descriptors, None) {
                Err(Errno::INTR) => continue,
                result => result?,
            };
            if descriptors[0].revents().is_empty() {
                return Ok(());
            }
            let mut bytes = [0; MESSAGE_MAX_BYTES];
            let count = rustix::net::recv(&self.socket, &mut bytes, rustix::net::RecvFlags::empty())?.0;
            let message = String::from_utf8_lossy(&bytes[..count]).into_owned();
            // Nothing else of what it says is passed on: it could speak for the whole service.
            if let Some(ready) = message.lines().find(|line| line.starts_with("READY=")) {
                self.tell(&format!("{ready}\n"))?;
                return main_pid.map_or(Ok(()), |pid| self.tell(&format!("MAINPID={pid}")));
            }
        }
    }

    fn tell(&self, message: &str) -> Result<(), Errno> {
        let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let name = self.manager.as_os_str().as_bytes();
        let address = match name.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&self.manager),
        };
        let socket = UnixDatagram::unbound().map_err(failed)?;
        socket.send_to_addr(message.as_bytes(), &address.map_err(failed)?).map(drop).map_err(failed)
    }
}
