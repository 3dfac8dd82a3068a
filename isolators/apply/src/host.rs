//! The host stage: what the parent prepares before the process exists.

use std::os::fd::OwnedFd;

use cofferdam_linux::cgroup::{Cgroup, Layout};
use cofferdam_linux::image_file::{self, Access};
use cofferdam_linux::mount;
use cofferdam_plan::{HostPath, ImageKind, Namespace, Op};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt,
};

use crate::applied::Run;
use crate::stack::Stack;

/// Makes a cgroup in these hierarchies, beside what of it there is in others; the first of it is claimed.
pub fn create_cgroup(
    made: &mut Option<Cgroup>,
    layout: &Layout,
    path: &str,
    claim: impl FnOnce(&Cgroup) -> Result<(), cofferdam_linux::cgroup::Error>,
) -> Result<(), cofferdam_linux::cgroup::Error> {
    if let Some(cgroup) = made {
        return cgroup.extend_in(layout, path);
    }
    let cgroup = Cgroup::create_in(layout, path)?;
    claim(&cgroup)?;
    *made = Some(cgroup);
    Ok(())
}

/// An error number, with words where a number is not enough.
pub(crate) type Outcome = Result<(), (Errno, Option<String>)>;

pub(crate) fn run(run: &mut Run<'_>, op: &Op) -> Outcome {
    match op {
        Op::CloneTree { source, recursive, no_follow, into } => {
            let tree = clone_tree(source, *recursive, *no_follow).map_err(plain)?;
            run.table.set(*into, tree);
        }
        Op::OpenNamespace { kind, path, foreign, into } => {
            let namespace = open_namespace(*kind, path)?;
            if *foreign {
                refuse_own(&namespace, *kind, path)?;
            }
            run.table.set(*into, namespace);
        }
        Op::CreateCgroup { path, delegated, within } => {
            let layout = if *delegated { &run.cgroups.delegated() } else { run.cgroups };
            let claim = |made: &Cgroup| run.attendant.claim(made);
            create_cgroup(&mut run.cgroup, &layout.of_kinds(within.kinds()), path, claim)
                .map_err(cgroup_words)?;
        }
        Op::OpenCgroup { path, below } => {
            run.cgroup = Some(Cgroup::open_below(run.cgroups, path, below).map_err(cgroup_words)?);
        }
        Op::WriteCgroup(write) => {
            let cgroup = run.cgroup.as_ref().ok_or((Errno::INVAL, None))?;
            cgroup
                .write(&write.controller, &write.file, &write.value, write.optional)
                .map_err(cgroup_words)?;
        }
        Op::DelegateCgroup { uid, gid } => {
            let cgroup = run.cgroup.as_ref().ok_or((Errno::INVAL, None))?;
            cgroup.delegate(*uid, *gid).map_err(cgroup_words)?;
        }
        Op::FilterDevices { program } => {
            let cgroup = run.cgroup.as_ref().ok_or((Errno::INVAL, None))?;
            cgroup.filter_devices(program).map_err(cgroup_words)?;
        }
        Op::ConnectListener { path, into } => {
            let socket = connect_listener(path)?;
            run.table.set(*into, socket);
        }
        Op::ListenGate { path, into } => {
            let socket = listen_gate(path)?;
            run.table.set(*into, socket);
        }
        Op::EnterClass { root, class, own, make, schemata } => {
            crate::resctrl::enter_class(root, class, *own, *make, schemata)?;
        }
        Op::MakeMonitor { group } => crate::resctrl::make_monitor(group)?,
        Op::BeginOn { cpus } => run.begin_on = Some(cpus.clone()),
        Op::MakeUserNamespace { uids, gids, into } => {
            let (uids, gids) = (crate::attach::lines(uids), crate::attach::lines(gids));
            let namespace = cofferdam_linux::namespace::new_user_namespace(&uids, &gids).map_err(plain)?;
            run.table.set(*into, namespace);
        }
        Op::MountImage { kind, path, into } => {
            let (name, access) = match kind {
                ImageKind::Erofs => (c"erofs", Access::ReadOnly),
                ImageKind::Ext4 => (c"ext4", Access::ReadWrite),
            };
            let tree =
                image_file::mount(name, path.as_c_str(), access).map_err(|errno| unmountable(errno, path))?;
            run.table.set(*into, tree);
        }
        Op::Overlay { form, lower, upper, work, into } => {
            let tree = Stack { lower, upper, work }.mount(&run.table, form).map_err(plain)?;
            run.table.set(*into, tree);
        }
        Op::MapTree { tree, user, recursive } => {
            let user = Some(run.table.get(*user).map_err(plain)?);
            let tree = run.table.get(*tree).map_err(plain)?;
            mount::set_attributes(tree, mount::IDMAP, 0, 0, *recursive, user).map_err(unmappable)?;
        }
        _ => return Err((Errno::NOSYS, Some("not an operation of the host stage".into()))),
    }
    Ok(())
}

pub(crate) fn cgroup_words(error: cofferdam_linux::cgroup::Error) -> (Errno, Option<String>) {
    (error.errno(), Some(error.to_string()))
}

/// A detached copy of a mount tree. *Child-safe.*
pub(crate) fn clone_tree(source: &HostPath, recursive: bool, no_follow: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    flags.set(OpenTreeFlags::AT_SYMLINK_NOFOLLOW, no_follow);
    open_tree(CWD, source.as_c_str(), flags)
}

fn unmountable(errno: Errno, path: &HostPath) -> (Errno, Option<String>) {
    let words = match errno {
        Errno::NODEV => Some(format!("the kernel does not know the file system in {path}")),
        Errno::NOENT => Some(format!("{path}, or a loop device for it, is not there")),
        _ => None,
    };
    (errno, words)
}

/// `EINVAL` is all that the kernel says.
pub(crate) fn unmappable(errno: Errno) -> (Errno, Option<String>) {
    let words = "the file system of the source takes no id mapping, or has one already";
    (errno, (errno == Errno::INVAL).then(|| words.to_owned()))
}

pub(crate) fn plain(errno: Errno) -> (Errno, Option<String>) {
    (errno, None)
}

/// Opens a namespace by path and makes sure that it is one, of the kind expected: a path is only a claim.
fn open_namespace(kind: Namespace, path: &HostPath) -> Result<OwnedFd, (Errno, Option<String>)> {
    use std::os::fd::AsFd;
    let fd = open(path.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .map_err(plain)?;
    match cofferdam_linux::process::namespace_kind(fd.as_fd()) {
        Ok(found) if found == kind.flag() => Ok(fd),
        Ok(_) => Err((Errno::INVAL, Some(format!("{path} is a namespace, but not of kind {}", kind.file())))),
        Err(_) => Err((Errno::INVAL, Some(format!("{path} is not a namespace")))),
    }
}

/// What the container changes in a namespace that it joins must not be changed for the host.
fn refuse_own(namespace: &OwnedFd, kind: Namespace, path: &HostPath) -> Result<(), (Errno, Option<String>)> {
    let joined = rustix::fs::fstat(namespace).map_err(plain)?;
    let own = rustix::fs::stat(format!("/proc/thread-self/ns/{}", kind.file())).map_err(plain)?;
    if (joined.st_dev, joined.st_ino) != (own.st_dev, own.st_ino) {
        return Ok(());
    }
    let words = format!("{path} is the host's own: its kernel parameters are not the container's to set");
    Err((Errno::PERM, Some(words)))
}

/// The socket is reached through its directory's descriptor, so the state root may be deeper than `sun_path` is long.
fn listen_gate(path: &HostPath) -> Result<OwnedFd, (Errno, Option<String>)> {
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(plain)?;
    let (_directory, address) = gate_address(path.as_path()).map_err(plain)?;
    bind(&socket, &address).map_err(plain)?;
    listen(&socket, 1).map_err(plain)?;
    Ok(socket)
}

/// How long whoever supervises system calls may take to accept a connection, and later to take the descriptor, in seconds.
/// They answer in microseconds or are stuck; a container that waits for them for ever could not even be deleted by name.
const LISTENER_SECONDS: u64 = 5;

fn connect_listener(path: &HostPath) -> Result<OwnedFd, (Errno, Option<String>)> {
    let failed = |errno| match errno {
        // What SO_SNDTIMEO makes of a full backlog.
        Errno::AGAIN => (Errno::TIMEDOUT, Some(format!("nobody accepted on {path} in {LISTENER_SECONDS} s"))),
        errno => (errno, Some("failed to connect with seccomp agent".to_owned())),
    };
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(plain)?;
    let limit = std::time::Duration::from_secs(LISTENER_SECONDS);
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(limit)).map_err(plain)?;
    let (_directory, address) = gate_address(path.as_path()).map_err(plain)?;
    connect(&socket, &address).map_err(failed)?;
    Ok(socket)
}

/// The address of a gate and the descriptor that must stay open while it is used.
pub(crate) fn gate_address(path: &std::path::Path) -> Result<(OwnedFd, SocketAddrUnix), Errno> {
    use std::os::fd::AsRawFd;
    let (directory, name) = path.parent().zip(path.file_name()).ok_or(Errno::INVAL)?;
    let directory = open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let address = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), name.to_string_lossy());
    Ok((directory, SocketAddrUnix::new(address)?))
}
