//! Control groups: a container's cgroup in every hierarchy of this host, as one value.
//!
//! | operation | version 1 | version 2 |
//! |---|---|---|
//! | create | mkdir in each hierarchy, cpuset inherited | mkdir, controllers switched on level by level |
//! | attach | the process itself, through [`Cgroup::doors`] | clone3 straight into [`Cgroup::directory`] |
//! | freeze | `freezer.state` | `cgroup.freeze` |
//! | kill | the freezer holds them, SIGKILL each, thaw | `cgroup.kill` |
//! | devices | `devices.allow`, `devices.deny` | an eBPF program, [`Cgroup::filter_devices`] |
//!
//! Directories are opened once, below the mount point, on one file system and through no link; every file is reached from
//! them. Everything runs in the parent, with the privileges that writing to the hierarchies takes; nothing here is child-safe.
//!
//! Read first: [`Layout`] (which world is this), then this file; `lifecycle` (freeze, kill, remove), `statistics`, `oom`.

mod layout;
mod lifecycle;
mod oom;
mod owner;
mod place;
mod statistics;

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

pub use layout::{Hierarchy, Layout, Unified};
pub use oom::OomWatch;
pub use statistics::{
    BlockIo, CpuStatistics, HugetlbStatistics, MemoryStatistics, PidsStatistics, Pressure, PressureLine,
    Statistics,
};

use crate::bpf;
use place::{Place, Site};

/// Why a cgroup could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("{operation} {path}: {errno}", path = path.display())]
    Call {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A write was refused.
    #[error("write {value:?} to {path}: {errno}{hint}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// The kernel's answer.
        errno: Errno,
        /// What may be behind it; empty, or starts with a colon.
        hint: String,
    },
    /// No hierarchy on this host has the controller.
    #[error("no cgroup hierarchy here has the {controller} controller, which {file} needs")]
    NoController {
        /// The controller.
        controller: String,
        /// The file that was to be written.
        file: String,
    },
    /// A controller that was named, and that no hierarchy has in which the container has a cgroup.
    #[error("unknown controller {controller}: the container's cgroup is in no hierarchy that has it")]
    UnknownController {
        /// The controller.
        controller: String,
    },
    /// A cgroup that is to be made is there and in use.
    #[error("container's cgroup is not empty: cgroup {path} holds {processes} processes already", path = path.display())]
    NotEmpty {
        /// The cgroup.
        path: PathBuf,
        /// How many.
        processes: usize,
    },
    /// A cgroup that is to be made is there and frozen: whoever enters it stops for good.
    #[error("container's cgroup unexpectedly frozen: cgroup {path}", path = path.display())]
    Frozen {
        /// The cgroup.
        path: PathBuf,
    },
    /// A cgroup that is to be made is another container's.
    #[error("cgroup {path} is that of the container in {owner}: delete it first, or choose another cgroup", path = path.display(), owner = owner.display())]
    Owned {
        /// The cgroup.
        path: PathBuf,
        /// The container's state folder.
        owner: PathBuf,
    },
    /// The mount point is not of the file system that mountinfo says.
    #[error("{path} is not a cgroup file system", path = path.display())]
    NotCgroup {
        /// The mount point.
        path: PathBuf,
    },
    /// The path cannot name a cgroup.
    #[error("cgroup path {path:?}: {problem}")]
    Path {
        /// As it was given.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// What was waited for did not come.
    #[error("{operation} {path}: not done after {limit_ms} ms", path = path.display())]
    Timeout {
        /// What was waited for.
        operation: &'static str,
        /// In which cgroup.
        path: PathBuf,
        /// How long.
        limit_ms: u64,
    },
    /// The host has no cgroups at all.
    #[error("no cgroup hierarchy is mounted")]
    None,
    /// Several hierarchies failed; the first comes first.
    #[error("{}", list(.0))]
    Several(Vec<Error>),
}

fn list(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Error {
    fn call(operation: &'static str, path: impl Into<PathBuf>, errno: Errno) -> Self {
        Self::Call { operation, path: path.into(), errno }
    }

    fn io(operation: &'static str, path: impl Into<PathBuf>, error: &std::io::Error) -> Self {
        Self::call(operation, path, Errno::from_io_error(error).unwrap_or(Errno::IO))
    }

    fn all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }

    /// The error number that comes nearest.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Call { errno, .. } | Self::Write { errno, .. } => *errno,
            Self::NoController { .. } | Self::UnknownController { .. } => Errno::OPNOTSUPP,
            Self::NotEmpty { .. } | Self::Frozen { .. } | Self::Owned { .. } => Errno::BUSY,
            Self::NotCgroup { .. } | Self::Path { .. } => Errno::INVAL,
            Self::Timeout { .. } => Errno::TIMEDOUT,
            Self::None => Errno::NODEV,
            Self::Several(errors) => errors.first().map_or(Errno::IO, Self::errno),
        }
    }
}

/// A container's cgroup: one directory in each hierarchy.
#[derive(Debug)]
pub struct Cgroup {
    places: Vec<Place>,
}

impl Cgroup {
    /// Makes the cgroup in every hierarchy of this host.
    ///
    /// A `path` that starts with `/` is taken from the root of each hierarchy, another from our own cgroup in it
    /// (runtime-spec, config-linux.md, "Cgroups Path"). One that exists is taken over if it is empty.
    ///
    /// # Errors
    /// [`Error::NotEmpty`] and [`Error::Frozen`] for one that is in use; what was made until then is removed again.
    pub fn create(path: &str) -> Result<Self, Error> {
        Self::create_in(&Layout::probe()?, path)
    }

    /// As [`Cgroup::create`], on a layout probed before.
    ///
    /// # Errors
    /// As [`Cgroup::create`].
    pub fn create_in(layout: &Layout, path: &str) -> Result<Self, Error> {
        let mut created = Self { places: Vec::new() };
        let mut ours = Vec::new();
        for site in sites(layout, path)? {
            let result = site.make().and_then(|(place, made)| {
                let usable = if made { Ok(()) } else { unused(&place) };
                ours.push(made);
                created.places.push(place);
                usable
            });
            if let Err(error) = result {
                // Strangers' cgroups stay: only what was made here goes.
                let mut made = ours.iter();
                created.places.retain(|_| *made.next().unwrap_or(&false));
                let _ = created.remove();
                return Err(error);
            }
        }
        Ok(created)
    }

    /// Opens the cgroup where it exists; hierarchies that lack it are left out.
    ///
    /// # Errors
    /// `ENOENT` where no hierarchy has it.
    pub fn open(path: &str) -> Result<Self, Error> {
        Self::open_in(&Layout::probe()?, path)
    }

    /// As [`Cgroup::open`], on a layout probed before.
    ///
    /// # Errors
    /// As [`Cgroup::open`].
    pub fn open_in(layout: &Layout, path: &str) -> Result<Self, Error> {
        let mut places = Vec::new();
        for site in sites(layout, path)? {
            match site.open() {
                Ok(place) => places.push(place),
                Err(error) if error.errno() == Errno::NOENT => {}
                Err(error) => return Err(error),
            }
        }
        if places.is_empty() {
            Err(Error::call("open cgroup", path, Errno::NOENT))
        } else {
            Ok(Self { places })
        }
    }

    /// Opens the cgroup where it exists, but a cgroup below it in the hierarchies of the controllers that are listed with a
    /// path; an empty controller stands for every hierarchy, an empty path for the cgroup itself.
    ///
    /// # Errors
    /// As [`Cgroup::open`]; `ENOENT` also where a cgroup below is missing; [`Error::UnknownController`].
    pub fn open_below(layout: &Layout, path: &str, below: &[(String, String)]) -> Result<Self, Error> {
        let mut cgroup = Self::open_in(layout, path)?;
        for (controller, name) in below {
            let wanted = |place: &Place| controller.is_empty() || place.controllers.contains(controller);
            if !cgroup.places.iter().any(wanted) {
                return Err(Error::UnknownController { controller: controller.clone() });
            }
            if name.is_empty() {
                continue;
            }
            let inner = format!("{path}/{name}");
            // In words that runc's callers know.
            let missing = || Error::call("adding pid to cgroup", &inner, Errno::NOENT);
            let mut found = Self::open_in(layout, &inner).map_err(|error| match error.errno() {
                Errno::NOENT => missing(),
                _ => error,
            })?;
            for place in cgroup.places.iter_mut().filter(|place| wanted(place)) {
                let same =
                    |other: &Place| other.unified == place.unified && other.controllers == place.controllers;
                let at = found.places.iter().position(same).ok_or_else(missing)?;
                *place = found.places.swap_remove(at);
            }
        }
        Ok(cgroup)
    }

    /// Whether the cgroup at `path` is frozen or about to be, looking at the one hierarchy that knows.
    ///
    /// # Errors
    /// `ENOENT` where it is not there, and as [`Cgroup::is_frozen`].
    pub fn is_frozen_in(layout: &Layout, path: &str) -> Result<bool, Error> {
        let sites = sites(layout, path)?;
        let freezer = |site: &&Site<'_>| site.controllers.iter().any(|controller| controller == "freezer");
        let site = sites.iter().find(freezer).or_else(|| sites.iter().find(|site| site.unified));
        site.map_or(Ok(false), |site| Self { places: vec![site.open()?] }.is_frozen())
    }

    /// Writes `value` to `file` in the hierarchy of `controller`; an empty controller means the version 2 tree. An
    /// `optional` write is passed over where the hierarchy or the file is missing.
    ///
    /// # Errors
    /// [`Error::NoController`], or [`Error::Write`] with the kernel's answer.
    pub fn write(&self, controller: &str, file: &str, value: &str, optional: bool) -> Result<(), Error> {
        let Some(place) = self.place(controller) else {
            let controller = if controller.is_empty() { "unified" } else { controller };
            let missing = Error::NoController { controller: controller.to_owned(), file: file.to_owned() };
            return if optional { Ok(()) } else { Err(missing) };
        };
        match place.write(file, value) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT | Errno::OPNOTSUPP) if optional => Ok(()),
            Err(errno) => Err(Error::Write {
                path: place.path.join(file),
                value: value.to_owned(),
                errno,
                hint: hint(place, file, errno),
            }),
        }
    }

    /// Reads a whole file of the hierarchy of `controller`; an empty controller means the version 2 tree.
    ///
    /// # Errors
    /// [`Error::NoController`], or the kernel's answer.
    pub fn read(&self, controller: &str, file: &str) -> Result<String, Error> {
        let Some(place) = self.place(controller) else {
            return Err(Error::NoController { controller: controller.to_owned(), file: file.to_owned() });
        };
        place.read(file).map_err(|errno| place.failed("read", file, errno))
    }

    /// Makes the cgroup in the hierarchies of `layout` as well, as [`Cgroup::create_in`] does.
    ///
    /// # Errors
    /// As [`Cgroup::create_in`]; what was there before stays.
    pub fn extend_in(&mut self, layout: &Layout, path: &str) -> Result<(), Error> {
        self.places.append(&mut Self::create_in(layout, path)?.places);
        Ok(())
    }

    /// Moves a process into the version 2 cgroup, where there is one. That waits until every processor of the host has been
    /// through the scheduler, up to 20 ms: a process that is cloned into the cgroup costs nothing of the kind.
    ///
    /// # Errors
    /// The kernel's answer; `ESRCH` where the process is gone.
    pub fn attach_unified(&self, pid: i32) -> Result<(), Error> {
        self.place("").map_or(Ok(()), |place| {
            let failed = |errno| place.failed("attach to", "cgroup.procs", errno);
            place.write("cgroup.procs", &pid.to_string()).map_err(failed)
        })
    }

    /// The doors to the version 1 cgroups: a process of one thread that writes `0` to each has moved itself. Alone among the
    /// ways into a cgroup this one waits for nobody: the kernel knows that a thread which moves itself neither ends nor
    /// executes meanwhile, and does not stop all others from doing so. It may be written to by whoever holds it, whatever
    /// rights and root directory he has by then.
    ///
    /// # Errors
    /// Where one cannot be opened.
    pub fn doors(&self) -> Result<Vec<OwnedFd>, Error> {
        let open = |place: &Place| {
            place
                .open("tasks", rustix::fs::OFlags::WRONLY)
                .map_err(|errno| place.failed("open", "tasks", errno))
        };
        self.legacy().map(open).collect()
    }

    /// Where the door of this number leads, for messages.
    #[must_use]
    pub fn behind(&self, door: usize) -> Option<PathBuf> {
        self.legacy().nth(door).map(|place| place.path.clone())
    }

    fn legacy(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(|place| !place.unified)
    }

    /// The directory in the version 2 tree, for clone3 with `CLONE_INTO_CGROUP`.
    ///
    /// # Errors
    /// [`Error::NoController`] on a host without that tree.
    pub fn directory(&self) -> Result<OwnedFd, Error> {
        let place = self.unified("clone into the cgroup")?;
        place.directory().try_clone_to_owned().map_err(|error| Error::io("dup", &place.path, &error))
    }

    /// Puts a device program in force on the version 2 cgroup, or puts it in the place of the one that is, in one step.
    ///
    /// # Errors
    /// What the verifier or the kernel says.
    pub fn filter_devices(&self, program: &[u64]) -> Result<(), Error> {
        let place = self.unified("device program")?;
        bpf::put_device_program(place.directory(), program)
            .map_err(|(operation, errno)| place.failed(operation, "", errno))
    }

    /// Gives the version 2 cgroup to somebody: its directory, so that he may make others below it, and the files that the
    /// kernel says may be given away (cgroups(7), "Cgroups delegation: delegating a hierarchy to a less privileged user").
    ///
    /// # Errors
    /// [`Error::NoController`] on a host without that tree, or the kernel's answer.
    pub fn delegate(&self, uid: u32, gid: u32) -> Result<(), Error> {
        use rustix::fs::{AtFlags, Gid, Uid, chownat, fchown};
        /// What kernels before 4.15, which have no list, allow.
        const OLDEST: &str = "cgroup.procs cgroup.subtree_control cgroup.threads";
        let place = self.unified("delegation")?;
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        fchown(place.directory(), owner.0, owner.1).map_err(|errno| place.failed("chown", "", errno))?;
        let listed = std::fs::read_to_string("/sys/kernel/cgroup/delegate");
        for file in listed.as_deref().unwrap_or(OLDEST).split_whitespace().filter(|file| !file.contains('/'))
        {
            match chownat(place.directory(), file, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW) {
                // Its controller is not switched on here.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(place.failed("chown", file, errno)),
            }
        }
        Ok(())
    }

    /// All processes of the cgroup and of those below it, sorted.
    ///
    /// # Errors
    /// Where a list cannot be read.
    pub fn processes(&self) -> Result<Vec<i32>, Error> {
        let mut all = Vec::new();
        for place in self.unified_first() {
            let found = place.processes().map_err(|errno| place.failed("read", "cgroup.procs", errno))?;
            all.extend(found);
            if !all.is_empty() {
                break; // every process is in every hierarchy
            }
        }
        Ok(all)
    }

    /// Whether any hierarchy still has the cgroup.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.present().next().is_some()
    }

    /// The cgroup's directory by controller (`name=…` for named hierarchies, empty for the version 2 tree), as runc's state
    /// file lists them.
    pub fn paths(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.places.iter().flat_map(|place| {
            let unified = place.unified.then_some("");
            place
                .controllers
                .iter()
                .map(String::as_str)
                .chain(unified)
                .map(|name| (name, place.path.as_path()))
        })
    }

    /// The version 2 directory first: it lists fastest and kills best.
    fn unified_first(&self) -> impl Iterator<Item = &Place> {
        let unified = self.places.iter().filter(|place| place.unified);
        let others = self.places.iter().filter(|place| !place.unified);
        unified.chain(others)
    }

    fn present(&self) -> impl Iterator<Item = &Place> {
        self.unified_first().filter(|place| place.exists())
    }

    fn place(&self, controller: &str) -> Option<&Place> {
        self.places.iter().find(|place| match controller {
            "" => place.unified,
            name => place.controllers.iter().any(|known| known == name),
        })
    }

    /// Whether it has a directory in the version 2 tree.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.place("").is_some()
    }

    fn unified(&self, purpose: &str) -> Result<&Place, Error> {
        self.place("")
            .ok_or_else(|| Error::NoController { controller: "unified".into(), file: purpose.to_owned() })
    }
}

/// Where the cgroup lies in each hierarchy.
fn sites<'a>(layout: &'a Layout, path: &str) -> Result<Vec<Site<'a>>, Error> {
    let components = components(path)?;
    let from = |own: &str| -> Result<Vec<CString>, Error> {
        let mut all = if path.starts_with('/') { Vec::new() } else { self::components_or_root(own)? };
        all.extend(components.iter().cloned());
        Ok(all)
    };
    let mut sites = Vec::new();
    for hierarchy in &layout.v1 {
        sites.push(Site {
            controllers: hierarchy.controllers.clone(),
            unified: false,
            mount_point: &hierarchy.mount_point,
            components: from(&hierarchy.own_path)?,
        });
    }
    if let Some(unified) = &layout.unified {
        let components = from(&unified.own_path)?;
        sites.push(Site {
            controllers: Vec::new(),
            unified: true,
            mount_point: &unified.mount_point,
            components,
        });
    }
    if sites.is_empty() { Err(Error::None) } else { Ok(sites) }
}

fn components_or_root(path: &str) -> Result<Vec<CString>, Error> {
    if path.trim_matches('/').is_empty() { Ok(Vec::new()) } else { components(path) }
}

/// A last line of defence: paths are cleaned and checked where the configuration is read.
fn components(path: &str) -> Result<Vec<CString>, Error> {
    let refuse = |problem| Err(Error::Path { path: path.to_owned(), problem });
    let mut names = Vec::new();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        if name == "." || name == ".." {
            return refuse("holds . or ..");
        }
        let Ok(name) = CString::new(name) else { return refuse("holds a NUL byte") };
        names.push(name);
    }
    if names.is_empty() { refuse("names the root of the hierarchy") } else { Ok(names) }
}

/// Refuses a cgroup that existed before and is in use.
fn unused(place: &Place) -> Result<(), Error> {
    let processes = place.processes().map_err(|errno| place.failed("read", "cgroup.procs", errno))?.len();
    if processes > 0 {
        return Err(Error::NotEmpty { path: place.path.clone(), processes });
    }
    let frozen = if place.unified {
        place.read("cgroup.freeze").is_ok_and(|state| state.trim() == "1")
    } else {
        place.read("freezer.state").is_ok_and(|state| state.trim() != "THAWED")
    };
    if frozen { Err(Error::Frozen { path: place.path.clone() }) } else { Ok(()) }
}

/// What lies behind the kernel's terser answers.
fn hint(place: &Place, file: &str, errno: Errno) -> String {
    match errno {
        Errno::NOENT if place.unified => {
            let controller = file.split('.').next().unwrap_or(file);
            format!(": is the {controller} controller switched on in the parent's cgroup.subtree_control?")
        }
        Errno::BUSY if file.starts_with("memory.") && file.ends_with("limit_in_bytes") => {
            let number = |file| place.read(file).unwrap_or_default().trim().to_owned();
            let (usage, peak) = (number("memory.usage_in_bytes"), number("memory.max_usage_in_bytes"));
            format!(": the limit is below what is in use (current usage: {usage}, peak usage: {peak})")
        }
        _ => String::new(),
    }
}
