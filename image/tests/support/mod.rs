//! Images made in code: archives with any header, manifests with any lie.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test programs, each of which uses another part"
)]

#[path = "../../registry/tests/fake/mod.rs"]
pub mod fake;

pub mod matrix;

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_image::{ClientOptions, Digest, Error, Image, ImageRef, PullOptions, RetryPolicy, Store};

use fake::FakeRegistry;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}

/// A tar archive, header by header.
#[derive(Clone, Default)]
pub struct Tar {
    pub bytes: Vec<u8>,
}

/// A header's fields; `pax` records come before it.
#[derive(Clone)]
pub struct Header<'a> {
    pub name: &'a [u8],
    pub kind: u8,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: i64,
    pub link: &'a [u8],
    pub device: (u64, u64),
    pub pax: Vec<(String, Vec<u8>)>,
}

impl Default for Header<'_> {
    fn default() -> Self {
        Header {
            name: b"",
            kind: b'0',
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_000_000_000,
            link: b"",
            device: (0, 0),
            pax: Vec::new(),
        }
    }
}

pub fn pax(key: &str, value: &str) -> (String, Vec<u8>) {
    (key.to_owned(), value.as_bytes().to_vec())
}

impl Tar {
    pub fn new() -> Tar {
        Tar::default()
    }

    pub fn file(self, name: &str, data: &str) -> Tar {
        self.add(Header { name: name.as_bytes(), ..Header::default() }, data.as_bytes())
    }

    pub fn dir(self, name: &str, mode: u32, uid: u64, gid: u64) -> Tar {
        self.add(Header { name: name.as_bytes(), kind: b'5', mode, uid, gid, ..Header::default() }, b"")
    }

    pub fn symlink(self, name: &str, link: &str) -> Tar {
        let header = Header {
            name: name.as_bytes(),
            kind: b'2',
            mode: 0o777,
            link: link.as_bytes(),
            ..Header::default()
        };
        self.add(header, b"")
    }

    pub fn hardlink(self, name: &str, link: &str) -> Tar {
        self.add(
            Header { name: name.as_bytes(), kind: b'1', link: link.as_bytes(), ..Header::default() },
            b"",
        )
    }

    pub fn add(mut self, header: Header<'_>, data: &[u8]) -> Tar {
        if !header.pax.is_empty() {
            let mut records = Vec::new();
            for (key, value) in &header.pax {
                let body = [b" ", key.as_bytes(), b"=", value.as_slice(), b"\n"].concat();
                let mut length = body.len() + 1;
                while length != body.len() + length.to_string().len() {
                    length = body.len() + length.to_string().len();
                }
                records.extend_from_slice(length.to_string().as_bytes());
                records.extend_from_slice(&body);
            }
            self = self.raw(&Header { name: b"pax", kind: b'x', ..Header::default() }, &records);
        }
        if header.name.len() > 100 {
            let long = [header.name, b"\0"].concat();
            self = self.raw(&Header { name: b"././@LongLink", kind: b'L', ..Header::default() }, &long);
        }
        if header.link.len() > 100 {
            let long = [header.link, b"\0"].concat();
            self = self.raw(&Header { name: b"././@LongLink", kind: b'K', ..Header::default() }, &long);
        }
        self.raw(&header, data)
    }

    pub fn raw(mut self, header: &Header<'_>, data: &[u8]) -> Tar {
        let mut block = [0u8; 512];
        let put = |block: &mut [u8; 512], at: usize, bytes: &[u8]| {
            block[at..at + bytes.len()].copy_from_slice(bytes)
        };
        put(&mut block, 0, &header.name[..header.name.len().min(100)]);
        put(&mut block, 100, format!("{:07o}\0", header.mode).as_bytes());
        put(&mut block, 108, &number::<8>(header.uid as i64));
        put(&mut block, 116, &number::<8>(header.gid as i64));
        put(&mut block, 124, &number::<12>(data.len() as i64));
        put(&mut block, 136, &number::<12>(header.mtime));
        put(&mut block, 148, b"        ");
        block[156] = header.kind;
        put(&mut block, 157, &header.link[..header.link.len().min(100)]);
        put(&mut block, 257, b"ustar  \0");
        put(&mut block, 329, &number::<8>(header.device.0 as i64));
        put(&mut block, 337, &number::<8>(header.device.1 as i64));
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&block);
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// The same archive with every name below `folder`. Names and links must be short and without extensions.
    pub fn beneath(mut self, folder: &str) -> Tar {
        for at in header_offsets(&self.bytes) {
            let header = &mut self.bytes[at..at + 512];
            let length = header[..100].iter().position(|byte| *byte == 0).unwrap_or(100);
            let name = [folder.as_bytes(), b"/", &header[..length]].concat();
            header[..100].fill(0);
            header[..name.len()].copy_from_slice(&name);
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        self
    }

    pub fn append(mut self, other: Tar) -> Tar {
        self.bytes.extend(other.bytes);
        self
    }

    pub fn end(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}

/// Where the headers of an archive are.
fn header_offsets(bytes: &[u8]) -> Vec<usize> {
    let (mut offsets, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        offsets.push(at);
        let size = std::str::from_utf8(&bytes[at + 124..at + 135]).unwrap();
        at += 512 + usize::from_str_radix(size, 8).unwrap().next_multiple_of(512);
    }
    offsets
}

fn number<const N: usize>(value: i64) -> [u8; N] {
    let limit = 1i64 << (3 * (N - 1)).min(62);
    let mut field = [0; N];
    if (0..limit).contains(&value) {
        field.copy_from_slice(format!("{value:0width$o}\0", width = N - 1).as_bytes());
    } else {
        field.fill(if value < 0 { 0xff } else { 0 });
        field[N - 8..].copy_from_slice(&value.to_be_bytes());
        field[0] |= 0x80;
    }
    field
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer as it is served.
#[derive(Clone)]
pub struct Layer {
    pub blob: Vec<u8>,
    pub media_type: String,
    pub diff_id: Digest,
}

impl Layer {
    pub fn plain(tar: Vec<u8>) -> Layer {
        Layer { diff_id: Digest::of(&tar), blob: tar, media_type: OCI_LAYER.to_owned() }
    }

    pub fn gzip(tar: Vec<u8>) -> Layer {
        Layer { diff_id: Digest::of(&tar), blob: gzip(&tar), media_type: format!("{OCI_LAYER}+gzip") }
    }

    pub fn zstd(tar: Vec<u8>) -> Layer {
        let blob = zstd::encode_all(&tar[..], 3).unwrap();
        Layer { diff_id: Digest::of(&tar), blob, media_type: format!("{OCI_LAYER}+zstd") }
    }
}

pub fn config(layers: &[Layer], architecture: &str) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|layer| format!("\"{}\"", layer.diff_id)).collect();
    format!(
        r#"{{"architecture":"{architecture}","os":"linux","config":{{"Cmd":["/bin/true"],"Env":["A=b"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    )
    .into_bytes()
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":{}}}"#, Digest::of(bytes), bytes.len())
}

pub fn manifest(config: &[u8], layers: &[Layer]) -> Vec<u8> {
    let layers: Vec<String> = layers.iter().map(|layer| descriptor(&layer.media_type, &layer.blob)).collect();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{},"layers":[{}]}}"#,
        descriptor(OCI_CONFIG, config),
        layers.join(",")
    )
    .into_bytes()
}

/// The host's architecture in the specification's words.
pub fn arch() -> &'static str {
    if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }
}

/// Puts an image of `layers` on the registry as `repository:tag`; returns its manifest digest.
pub fn serve(registry: &FakeRegistry, repository: &str, tag: &str, layers: &[Layer]) -> Digest {
    let config = config(layers, arch());
    registry.add_blob(&config);
    for layer in layers {
        registry.add_blob(&layer.blob);
    }
    registry.add_manifest(repository, tag, OCI_MANIFEST, &manifest(&config, layers))
}

pub fn options() -> PullOptions {
    let retry = RetryPolicy { first_delay: std::time::Duration::from_millis(5), ..RetryPolicy::default() };
    let credentials = cofferdam_image::CredentialSource::Anonymous;
    PullOptions {
        client: ClientOptions { retry, credentials, ..ClientOptions::default() },
        ..PullOptions::default()
    }
}

/// In memory where there is a tmpfs: the tests sync often.
pub fn temporary_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Not in /tmp, which many hosts keep in memory.
pub fn folder_on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

/// A store in a folder that goes away with it.
pub struct TestStore {
    pub folder: tempfile::TempDir,
    pub store: Store,
}

impl TestStore {
    pub fn new() -> TestStore {
        TestStore::below(temporary_folder())
    }

    /// For attributes that a file system in memory may not have.
    pub fn on_disk() -> TestStore {
        TestStore::below(folder_on_disk())
    }

    fn below(folder: tempfile::TempDir) -> TestStore {
        let store = Store::open(&folder.path().join("store")).unwrap();
        TestStore { folder, store }
    }

    fn open(folder: &tempfile::TempDir, layers: cofferdam_image::Backend) -> Result<Store, Error> {
        let options = cofferdam_image::StoreOptions { layers, ..Default::default() };
        Store::open_with(&folder.path().join("store"), options)
    }

    /// The same folder, opened with another backend.
    pub fn reopen(self, backend: cofferdam_image::Backend) -> TestStore {
        let store = TestStore::open(&self.folder, backend).unwrap();
        TestStore { store, ..self }
    }

    /// With a backend; `None`, and a line that says so, where this host cannot have it.
    pub fn with(backend: cofferdam_image::Backend) -> Option<TestStore> {
        // On a disk: the kernel mounts no image that lies in a tmpfs without a loop device.
        let folder = folder_on_disk();
        match TestStore::open(&folder, backend) {
            Ok(store) => Some(TestStore { folder, store }),
            Err(error) => {
                println!("skipped: {error}");
                None
            }
        }
    }

    pub fn pull(&self, name: &str) -> Result<Image, Error> {
        self.store.pull(&ImageRef::parse(name).unwrap(), &options(), &|_| {})
    }

    /// Serves `layers` from a registry of their own and pulls them.
    pub fn pull_layers(&self, layers: &[Layer]) -> Result<Image, Error> {
        let registry = FakeRegistry::start();
        serve(&registry, "test/image", "latest", layers);
        self.pull(&registry.name("test/image"))
    }

    /// Names in a folder of the store.
    pub fn list(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.store.root().join(folder)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub fn mount(&self, image: &Image) -> Mount {
        Mount::new(&self.store, image)
    }
}

/// An image mounted by overlayfs in a mount namespace-free way: mounted on a private folder and unmounted on drop.
pub struct Mount {
    pub target: tempfile::TempDir,
    key: String,
    store: Store,
}

impl Mount {
    pub fn new(store: &Store, image: &Image) -> Mount {
        let target = temporary_folder();
        let key = target.path().to_string_lossy().into_owned();
        let snapshot = store.prepare(&key, image).unwrap();
        mount_snapshot(&snapshot, target.path());
        Mount { target, key, store: store.clone() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.target.path().join(name)
    }

    /// Every path below the root with type, mode, owner and, for files, contents.
    pub fn tree(&self) -> Vec<String> {
        list_tree(self.target.path())
    }
}

/// Layer by layer where the kernel takes them so (6.7); older ones want one string, of a page at most. A copy has none.
pub fn mount_snapshot(snapshot: &cofferdam_image::Snapshot, target: &Path) {
    use rustix::mount::*;
    let (upper, work) = (&snapshot.upper, &snapshot.work);
    if snapshot.lower.is_empty() {
        return mount_bind(upper, target).unwrap();
    }
    // A mount that is attached nowhere is taken apart when its last descriptor is closed.
    let opened: Vec<_> = snapshot.lower.iter().map(|lower| lower.open().unwrap()).collect();
    let lower: Vec<String> = opened.iter().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd())).collect();
    let Ok(mounted) = stack(&lower, upper, work) else {
        let (lower, upper, work) = (lower.join(":"), upper.display(), work.display());
        let data = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let data = std::ffi::CString::new(data).unwrap();
        return mount("overlay", target, "overlay", MountFlags::empty(), &*data).unwrap();
    };
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&mounted, "", rustix::fs::CWD, target, flags).unwrap();
}

/// Before 6.5 overlayfs takes any word, and says only in the end that it knows none of them.
fn stack(lower: &[String], upper: &Path, work: &Path) -> rustix::io::Result<OwnedFd> {
    use rustix::mount::*;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for path in lower {
        fsconfig_set_string(&context, "lowerdir+", path)?;
    }
    fsconfig_set_string(&context, "upperdir", upper)?;
    fsconfig_set_string(&context, "workdir", work)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

impl Drop for Mount {
    fn drop(&mut self) {
        rustix::mount::unmount(self.target.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        self.store.remove_snapshot(&self.key).unwrap();
    }
}

pub fn list_tree(root: &Path) -> Vec<String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let mut lines = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let Ok(metadata) = path.symlink_metadata() else {
                // Listed, and not there.
                lines.push(format!("{} phantom", path.strip_prefix(root).unwrap().display()));
                continue;
            };
            let kind = metadata.file_type();
            let what = if kind.is_dir() {
                pending.push(path.clone());
                "dir".to_owned()
            } else if kind.is_symlink() {
                format!("-> {}", std::fs::read_link(&path).unwrap().display())
            } else if kind.is_file() {
                format!("file {:?}", String::from_utf8_lossy(&std::fs::read(&path).unwrap()))
            } else if kind.is_char_device() || kind.is_block_device() {
                format!("device {:x}", metadata.rdev())
            } else {
                "fifo".to_owned()
            };
            let name = path.strip_prefix(root).unwrap().display().to_string();
            lines.push(format!(
                "{name} {:o} {}:{} {what}",
                metadata.mode() & 0o7777,
                metadata.uid(),
                metadata.gid()
            ));
        }
    }
    lines.sort();
    lines
}

/// Whether a program is installed.
pub fn has_program(name: &str) -> bool {
    let found = Command::new("which").arg(name).output().is_ok_and(|output| output.status.success());
    if !found {
        println!("skipped: {name} is not installed");
    }
    found
}
