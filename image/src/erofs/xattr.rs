//! Extended attributes as they lie behind an inode.

use crate::error::LayerError;

/// The namespaces that have a number; the name is stored without it.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];
/// The header before the first attribute.
const HEADER_BYTES: usize = 12;
/// What the inode's count of four-byte units can say.
const LIMIT_BYTES: usize = HEADER_BYTES + 4 * (u16::MAX as usize - 1);

/// A name and a value.
pub(super) type Xattr = (Vec<u8>, Vec<u8>);

/// The attributes of one inode; empty if there are none. They were checked by [`check`].
pub(super) fn encode<'a>(xattrs: impl Iterator<Item = &'a Xattr>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in xattrs {
        let Some((prefix, index)) = PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix)) else {
            continue;
        };
        if bytes.is_empty() {
            bytes.resize(HEADER_BYTES, 0);
        }
        let rest = &name[prefix.len()..];
        bytes.extend([rest.len() as u8, *index]);
        bytes.extend((value.len() as u16).to_le_bytes());
        bytes.extend(rest);
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// Refuses what the kernel would refuse to set: it takes an image's attributes as they are.
pub(super) fn check(path: &[u8], xattrs: &[Xattr]) -> Result<(), LayerError> {
    for (name, value) in xattrs {
        let valid = match name.as_slice() {
            b"security.capability" => is_capability(value),
            acl if acl.starts_with(b"system.posix_acl_") => is_acl(value),
            _ => u16::try_from(value.len()).is_ok(),
        };
        if !valid {
            let name = String::from_utf8_lossy(name);
            return Err(LayerError::entry(path, format!("attribute {name} has no valid value")));
        }
    }
    if encode(xattrs.iter()).len() > LIMIT_BYTES {
        let rule = format!("its attributes exceed the {LIMIT_BYTES} bytes that an EROFS inode holds");
        return Err(LayerError::entry(path, rule));
    }
    Ok(())
}

/// `struct vfs_cap_data` of version 2, or `vfs_ns_cap_data` of version 3.
fn is_capability(value: &[u8]) -> bool {
    let version = value.get(3).copied();
    matches!((value.len(), version), (20, Some(2)) | (24, Some(3)))
}

/// `posix_acl_xattr`: version 2, then tag, permissions and id; acl(5), "VALID ACLs".
fn is_acl(value: &[u8]) -> bool {
    const USER_OBJ: u16 = 1;
    const USER: u16 = 2;
    const GROUP_OBJ: u16 = 4;
    const GROUP: u16 = 8;
    const MASK: u16 = 16;
    const OTHER: u16 = 32;
    let Some(entries) = value.strip_prefix(&2u32.to_le_bytes()) else { return false };
    if entries.is_empty() || entries.len() % 8 != 0 {
        return false;
    }
    let tags: Vec<(u16, u16)> = entries
        .chunks_exact(8)
        .map(|entry| (u16::from_le_bytes([entry[0], entry[1]]), u16::from_le_bytes([entry[2], entry[3]])))
        .collect();
    let count = |tag| tags.iter().filter(|(found, _)| *found == tag).count();
    let sorted = tags.is_sorted_by_key(|(tag, _)| *tag);
    let known = tags.iter().all(|(tag, permissions)| {
        [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].contains(tag) && *permissions < 8
    });
    let needs_mask = count(USER) + count(GROUP) > 0;
    sorted
        && known
        && [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|tag| count(*tag) == 1)
        && count(MASK) <= 1
        && (!needs_mask || count(MASK) == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(tags: &[u16]) -> Vec<u8> {
        let entries = tags.iter().flat_map(|tag| [*tag as u8, 0, 7, 0, 0xff, 0xff, 0xff, 0xff]);
        [2, 0, 0, 0].into_iter().chain(entries).collect()
    }

    #[test]
    fn values_that_the_kernel_would_refuse_are_refused() {
        for (value, valid) in [
            (acl(&[1, 4, 32]), true),
            (acl(&[1, 2, 4, 16, 32]), true),
            (acl(&[1, 2, 4, 32]), false),
            (acl(&[1, 4]), false),
            (acl(&[4, 1, 32]), false),
            (acl(&[1, 4, 32, 64]), false),
            (acl(&[]), false),
            (vec![2, 0], false),
        ] {
            assert_eq!(is_acl(&value), valid, "{value:?}");
        }
        assert!(is_capability(&[0, 0, 0, 2].into_iter().chain([0; 16]).collect::<Vec<u8>>()));
        assert!(!is_capability(&[0; 20]));
        assert!(!is_capability(b""));
    }

    #[test]
    fn attributes_are_aligned_and_prefixes_are_numbers() {
        let xattrs =
            [(b"user.a".to_vec(), b"1".to_vec()), (b"trusted.overlay.opaque".to_vec(), b"y".to_vec())];
        let bytes = encode(xattrs.iter());
        assert_eq!(bytes.len(), 12 + 8 + 20);
        assert_eq!(&bytes[12..18], b"\x01\x01\x01\x00a1");
        assert_eq!(&bytes[20..], b"\x0e\x04\x01\x00overlay.opaquey\0");
        assert!(encode([].iter()).is_empty());
    }
}
