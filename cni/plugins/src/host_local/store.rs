//! The directory of leases of one network.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cofferdam_cni::{Code, PluginError, Request};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::index::{Index, read_one};

/// The directory, locked against everybody else, the reference plugin included, until it is dropped.
pub(super) struct Store {
    directory: PathBuf,
    handle: File,
    index: Option<Index>,
    /// Held for its lock alone, which goes last.
    _lock: File,
}

/// Who holds an address.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) container: String,
    pub(super) interface: String,
}

impl Lease {
    pub(super) fn parse(text: &str) -> Self {
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

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(index) = self.index.take() {
            index.put_back(&self.directory, &self.handle);
        }
    }
}

impl Store {
    /// Opens and locks the directory, and makes it if it is not there.
    pub(super) fn open(directory: PathBuf) -> Result<Self, PluginError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&directory)
            .map_err(failed("make", &directory))?;
        let path = directory.join("lock");
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        Self::locked(directory, open.map_err(failed("open", &path))?)
    }

    /// Opens and locks the directory if there is one, and changes nothing.
    pub(super) fn open_existing(directory: PathBuf) -> Result<Option<Self>, PluginError> {
        let path = directory.join("lock");
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => Self::locked(directory, opened.map_err(failed("open", &path))?).map(Some),
        }
    }

    fn locked(directory: PathBuf, lock: File) -> Result<Self, PluginError> {
        loop {
            match flock(&lock, FlockOperation::LockExclusive) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed("lock", &directory)(errno.into())),
            }
        }
        let handle = File::open(&directory).map_err(failed("open", &directory))?;
        let index = Index::take(&directory, &handle);
        Ok(Self { directory, handle, index, _lock: lock })
    }

    fn index(&mut self) -> Result<&mut Index, PluginError> {
        let index = match self.index.take() {
            Some(index) => index,
            None => {
                Index::read(&self.handle).map_err(|errno| failed("list", &self.directory)(errno.into()))?
            }
        };
        Ok(self.index.insert(index))
    }

    fn path(&self, address: IpAddr) -> PathBuf {
        self.directory.join(address.to_string())
    }

    /// Whether nobody seems to hold the address.
    pub(super) fn is_free(&mut self, address: IpAddr) -> Result<bool, PluginError> {
        Ok(self.index()?.holder(address).is_none())
    }

    pub(super) fn holder_text(&self, address: IpAddr) -> String {
        let holder = read_one(&self.handle, address);
        holder.map(|lease| format!(" to container {}", lease.container)).unwrap_or_default()
    }

    /// The addresses that are leased to this attachment.
    pub(super) fn leases_of(&mut self, request: &Request<'_>) -> Result<Vec<IpAddr>, PluginError> {
        let found = self.index()?.of(request.container.as_str(), |lease| lease.is_of(request));
        let is_current = |address: &IpAddr| self.is_leased_to(request, *address);
        Ok(found.into_iter().filter(is_current).collect())
    }

    /// Whether the file of the address says that it is this attachment's.
    pub(super) fn is_leased_to(&self, request: &Request<'_>, address: IpAddr) -> bool {
        read_one(&self.handle, address).is_some_and(|lease| lease.is_of(request))
    }

    pub(super) fn refuse_second(&mut self, request: &Request<'_>) -> Result<(), PluginError> {
        match self.leases_of(request)?.first() {
            Some(address) => {
                let message = format!("host-local: {address} is leased to this attachment already");
                Err(PluginError::new(Code::CONFLICT, message))
            }
            None => Ok(()),
        }
    }

    /// Leases the address unless somebody has it. The lease appears with its content or not at all.
    pub(super) fn reserve(&mut self, address: IpAddr, request: &Request<'_>) -> Result<bool, PluginError> {
        // An index that is there spares the look; one that is not is not worth reading every file.
        if self.index.as_ref().is_some_and(|index| index.holder(address).is_some()) {
            return Ok(false);
        }
        let path = self.path(address);
        if path.exists() {
            if read_one(&self.handle, address).is_some() {
                return Ok(false);
            }
            fs::remove_file(&path).map_err(failed("remove the empty lease", &path))?;
        }
        self.write(&path, &format!("{}\r\n{}", request.container, request.if_name))?;
        if let Some(index) = &mut self.index {
            let (container, interface) = (request.container.to_string(), request.if_name.to_string());
            index.insert(address, Lease { container, interface });
        }
        Ok(true)
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), PluginError> {
        let temporary = self.directory.join(".new");
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            fs::rename(&temporary, path)
        };
        write().map_err(failed("write", path))
    }

    pub(super) fn last_reserved(&self, number: usize) -> Option<IpAddr> {
        fs::read_to_string(self.last_reserved_path(number)).ok()?.trim().parse().ok()
    }

    pub(super) fn note_last_reserved(&self, number: usize, address: IpAddr) -> Result<(), PluginError> {
        self.write(&self.last_reserved_path(number), &address.to_string())
    }

    fn last_reserved_path(&self, number: usize) -> PathBuf {
        self.directory.join(format!("last_reserved_ip.{number}"))
    }

    /// Releases the leases among these addresses; tells whether all of them were this attachment's.
    pub(super) fn release_known(
        &mut self,
        request: &Request<'_>,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> Result<bool, PluginError> {
        let mut all = None;
        for address in addresses {
            let ours = self.is_leased_to(request, address);
            if ours {
                self.remove(address)?;
            }
            all = Some(all.unwrap_or(true) && ours);
        }
        Ok(all.unwrap_or(false))
    }

    /// Releases every lease of this attachment.
    pub(super) fn release(&mut self, request: &Request<'_>) -> Result<(), PluginError> {
        let mut found = self.leases_of(request)?;
        if found.is_empty() && self.index()?.is_doubtful() {
            self.index = None;
            found = self.leases_of(request)?;
        }
        found.into_iter().try_for_each(|address| self.remove(address))
    }

    /// Releases every lease that is unwanted.
    pub(super) fn release_where(&mut self, unwanted: impl Fn(&Lease) -> bool) -> Result<(), PluginError> {
        // Somebody else's crash is why this is called: what is remembered is not enough.
        self.index = None;
        let all = self.index()?.all();
        let found: Vec<IpAddr> =
            all.filter(|(_, lease)| unwanted(lease)).map(|(address, _)| address).collect();
        found.into_iter().try_for_each(|address| self.remove(address))
    }

    fn remove(&mut self, address: IpAddr) -> Result<(), PluginError> {
        let path = self.path(address);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("release", &path)(error));
            }
            _ => {}
        }
        if let Some(index) = &mut self.index {
            index.remove(address);
        }
        Ok(())
    }
}
