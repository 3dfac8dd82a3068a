//! The kernel's modules that the machine loads, and what those need.
//!
//! An unpacked kernel package has no `modules.dep` (its installation makes that), but every module carries the names
//! of those that it needs in its `.modinfo` section, as `depends=a,b`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What the initramfs needs to reach the disk.
pub(super) const DISK: &[&str] = &["virtio_pci", "virtio_blk"];

/// What the suites need, by what they use it for.
pub(super) const SUITES: &[&str] = &[
    // Root file systems.
    "overlay",
    "loop",
    "erofs",
    "squashfs",
    "fuse",
    // Links.
    "veth",
    "bridge",
    "br_netfilter",
    "dummy",
    "macvlan",
    "ipvlan",
    "8021q",
    "vrf",
    "tun",
    "vxlan",
    // Limits of throughput.
    "ifb",
    "sch_tbf",
    "sch_ingress",
    "cls_u32",
    "act_mirred",
    // Address translation by nft.
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_ct",
    "nft_fib_inet",
    "nft_reject_inet",
    "nft_meta_bridge",
    "nft_compat",
    "nfnetlink",
    "nf_conntrack_netlink",
    // Address translation by iptables, for the reference plugins.
    "xt_nat",
    "xt_MASQUERADE",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_addrtype",
    "xt_multiport",
    "xt_statistic",
];

/// A kernel's modules by name.
pub(super) struct Modules(BTreeMap<String, PathBuf>);

impl Modules {
    /// Finds every module below a folder.
    pub(super) fn find(folder: &Path) -> Result<Modules> {
        let mut found = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in
                std::fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))?
            {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Some(name) =
                    path.file_name().and_then(|name| name.to_str()?.strip_suffix(".ko"))
                {
                    found.insert(canonical(name), path);
                }
            }
        }
        Ok(Modules(found))
    }

    /// The files of these modules and all that they need, in an order in which they load.
    ///
    /// A name that is no module is left out: another kernel may have it built in.
    pub(super) fn in_order(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut order = Vec::new();
        for name in names {
            self.append(name, &mut order)?;
        }
        Ok(order)
    }

    fn append(&self, name: &str, order: &mut Vec<PathBuf>) -> Result<()> {
        let Some(path) = self.0.get(&canonical(name)) else { return Ok(()) };
        if order.contains(path) {
            return Ok(());
        }
        let content = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        for needed in needed(&content) {
            self.append(&needed, order)?;
        }
        order.push(path.clone());
        Ok(())
    }
}

/// Module names are written with either sign; the kernel compares them with underscores.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn needed(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[start + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(value);
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::needed;

    #[test]
    fn a_module_names_what_it_needs() {
        assert_eq!(needed(b"ELF\0license=GPL\0depends=nf_tables,nf-nat\0name=x\0"), ["nf_tables", "nf-nat"]);
        assert!(needed(b"ELF\0license=GPL\0depends=\0name=x\0").is_empty());
    }
}
