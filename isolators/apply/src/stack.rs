//! Stacking layers by overlayfs, in whichever way the kernel takes them. *Child-safe*: nothing allocates.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

use cofferdam_linux::mount;
use cofferdam_plan::{Folder, MountAttributes, OverlayForm};
use rustix::fs::{Mode, OFlags, open, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_string,
    fsmount, fsopen,
};
use rustix::path::DecInt;

use crate::child::Table;

/// mount(2) takes a page of options, with its NUL.
const OPTIONS_BYTES: usize = 4096;
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Device nodes of an image are names without power: a container's own are in its /dev.
const ATTRIBUTES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;

/// The layers of one stack, uppermost first, and what makes it writable.
pub(crate) struct Stack<'a> {
    pub(crate) lower: &'a [Folder],
    pub(crate) upper: &'a Folder,
    pub(crate) work: &'a Folder,
}

impl Stack<'_> {
    /// Mounts them: detached, or at the path that the form names.
    pub(crate) fn mount(&self, table: &Table, form: &OverlayForm) -> Result<OwnedFd, Errno> {
        match form {
            OverlayForm::Descriptors => {
                self.mount_by(table, |context, key, folder| fsconfig_set_fd(context, key, folder))
            }
            OverlayForm::Names => self.mount_by(table, |context, key, folder| {
                fsconfig_set_string(context, key, Name::of(folder.as_raw_fd()).as_c_str()?)
            }),
            OverlayForm::OptionString { at } => {
                let options = self.options(table)?;
                let nodev = MountAttributes::NO_DEV;
                mount::mount_classic(c"overlay", at.as_c_str(), c"overlay", nodev, options.as_c_str()?)?;
                open(at.as_c_str(), FOLDER, Mode::empty())
            }
        }
    }

    fn mount_by(
        &self,
        table: &Table,
        set: impl Fn(BorrowedFd<'_>, &CStr, BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<OwnedFd, Errno> {
        let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, c"source", c"overlay")?;
        for (key, folder) in self.folders() {
            set(context.as_fd(), key, open_folder(table, folder)?.as_fd())?;
        }
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, ATTRIBUTES)
    }

    fn folders(&self) -> impl Iterator<Item = (&CStr, &Folder)> {
        let lower = self.lower.iter().map(|folder| (c"lowerdir+", folder));
        lower.chain([(c"upperdir", self.upper), (c"workdir", self.work)])
    }

    /// One string of descriptors' names: `lowerdir=/proc/self/fd/7:…`. Its descriptors stay open until exec closes them.
    fn options(&self, table: &Table) -> Result<Options, Errno> {
        let mut options = Options { bytes: [0; OPTIONS_BYTES], length: 0 };
        for (index, folder) in self.lower.iter().enumerate() {
            options.push(if index == 0 { b"lowerdir=" } else { b":" })?;
            options.push_name(open_folder(table, folder)?)?;
        }
        options.push(b",upperdir=")?;
        options.push_name(open_folder(table, self.upper)?)?;
        options.push(b",workdir=")?;
        options.push_name(open_folder(table, self.work)?)?;
        Ok(options)
    }
}

/// A path is opened where it is needed; what was mounted beforehand is reached through its descriptor.
fn open_folder(table: &Table, folder: &Folder) -> Result<OwnedFd, Errno> {
    match folder {
        Folder::Path(path) => open(path.as_c_str(), FOLDER, Mode::empty()),
        Folder::Tree(slot) => openat(table.get(*slot)?, c".", FOLDER, Mode::empty()),
        Folder::Within(slot, name) => openat(table.get(*slot)?, name.as_c_str(), FOLDER, Mode::empty()),
    }
}

/// A descriptor's name in procfs.
struct Name([u8; 32]);

const PREFIX: &[u8] = b"/proc/self/fd/";

impl Name {
    fn of(fd: i32) -> Name {
        let mut name = [0; 32];
        let digits = DecInt::new(fd);
        name[..PREFIX.len()].copy_from_slice(PREFIX);
        name[PREFIX.len()..PREFIX.len() + digits.as_bytes().len()].copy_from_slice(digits.as_bytes());
        Name(name)
    }

    fn as_c_str(&self) -> Result<&CStr, Errno> {
        CStr::from_bytes_until_nul(&self.0).map_err(|_| Errno::INVAL)
    }
}

/// An option string in the making.
struct Options {
    bytes: [u8; OPTIONS_BYTES],
    length: usize,
}

impl Options {
    fn push(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        let end = self.length + bytes.len();
        // The last byte stays NUL.
        let place = self.bytes[..OPTIONS_BYTES - 1].get_mut(self.length..end).ok_or(Errno::TOOBIG)?;
        place.copy_from_slice(bytes);
        self.length = end;
        Ok(())
    }

    fn push_name(&mut self, folder: OwnedFd) -> Result<(), Errno> {
        self.push(Name::of(folder.into_raw_fd()).as_c_str()?.to_bytes())
    }

    fn as_c_str(&self) -> Result<&CStr, Errno> {
        CStr::from_bytes_until_nul(&self.bytes).map_err(|_| Errno::INVAL)
    }
}
