//! One entry of a layer's archive: what it is to become, checked before anything is made of it.
//!
//! The sans-IO parser resolves long names, PAX records and sparse maps. This file adds the rules that it leaves to its
//! caller: strict PAX records (it stops silently at a malformed one), numbers that fit, nanoseconds and negative times,
//! attributes in both dialects, and the name made relative to the layer's root.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use rustix::fs::{Timespec, makedev};
use tar_core::parse::ParsedEntry;
use tar_core::{EntryType, SparseEntry};

use crate::error::LayerError;
use crate::limits::{Limits, remedy};

/// The longest component of a name, in bytes: NAME_MAX.
const COMPONENT_LIMIT_BYTES: usize = 255;
/// Linux's device numbers have 12 bits of major and 20 bits of minor.
const DEVICE_LIMIT: (u32, u32) = (1 << 12, 1 << 20);
/// The highest id; 2^32 - 1 means "leave it" to chown(2), so a file that asks for it would stay root's.
const ID_LIMIT: u64 = u32::MAX as u64 - 1;

/// overlayfs's own attributes.
const OVERLAY: &[u8] = b"trusted.overlay.";
/// What overlayfs shows as attributes of that name (Linux 6.7, Documentation/filesystems/overlayfs.rst, "Nested mounts").
pub(crate) const ESCAPED_OVERLAY: &[u8] = b"trusted.overlay.overlay.";

/// Who owns it, who may use it, when it was changed, and what is attached to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timespec,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    /// What a directory gets that no layer describes.
    pub(crate) fn implied() -> Attributes {
        Attributes {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timespec { tv_sec: 0, tv_nsec: 0 },
            xattrs: Vec::new(),
        }
    }
}

/// What an entry becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Directory,
    File,
    /// Regions of data, and the apparent size.
    Sparse(Vec<(u64, u64)>, u64),
    Symlink(Vec<u8>),
    /// The target's normalised name.
    Hardlink(Vec<u8>),
    Character(u64),
    Block(u64),
    Fifo,
}

/// A checked entry.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Relative to the layer's root, without `.`, `..` and empty components; empty for the root itself.
    pub(crate) name: Vec<u8>,
    pub(crate) node: Node,
    pub(crate) attributes: Attributes,
    /// Bytes of data that follow in the archive.
    pub(crate) size: u64,
    /// Names of attributes that were left out on purpose.
    pub(crate) dropped: Vec<String>,
}

impl Entry {
    pub(crate) fn check(
        parsed: &ParsedEntry<'_>,
        sparse: Option<(Vec<SparseEntry>, u64)>,
        limits: &Limits,
    ) -> Result<Entry, LayerError> {
        let refuse = |rule: String| LayerError::entry(&parsed.path, rule);
        let mut entry = Entry {
            name: normalise(&parsed.path)?,
            node: Node::Fifo,
            attributes: Attributes {
                mode: parsed.mode & 0o7777,
                uid: id(parsed.uid).ok_or_else(|| refuse(format!("uid {} is out of range", parsed.uid)))?,
                gid: id(parsed.gid).ok_or_else(|| refuse(format!("gid {} is out of range", parsed.gid)))?,
                // A negative base-256 time arrives with all its bits, which is what it is as a signed number.
                mtime: Timespec { tv_sec: parsed.mtime as i64, tv_nsec: 0 },
                xattrs: Vec::new(),
            },
            size: parsed.size,
            dropped: Vec::new(),
        };
        entry.read_pax(parsed, sparse.is_some(), limits)?;
        entry.node = node(parsed, sparse, limits)?;
        let has_data = matches!(entry.node, Node::File | Node::Sparse(..));
        if has_data && entry.size > i64::MAX as u64 {
            return Err(refuse("its size is out of range".to_owned()));
        }
        // Writers disagree on what the size of a link or directory means; like Go's and GNU's readers, none is read.
        if !has_data {
            entry.size = 0;
        }
        if entry.name.is_empty() && entry.node != Node::Directory {
            return Err(refuse("the root of a layer can only be a directory".to_owned()));
        }
        Ok(entry)
    }

    fn read_pax(
        &mut self,
        parsed: &ParsedEntry<'_>,
        sparse: bool,
        limits: &Limits,
    ) -> Result<(), LayerError> {
        let refuse = |rule: String| LayerError::entry(&parsed.path, rule);
        let mut total = 0;
        for record in PaxRecords(parsed.pax.unwrap_or_default()) {
            let (key, value) = record.ok_or_else(|| refuse("a PAX record is malformed".to_owned()))?;
            let text = || std::str::from_utf8(value).unwrap_or_default();
            let is_number = || text().parse::<u64>().is_ok();
            match key {
                "uid" | "gid" => {
                    text()
                        .parse()
                        .ok()
                        .and_then(id)
                        .ok_or_else(|| refuse(format!("PAX {key} {:?} is out of range", text())))?;
                }
                "size" if sparse => {
                    return Err(refuse("a sparse file with a PAX size is not supported".to_owned()));
                }
                "size" if !is_number() => return Err(refuse("PAX size is not a number".to_owned())),
                "mtime" => {
                    let time = parse_time(text());
                    self.attributes.mtime =
                        time.ok_or_else(|| refuse(format!("PAX mtime {:?} is not a time", text())))?;
                }
                "GNU.sparse.name" | "GNU.sparse.map" => {}
                key if key.starts_with("GNU.sparse.") && !is_number() => {
                    return Err(refuse(format!("PAX {key} is not a number")));
                }
                _ => {}
            }
            if let Some((name, value)) = xattr(key, value) {
                let name = name.ok_or_else(|| refuse(format!("PAX {key} does not name an attribute")))?;
                let value = value.ok_or_else(|| refuse(format!("PAX {key} is not base64")))?;
                if name.starts_with(b"system.posix_acl_") && !is_acl(&value) {
                    return Err(refuse(format!("PAX {key} is no access control list")));
                }
                total += name.len() + value.len();
                if total as u64 > limits.xattr_bytes {
                    return Err(refuse(format!(
                        "its attributes exceed {} bytes{}",
                        limits.xattr_bytes,
                        remedy(Some("xattr-bytes"))
                    )));
                }
                self.add_xattr(name, value);
            }
        }
        Ok(())
    }

    /// An allow-list. `trusted.overlay.*` would speak to overlayfs itself: it is escaped as overlayfs escapes it, so that a
    /// mount shows it and never acts on it (older kernels than 6.7 show nothing). `user.overlay.*` and the container tools'
    /// names speak to other stores' mounts, and `security.ima`, `evm` and `selinux` hold what was true of the machine that
    /// built the image.
    fn add_xattr(&mut self, mut name: Vec<u8>, value: Vec<u8>) {
        if let Some(rest) = name.strip_prefix(OVERLAY) {
            name = [ESCAPED_OVERLAY, rest].concat();
        }
        const REFUSED: [&[u8]; 3] = [b"user.overlay.", b"user.containers.", b"user.fuseoverlayfs."];
        const NAMED: [&[u8]; 3] =
            [b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];
        let allowed = NAMED.contains(&name.as_slice())
            || (name.starts_with(ESCAPED_OVERLAY) && name.len() <= COMPONENT_LIMIT_BYTES)
            || (name.starts_with(b"user.") && !REFUSED.iter().any(|prefix| name.starts_with(prefix)));
        if !allowed {
            self.dropped.push(String::from_utf8_lossy(&name).into_owned());
            return;
        }
        self.attributes.xattrs.retain(|(known, _)| *known != name);
        self.attributes.xattrs.push((name, value));
    }
}

fn id(number: u64) -> Option<u32> {
    u32::try_from(number).ok().filter(|_| number <= ID_LIMIT)
}

fn node(
    parsed: &ParsedEntry<'_>,
    sparse: Option<(Vec<SparseEntry>, u64)>,
    limits: &Limits,
) -> Result<Node, LayerError> {
    let refuse = |rule: String| LayerError::entry(&parsed.path, rule);
    let link = || match parsed.link_target.as_deref() {
        Some(target) if !target.contains(&0) => Ok(target.to_vec()),
        _ => Err(refuse("a link without a target".to_owned())),
    };
    let device = || match (parsed.dev_major.unwrap_or(0), parsed.dev_minor.unwrap_or(0)) {
        (major, minor) if major < DEVICE_LIMIT.0 && minor < DEVICE_LIMIT.1 => Ok(makedev(major, minor)),
        (major, minor) => Err(refuse(format!("device number {major}:{minor} is out of range"))),
    };
    if let Some((map, real_size)) = sparse {
        return check_sparse(map, real_size, parsed.size, limits).map_err(refuse);
    }
    match parsed.entry_type {
        EntryType::Regular | EntryType::Continuous if parsed.path.ends_with(b"/") => {
            // Before POSIX, a directory was a file whose name ends in a slash.
            if parsed.size == 0 {
                Ok(Node::Directory)
            } else {
                Err(refuse("a directory with contents".to_owned()))
            }
        }
        EntryType::Regular | EntryType::Continuous => Ok(Node::File),
        EntryType::Directory => Ok(Node::Directory),
        EntryType::Symlink => Ok(Node::Symlink(link()?)),
        EntryType::Link => {
            let target = normalise(&link()?)?;
            if target.is_empty() {
                Err(refuse("a hard link to the root".to_owned()))
            } else {
                Ok(Node::Hardlink(target))
            }
        }
        EntryType::Char => match device()? {
            0 => Err(refuse("character device 0:0 means \"deleted\" to overlayfs and is refused".to_owned())),
            device => Ok(Node::Character(device)),
        },
        EntryType::Block => Ok(Node::Block(device()?)),
        EntryType::Fifo => Ok(Node::Fifo),
        other => Err(refuse(format!("entries of type {:?} are not supported", other.to_byte() as char))),
    }
}

fn check_sparse(map: Vec<SparseEntry>, real_size: u64, data: u64, limits: &Limits) -> Result<Node, String> {
    let (mut end, mut sum) = (0u64, 0u64);
    for region in &map {
        if region.offset < end {
            return Err("its sparse regions overlap".to_owned());
        }
        end = region.offset.checked_add(region.length).ok_or("its sparse regions overflow")?;
        sum += region.length;
    }
    if end > real_size || sum != data {
        return Err("its sparse regions do not match its size".to_owned());
    }
    if real_size > limits.sparse_bytes {
        return Err(format!(
            "its apparent size exceeds {} bytes{}",
            limits.sparse_bytes,
            remedy(Some("sparse-bytes"))
        ));
    }
    Ok(Node::Sparse(map.iter().map(|region| (region.offset, region.length)).collect(), real_size))
}

/// Makes a name relative to the root: `/`, `.` and empty components go, `..` takes one away and never leaves the root.
pub(crate) fn normalise(path: &[u8]) -> Result<Vec<u8>, LayerError> {
    if path.contains(&0) {
        return Err(LayerError::entry(path, "its name contains a NUL byte"));
    }
    let mut components: Vec<&[u8]> = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(components.pop()),
            long if long.len() > COMPONENT_LIMIT_BYTES => {
                return Err(LayerError::entry(path, "a component of its name is longer than 255 bytes"));
            }
            other => components.push(other),
        }
    }
    Ok(components.join(&b'/'))
}

/// `SCHILY.xattr.<name>` holds the value as it is, `LIBARCHIVE.xattr.<percent-encoded name>` in base64.
type Xattr = (Option<Vec<u8>>, Option<Vec<u8>>);

fn xattr(key: &str, value: &[u8]) -> Option<Xattr> {
    if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
        return Some((
            Some(name.as_bytes().to_vec()).filter(|name| is_xattr_name(name)),
            Some(value.to_vec()),
        ));
    }
    let name = percent_decode(key.strip_prefix("LIBARCHIVE.xattr.")?).filter(|name| is_xattr_name(name));
    let value = STANDARD.decode(value).or_else(|_| STANDARD_NO_PAD.decode(value));
    Some((name, value.ok()))
}

/// Version 2 and whole entries; the kernel takes another version for a file system without lists.
fn is_acl(value: &[u8]) -> bool {
    value.starts_with(&2u32.to_le_bytes()) && value.len() % 8 == 4
}

fn is_xattr_name(name: &[u8]) -> bool {
    // A class by itself (`user.`) is no name to the kernel.
    !name.is_empty() && !name.ends_with(b".") && name.len() <= COMPONENT_LIMIT_BYTES && !name.contains(&0)
}

pub(crate) fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digit = |byte: u8| (byte as char).to_digit(16);
        let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
        decoded.push(u8::try_from(high * 16 + low).ok()?);
    }
    Some(decoded)
}

/// Decimal seconds with a fraction and a sign. What no file system can hold is clamped, not wrapped.
fn parse_time(text: &str) -> Option<Timespec> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let numeric = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !numeric(whole) || !numeric(fraction) {
        return None;
    }
    // Far beyond every file system's range, and far from overflowing the arithmetic below.
    const CLAMP_SECONDS: i64 = 1 << 60;
    let seconds = whole.parse::<i64>().unwrap_or(CLAMP_SECONDS).min(CLAMP_SECONDS);
    let nanoseconds: i64 = format!("{:0<9.9}", fraction).parse().ok()?;
    Some(match (negative, nanoseconds) {
        (false, _) => Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
        (true, 0) => Timespec { tv_sec: -seconds, tv_nsec: 0 },
        (true, _) => Timespec { tv_sec: -seconds - 1, tv_nsec: 1_000_000_000 - nanoseconds },
    })
}

/// `<length> <key>=<value>\n`, strictly; `None` for a record that is not.
struct PaxRecords<'a>(&'a [u8]);

impl<'a> Iterator for PaxRecords<'a> {
    type Item = Option<(&'a str, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = self.split();
        if record.is_none() {
            self.0 = &[];
        }
        Some(record)
    }
}

impl<'a> PaxRecords<'a> {
    fn split(&mut self) -> Option<(&'a str, &'a [u8])> {
        let space = self.0.iter().position(|byte| *byte == b' ')?;
        let length = &self.0[..space];
        if length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let length: usize = std::str::from_utf8(length).ok()?.parse().ok()?;
        let record = self.0.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let key = std::str::from_utf8(&record[..equals]).ok()?;
        self.0 = &self.0[length..];
        Some((key, &record[equals + 1..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_root() {
        for (path, expected) in [
            ("a/b", "a/b"),
            ("./a//b/", "a/b"),
            ("/abs/x", "abs/x"),
            ("../up", "up"),
            ("a/../../b", "b"),
            ("./../x", "x"),
            ("./", ""),
            ("/", ""),
            ("..", ""),
        ] {
            assert_eq!(normalise(path.as_bytes()).unwrap(), expected.as_bytes(), "{path}");
        }
        assert!(normalise(b"a\0b").is_err());
        assert!(normalise(&[b'x'; 255]).is_ok());
        assert!(normalise(&[b'x'; 256]).is_err());
    }

    #[test]
    fn times_keep_sign_and_nanoseconds() {
        for (text, expected) in [
            ("0", Some((0, 0))),
            ("-5", Some((-5, 0))),
            ("-5.25", Some((-6, 750_000_000))),
            ("1.123456789", Some((1, 123_456_789))),
            ("1.1234567899", Some((1, 123_456_789))),
            ("7.", Some((7, 0))),
            ("99999999999999999999", Some((1 << 60, 0))),
            ("1e400", None),
            ("", None),
            ("-", None),
            ("+1", None),
            (".5", None),
        ] {
            let expected = expected.map(|(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec });
            assert_eq!(parse_time(text), expected, "{text}");
        }
    }

    #[test]
    fn malformed_pax_records_are_found() {
        let good: Vec<_> = PaxRecords(b"6 a=b\n7 cd=e\n").collect();
        assert_eq!(good, [Some(("a", &b"b"[..])), Some(("cd", &b"e"[..]))]);
        for bad in [
            &b"6 a=b"[..],
            b"x a=b\n",
            b"99 a=b\n",
            b"5 a=b\n",
            b"+6 a=b\n",
            b"6 abc\n",
            b" a=b\n",
            b"0 a=b\n",
        ] {
            assert!(
                PaxRecords(bad).any(|record| record.is_none()),
                "{:?} was accepted",
                String::from_utf8_lossy(bad)
            );
        }
    }
}
