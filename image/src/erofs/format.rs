//! The structures on the disk, little-endian, as bytes.

use rustix::fs::Timespec;

/// Bytes of a block: what every page size can map.
pub(super) const BLOCK_BYTES: usize = 4096;
/// Inodes are addressed in units of this many bytes.
pub(super) const SLOT_BYTES: u64 = 32;
/// Where the superblock is.
pub(super) const SUPERBLOCK_OFFSET: usize = 1024;
/// "No block": a hole.
pub(super) const NULL_BLOCK: u32 = u32::MAX;
/// An entry of a directory without its name.
pub(super) const DIRENT_BYTES: usize = 12;

const MAGIC: u32 = 0xe0f5_e1e2;
/// The superblock's checksum is there; times of inodes are those of their last change.
const COMPATIBLE_FEATURES: u32 = 0x1 | 0x2;
/// Files in chunks (Linux 5.15).
const CHUNKED_FILES: u32 = 0x4;

/// How an inode's data is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataLayout {
    /// Consecutive blocks.
    Plain = 0,
    /// Consecutive blocks, the rest right behind the inode.
    Inline = 2,
    /// An array of chunks' addresses behind the inode.
    Chunks = 4,
}

/// Everything that the superblock says.
pub(super) struct Superblock {
    pub(super) root: u16,
    pub(super) inodes: u64,
    /// The time of inodes that do not state one.
    pub(super) time: Timespec,
    pub(super) blocks: u32,
    pub(super) metadata_block: u32,
    pub(super) uuid: [u8; 16],
    pub(super) has_chunks: bool,
}

impl Superblock {
    /// The first block of the file, with its checksum.
    pub(super) fn block(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES];
        let superblock = &mut block[SUPERBLOCK_OFFSET..];
        let mut put = |at: usize, bytes: &[u8]| superblock[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_le_bytes());
        put(8, &COMPATIBLE_FEATURES.to_le_bytes());
        put(12, &[BLOCK_BYTES.trailing_zeros() as u8]);
        put(14, &self.root.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(24, &self.time.tv_sec.to_le_bytes());
        put(32, &(self.time.tv_nsec as u32).to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.metadata_block.to_le_bytes());
        put(48, &self.uuid);
        put(80, &(if self.has_chunks { CHUNKED_FILES } else { 0 }).to_le_bytes());
        let checksum = crc32c(superblock);
        superblock[4..8].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// An inode without its attributes.
pub(super) struct Inode {
    pub(super) layout: DataLayout,
    /// Bytes of extended attributes behind it.
    pub(super) xattr_bytes: usize,
    /// Type and permissions.
    pub(super) mode: u32,
    pub(super) size: u64,
    /// First block, device number or chunk format.
    pub(super) union: u32,
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timespec,
    pub(super) links: u32,
}

/// The two sizes of an inode.
pub(super) const COMPACT_BYTES: usize = 32;
pub(super) const EXTENDED_BYTES: usize = 64;

impl Inode {
    /// Whether the small form can say everything: it has 16 bits for owners and links, and no time of its own.
    pub(super) fn bytes(&self, time: Timespec) -> usize {
        let small = u16::try_from(self.uid.max(self.gid).max(self.links)).is_ok();
        let fits = small && u32::try_from(self.size).is_ok() && self.mtime == time;
        if fits { COMPACT_BYTES } else { EXTENDED_BYTES }
    }

    /// Appends it in the form of `bytes` bytes.
    pub(super) fn encode(&self, bytes: usize, out: &mut Vec<u8>) {
        let extended = bytes == EXTENDED_BYTES;
        let format = (self.layout as u16) << 1 | u16::from(extended);
        // An array of four-byte units behind a header of twelve bytes, counted from one.
        let count = if self.xattr_bytes == 0 { 0 } else { (self.xattr_bytes - 12) / 4 + 1 };
        let start = out.len();
        out.extend(format.to_le_bytes());
        out.extend((count as u16).to_le_bytes());
        out.extend((self.mode as u16).to_le_bytes());
        if extended {
            out.extend([0; 2]);
            out.extend(self.size.to_le_bytes());
            out.extend(self.union.to_le_bytes());
            out.extend(self.number.to_le_bytes());
            out.extend(self.uid.to_le_bytes());
            out.extend(self.gid.to_le_bytes());
            out.extend(self.mtime.tv_sec.to_le_bytes());
            out.extend((self.mtime.tv_nsec as u32).to_le_bytes());
            out.extend(self.links.to_le_bytes());
        } else {
            out.extend((self.links as u16).to_le_bytes());
            out.extend((self.size as u32).to_le_bytes());
            out.extend([0; 4]);
            out.extend(self.union.to_le_bytes());
            out.extend(self.number.to_le_bytes());
            out.extend((self.uid as u16).to_le_bytes());
            out.extend((self.gid as u16).to_le_bytes());
        }
        out.resize(start + bytes, 0);
    }
}

/// CRC-32C as the kernel's `crc32c(~0, …)` leaves it, without the last inversion.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, B.4, without its last inversion.
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn an_inode_is_small_where_it_can_be() {
        let time = Timespec { tv_sec: 7, tv_nsec: 0 };
        let inode = |uid, size, mtime| Inode {
            layout: DataLayout::Plain,
            xattr_bytes: 0,
            mode: 0o100_644,
            size,
            union: 0,
            number: 1,
            uid,
            gid: 0,
            mtime,
            links: 1,
        };
        for (inode, bytes) in [
            (inode(0, 0, time), COMPACT_BYTES),
            (inode(65_535, 1, time), COMPACT_BYTES),
            (inode(65_536, 1, time), EXTENDED_BYTES),
            (inode(0, 1 << 32, time), EXTENDED_BYTES),
            (inode(0, 0, Timespec { tv_sec: 7, tv_nsec: 1 }), EXTENDED_BYTES),
        ] {
            assert_eq!(inode.bytes(time), bytes);
            let mut out = vec![9];
            inode.encode(bytes, &mut out);
            assert_eq!(out.len(), bytes + 1);
        }
    }
}
