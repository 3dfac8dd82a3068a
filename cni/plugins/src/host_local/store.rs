//! The directory of leases of one network.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cofferdam_cni::{Code, PluginError, Request};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

pub(super) struct Store {
    directory: PathBuf,
}

/// Who holds an address.
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
    pub(super) fn open(directory: PathBuf) -> Result<Self, PluginError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&directory)
            .map_err(failed("make", &directory))?;
        Ok(Self { directory })
    }

    /// Keeps everybody else out, the reference plugin included, until the file is dropped.
    pub(super) fn lock(&self) -> Result<File, PluginError> {
        let path = self.directory.join("lock");
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = open.map_err(failed("open", &path))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed("lock", &path)(errno.into())),
            }
        }
    }

    fn path(&self, address: IpAddr) -> PathBuf {
        self.directory.join(address.to_string())
    }

    fn read(&self, address: IpAddr) -> Option<Lease> {
        let text = fs::read_to_string(self.path(address)).ok()?;
        // A crash of the reference plugin leaves an empty file; it belongs to nobody.
        if text.trim().is_empty() { None } else { Some(Lease::parse(&text)) }
    }

    /// Every lease of the network.
    fn leases(&self) -> Result<Vec<(IpAddr, Lease)>, PluginError> {
        let entries = fs::read_dir(&self.directory).map_err(failed("list", &self.directory))?;
        let addresses = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(addresses.filter_map(|address| Some((address, self.read(address)?))).collect())
    }

    pub(super) fn is_free(&self, address: IpAddr) -> bool {
        self.read(address).is_none()
    }

    pub(super) fn holder_text(&self, address: IpAddr) -> String {
        self.read(address).map(|lease| format!(" to container {}", lease.container)).unwrap_or_default()
    }

    pub(super) fn leases_of(&self, request: &Request<'_>) -> Result<Vec<IpAddr>, PluginError> {
        let all = self.leases()?.into_iter();
        Ok(all.filter(|(_, lease)| lease.is_of(request)).map(|(address, _)| address).collect())
    }

    pub(super) fn refuse_second(&self, request: &Request<'_>) -> Result<(), PluginError> {
        match self.leases_of(request)?.first() {
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
        if path.exists() {
            if !self.is_free(address) {
                return Ok(false);
            }
            fs::remove_file(&path).map_err(failed("remove the empty lease", &path))?;
        }
        let text = format!("{}\r\n{}", request.container, request.if_name);
        self.write(&path, &text).map(|()| true)
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
        &self,
        request: &Request<'_>,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> Result<bool, PluginError> {
        let mut all = None;
        for address in addresses {
            let ours = self.read(address).is_some_and(|lease| lease.is_of(request));
            if ours {
                self.remove(address)?;
            }
            all = Some(all.unwrap_or(true) && ours);
        }
        Ok(all.unwrap_or(false))
    }

    /// Releases every lease of this attachment.
    pub(super) fn release(&self, request: &Request<'_>) -> Result<(), PluginError> {
        self.release_where(|lease| lease.is_of(request))
    }

    pub(super) fn release_where(&self, unwanted: impl Fn(&Lease) -> bool) -> Result<(), PluginError> {
        for (address, _) in self.leases()?.iter().filter(|(_, lease)| unwanted(lease)) {
            self.remove(*address)?;
        }
        Ok(())
    }

    fn remove(&self, address: IpAddr) -> Result<(), PluginError> {
        let path = self.path(address);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("release", &path)(error)),
            _ => Ok(()),
        }
    }
}
