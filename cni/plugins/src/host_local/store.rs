//! The directory of leases of one network, and beside it who has which.
//!
//! The leases are files named by address, as the reference plugin has them. It reads all of them to find that a container has
//! none. A second directory has a file for each attachment, with its addresses, written before its leases and removed after
//! them. It is a hint: a lease is believed only from its own file, and an attachment without such a file (the reference
//! plugin did its ADD) is searched for.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cofferdam_cni::{Code, PluginError, Request};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Where the files by attachment are, beside the networks' directories. No network's name begins with a dot.
const OWNERS: &str = ".owners";
/// What a file is called while it is written.
const UNFINISHED: &str = ".new";
/// So many addresses are looked at one by one; then the directory is listed.
const LOOKS: usize = 64;

/// The directory, locked against everybody else, the reference plugin included, until it is dropped.
pub(super) struct Store {
    directory: PathBuf,
    owners: PathBuf,
    _lock: File,
}

/// Who holds an address.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) container: String,
    pub(super) interface: String,
}

impl Lease {
    fn parse(text: &str) -> Self {
        let mut lines = text.lines().map(str::trim);
        let mut next = || lines.next().unwrap_or_default().to_owned();
        Self { container: next(), interface: next() }
    }

    /// Leases of old versions name no interface.
    fn is_of(&self, request: &Request<'_>) -> bool {
        self.container == request.container.as_str()
            && (self.interface.is_empty() || self.interface == request.if_name.as_str())
    }
}

fn failed<'a>(what: &'a str, path: &'a Path) -> impl Fn(io::Error) -> PluginError + 'a {
    move |error| PluginError::new(Code::IO, format!("host-local: cannot {what} {}: {error}", path.display()))
}

impl Store {
    /// Opens and locks the network's directory, and makes it if it is not there.
    pub(super) fn open(data: &Path, network: &str) -> Result<Self, PluginError> {
        make_directory(&data.join(network))?;
        let path = data.join(network).join("lock");
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        Self::locked(data, network, open.map_err(failed("open", &path))?)
    }

    /// Opens and locks the network's directory if there is one, and changes nothing.
    pub(super) fn open_existing(data: &Path, network: &str) -> Result<Option<Self>, PluginError> {
        let path = data.join(network).join("lock");
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => Self::locked(data, network, opened.map_err(failed("open", &path))?).map(Some),
        }
    }

    fn locked(data: &Path, network: &str, lock: File) -> Result<Self, PluginError> {
        let directory = data.join(network);
        loop {
            match flock(&lock, FlockOperation::LockExclusive) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed("lock", &directory)(errno.into())),
            }
        }
        Ok(Self { directory, owners: data.join(OWNERS).join(network), _lock: lock })
    }

    fn path(&self, address: IpAddr) -> PathBuf {
        self.directory.join(address.to_string())
    }

    /// A lease; an empty one is nobody's, as a crash of the reference plugin leaves it.
    fn read(&self, address: IpAddr) -> Option<Lease> {
        let text = fs::read_to_string(self.path(address)).ok()?;
        if text.trim().is_empty() { None } else { Some(Lease::parse(&text)) }
    }

    /// Every lease of the network.
    fn leases(&self) -> Result<Vec<(IpAddr, Lease)>, PluginError> {
        let names = self.names()?;
        let addresses = names.iter().filter_map(|name| name.to_str()?.parse().ok());
        Ok(addresses.filter_map(|address| Some((address, self.read(address)?))).collect())
    }

    fn names(&self) -> Result<HashSet<OsString>, PluginError> {
        let entries = fs::read_dir(&self.directory).map_err(failed("list", &self.directory))?;
        Ok(entries.flatten().map(|entry| entry.file_name()).collect())
    }

    /// The first of these addresses that is free.
    pub(super) fn first_free<T, I: Iterator<Item = (IpAddr, T)>>(
        &self,
        candidates: impl Fn() -> I,
    ) -> Result<Option<(IpAddr, T)>, PluginError> {
        let is_free = |(address, _): &(IpAddr, T)| self.read(*address).is_none();
        if let Some(found) = candidates().take(LOOKS).find(is_free) {
            return Ok(Some(found));
        }
        let names = self.names()?;
        let is_named = |(address, _): &(IpAddr, T)| names.contains(&OsString::from(address.to_string()));
        let unnamed = candidates().skip(LOOKS).find(|candidate| !is_named(candidate));
        // The last resort, before it is said that there is none: an empty file is nobody's.
        Ok(unnamed.or_else(|| candidates().skip(LOOKS).find(is_free)))
    }

    pub(super) fn holder_text(&self, address: IpAddr) -> String {
        self.read(address).map(|lease| format!(" to container {}", lease.container)).unwrap_or_default()
    }

    fn owner_path(&self, request: &Request<'_>) -> PathBuf {
        // Neither name has a colon.
        self.owners.join(format!("{}:{}", request.container, request.if_name))
    }

    /// The addresses that the attachment's own file knows and that are still leased to it.
    fn known(&self, request: &Request<'_>) -> Vec<IpAddr> {
        let text = fs::read_to_string(self.owner_path(request)).unwrap_or_default();
        let addresses = text.lines().filter_map(|line| line.parse().ok());
        addresses.filter(|address| self.is_leased_to(request, *address)).collect()
    }

    /// The addresses that are leased to this attachment, whoever leased them.
    pub(super) fn leases_of(&self, request: &Request<'_>) -> Result<Vec<IpAddr>, PluginError> {
        let known = self.known(request);
        if !known.is_empty() {
            return Ok(known);
        }
        let all = self.leases()?.into_iter();
        Ok(all.filter(|(_, lease)| lease.is_of(request)).map(|(address, _)| address).collect())
    }

    /// Whether the file of the address says that it is this attachment's.
    pub(super) fn is_leased_to(&self, request: &Request<'_>, address: IpAddr) -> bool {
        self.read(address).is_some_and(|lease| lease.is_of(request))
    }

    /// Refuses an attachment that has a lease. One of the reference plugin's goes unseen; its interface will not.
    pub(super) fn refuse_second(&self, request: &Request<'_>) -> Result<(), PluginError> {
        match self.known(request).first() {
            Some(address) => {
                let message = format!("host-local: {address} is leased to this attachment already");
                Err(PluginError::new(Code::CONFLICT, message))
            }
            None => Ok(()),
        }
    }

    /// Leases the address unless somebody has it. The lease appears with its content or not at all.
    pub(super) fn reserve(&self, address: IpAddr, request: &Request<'_>) -> Result<bool, PluginError> {
        let path = self.path(address);
        if self.read(address).is_some() {
            return Ok(false);
        }
        let mut known = self.known(request);
        known.push(address);
        let lines: Vec<String> = known.iter().map(IpAddr::to_string).collect();
        make_directory(&self.owners)?;
        write(&self.owner_path(request), &lines.join("\n"))?;
        write(&path, &format!("{}\r\n{}", request.container, request.if_name)).map(|()| true)
    }

    pub(super) fn last_reserved(&self, number: usize) -> Option<IpAddr> {
        fs::read_to_string(self.last_reserved_path(number)).ok()?.trim().parse().ok()
    }

    pub(super) fn note_last_reserved(&self, number: usize, address: IpAddr) -> Result<(), PluginError> {
        write(&self.last_reserved_path(number), &address.to_string())
    }

    fn last_reserved_path(&self, number: usize) -> PathBuf {
        self.directory.join(format!("last_reserved_ip.{number}"))
    }

    /// Releases what is leased to this attachment, these addresses among it.
    pub(super) fn release(
        &self,
        request: &Request<'_>,
        given: impl Iterator<Item = IpAddr>,
    ) -> Result<(), PluginError> {
        let mut found: Vec<IpAddr> = given.filter(|address| self.is_leased_to(request, *address)).collect();
        found.extend(self.known(request));
        if found.is_empty() && !self.owner_path(request).exists() {
            found = self.leases_of(request)?;
        }
        found.into_iter().try_for_each(|address| remove(&self.path(address)))?;
        remove(&self.owner_path(request))?;
        self.remove_unfinished()?;
        let _ = fs::remove_dir(&self.owners); // unless others have addresses; a network that is removed leaves nothing
        Ok(())
    }

    /// Removes what somebody was writing when he was killed: nobody writes now, since the lock is ours.
    fn remove_unfinished(&self) -> Result<(), PluginError> {
        [&self.directory, &self.owners].into_iter().try_for_each(|folder| remove(&folder.join(UNFINISHED)))
    }

    /// Releases every lease that is unwanted, and what is left of attachments without one.
    pub(super) fn release_where(&self, unwanted: impl Fn(&Lease) -> bool) -> Result<(), PluginError> {
        self.remove_unfinished()?;
        for (address, _) in self.leases()?.iter().filter(|(_, lease)| unwanted(lease)) {
            remove(&self.path(*address))?;
        }
        for entry in fs::read_dir(&self.owners).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let (container, interface) = name.split_once(':').unwrap_or_default();
            if unwanted(&Lease { container: container.into(), interface: interface.into() }) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn make_directory(path: &Path) -> Result<(), PluginError> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed("make", path))
}

fn write(path: &Path, text: &str) -> Result<(), PluginError> {
    let temporary = path.with_file_name(UNFINISHED);
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, path)
    };
    write().map_err(failed("write", path))
}

fn remove(path: &Path) -> Result<(), PluginError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("release", path)(error)),
        _ => Ok(()),
    }
}
