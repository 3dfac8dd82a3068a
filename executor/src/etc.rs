//! The files that a task finds in `/etc` whatever its image holds: `hosts`, `hostname`, `resolv.conf`.
//!
//! They are written into a directory of ours and bind-mounted, never into the image's tree. Every name and address in them
//! is checked first: a newline in a host name would be a line of its own in `hosts`.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::bundle::EtcFiles;
use crate::error::Error;
use crate::spec::NetworkChoice;

/// Name servers for a host that has only itself to ask: its own resolver is not reachable from another network namespace.
const FALLBACK_SERVERS: [&str; 2] = ["1.1.1.1", "8.8.8.8"];

/// Most bytes that are read of the host's `resolv.conf`.
const RESOLV_CONF_LIMIT_BYTES: usize = 64 << 10;

/// Most bytes of a file's old text that are filled with empty lines: more than a text of ours ever has.
const FILLED_LIMIT_BYTES: u64 = 1 << 20;

/// What the C library reads of `resolv.conf`.
const SERVER_LIMIT: usize = 3;

/// How names are resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    /// Name servers.
    pub servers: Vec<IpAddr>,
    /// Domains to search.
    pub search: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl Resolver {
    /// Reads a `resolv.conf`; what does not fit the grammar is left out.
    pub(crate) fn parse(text: &str) -> Resolver {
        let mut resolver = Resolver::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    resolver.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()))
                }
                Some("search" | "domain") => resolver.search = clean(words),
                Some("options") => resolver.options = clean(words),
                _ => {}
            }
        }
        resolver
    }

    /// The resolver of a task: what itself and its networks say, and for what they leave open what the host has.
    pub(crate) fn choose(said: Resolver, network: &NetworkChoice) -> Resolver {
        let mut resolver = said.checked();
        // Domains and options belong to the servers that know them: the host's come only together.
        if resolver.servers.is_empty() {
            let host = Resolver::of_host();
            let host = if *network == NetworkChoice::Host { host } else { host.without_loopback() };
            resolver.servers = host.servers;
            if resolver.search.is_empty() {
                resolver.search = host.search;
            }
            if resolver.options.is_empty() {
                resolver.options = host.options;
            }
        }
        resolver
    }

    fn of_host() -> Resolver {
        let text = fs::read("/etc/resolv.conf").unwrap_or_default();
        Resolver::parse(&String::from_utf8_lossy(&text[..text.len().min(RESOLV_CONF_LIMIT_BYTES)]))
    }

    /// The same without words that do not belong into a file: plugins write what they like.
    pub(crate) fn checked(self) -> Resolver {
        let clean = |words: &[String]| clean(words.iter().map(String::as_str));
        Resolver { search: clean(&self.search), options: clean(&self.options), servers: self.servers }
    }

    /// The same without servers that are the host's own loopback.
    pub(crate) fn without_loopback(mut self) -> Resolver {
        self.servers.retain(|server| !server.is_loopback());
        if self.servers.is_empty() {
            self.servers = FALLBACK_SERVERS.iter().filter_map(|server| server.parse().ok()).collect();
        }
        self
    }

    fn print(&self) -> String {
        let mut text = String::new();
        for server in self.servers.iter().take(SERVER_LIMIT) {
            let _ = writeln!(text, "nameserver {server}");
        }
        for (key, words) in [("search", &self.search), ("options", &self.options)] {
            if !words.is_empty() {
                let _ = writeln!(text, "{key} {}", words.join(" "));
            }
        }
        text
    }
}

fn clean<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    let fits = |word: &&str| {
        word.len() <= 253 && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte))
    };
    words.filter(fits).take(16).map(str::to_owned).collect()
}

/// An address of a task, and the names beside its own that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Its aliases on that network.
    pub aliases: Vec<String>,
}

/// The text of `/etc/hosts` for a task with this name, these addresses and these neighbours.
fn hosts(hostname: &str, addresses: &[Address], neighbours: &[Address]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for address in addresses {
        let _ = write!(text, "{}\t{hostname}", address.ip);
        for alias in clean(address.aliases.iter().map(String::as_str)) {
            let _ = write!(text, " {alias}");
        }
        text.push('\n');
    }
    if addresses.is_empty() {
        let _ = writeln!(text, "127.0.1.1\t{hostname}");
    }
    for neighbour in neighbours {
        let names = clean(neighbour.aliases.iter().map(String::as_str));
        if !names.is_empty() {
            let _ = writeln!(text, "{}\t{}", neighbour.ip, names.join(" "));
        }
    }
    text
}

fn files(directory: &Path) -> EtcFiles {
    EtcFiles {
        hosts: directory.join("hosts"),
        hostname: directory.join("hostname"),
        resolv_conf: directory.join("resolv.conf"),
    }
}

/// Writes the three files into `directory`, each in one step. `hostname` must have been checked.
pub(crate) fn write(
    directory: &Path,
    hostname: &str,
    addresses: &[Address],
    resolver: &Resolver,
) -> Result<EtcFiles, Error> {
    fs::create_dir_all(directory).map_err(Error::io("make the directory", directory))?;
    let files = files(directory);
    for (path, text) in [
        (&files.hosts, hosts(hostname, addresses, &[])),
        (&files.hostname, format!("{hostname}\n")),
        (&files.resolv_conf, resolver.print()),
    ] {
        let draft = path.with_extension("new");
        let written = write_file(&draft, &text).and_then(|()| fs::rename(&draft, path));
        written.map_err(Error::io("write", path))?;
    }
    Ok(files)
}

/// Writes the files of a running task anew, in their place: it has those very files mounted. One that has none is left so.
pub(crate) fn rewrite(
    directory: &Path,
    hostname: &str,
    addresses: &[Address],
    neighbours: &[Address],
    resolver: &Resolver,
) -> Result<(), Error> {
    let files = files(directory);
    let hosts = hosts(hostname, addresses, neighbours);
    for (path, text) in [(&files.hosts, hosts), (&files.resolv_conf, resolver.print())] {
        match write_over(path, text) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            written => written.map_err(Error::io("write", path))?,
        }
    }
    Ok(())
}

/// Writes a text over a file that others may be reading: in one call, and never emptied first. One that gets shorter is filled
/// up with empty lines before they are cut off. The task may have made anything of the file: of what is in it no more is read
/// than there should be, and whoever holds a lease of it is not waited for (fcntl(2), `F_SETLEASE`).
fn write_over(path: &Path, mut text: String) -> std::io::Result<()> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    let (old, length) = (file.metadata()?.len(), text.len());
    let mut there = vec![0; length];
    if old == length as u64 && file.read_exact_at(&mut there, 0).is_ok() && there == text.as_bytes() {
        return Ok(());
    }
    let old = usize::try_from(old.min(FILLED_LIMIT_BYTES)).unwrap_or(0);
    text.extend(std::iter::repeat_n('\n', old.saturating_sub(length)));
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(length as u64)
}

/// World-readable, whatever the caller's umask: tasks of any user resolve names.
fn write_file(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_is_read_and_written_without_what_does_not_belong() {
        let text = "# c\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nnameserver x\nsearch a.b bad;x\noptions ndots:2\n";
        let resolver = Resolver::parse(text).without_loopback();
        assert_eq!(resolver.print(), "nameserver 9.9.9.9\nsearch a.b\noptions ndots:2\n");
    }

    #[test]
    fn a_host_that_asks_itself_gives_public_servers() {
        let resolver = Resolver::parse("nameserver 127.0.0.1\n").without_loopback();
        assert_eq!(resolver.print(), "nameserver 1.1.1.1\nnameserver 8.8.8.8\n");
    }

    #[test]
    fn the_files_are_readable_by_all() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let address = |ip: &str, aliases: &[&str]| Address {
            ip: ip.parse().unwrap(),
            aliases: aliases.iter().map(ToString::to_string).collect(),
        };
        let one = address("10.0.0.2", &["db", "bad\nname"]);
        let files = write(dir.path(), "web", std::slice::from_ref(&one), &Resolver::default()).unwrap();
        assert!(fs::read_to_string(&files.hosts).unwrap().ends_with("10.0.0.2\tweb db\n"));
        assert_eq!(fs::metadata(&files.hosts).unwrap().mode() & 0o777, 0o644);
        // A task that runs has the file itself, not its name.
        let inode = fs::metadata(&files.hosts).unwrap().ino();
        let others = [address("10.1.0.3", &["cache", "bad\nname"]), address("10.1.0.4", &["bad name"])];
        rewrite(dir.path(), "web", &[one.clone(), address("10.1.0.2", &[])], &others, &Resolver::default())
            .unwrap();
        let text = fs::read_to_string(&files.hosts).unwrap();
        assert!(text.ends_with("10.0.0.2\tweb db\n10.1.0.2\tweb\n10.1.0.3\tcache\n"), "{text}");
        rewrite(dir.path(), "web", &[one], &[], &Resolver::default()).unwrap();
        assert!(fs::read_to_string(&files.hosts).unwrap().ends_with("10.0.0.2\tweb db\n"));
        assert_eq!(fs::metadata(&files.hosts).unwrap().ino(), inode);
    }

    #[test]
    fn what_a_task_has_made_of_its_files_costs_nobody_memory() {
        let dir = tempfile::tempdir().unwrap();
        let files = write(dir.path(), "web", &[], &Resolver::default()).unwrap();
        let before = fs::read(&files.hosts).unwrap();
        for path in [&files.hosts, &files.hostname, &files.resolv_conf] {
            // Full of holes: it takes no room.
            OpenOptions::new().write(true).open(path).unwrap().set_len(1 << 40).unwrap();
        }
        rewrite(dir.path(), "web", &[], &[], &Resolver::default()).unwrap();
        assert_eq!(fs::read(&files.hosts).unwrap(), before);
    }

    #[test]
    fn a_reader_never_finds_the_file_emptied_while_it_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let address = |ip: String| Address { ip: ip.parse().unwrap(), aliases: vec!["name".into()] };
        let own = [address("10.0.0.2".into())];
        let files = write(dir.path(), "web", &own, &Resolver::default()).unwrap();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut reads = 0_u32;
                while !is_over.load(std::sync::atomic::Ordering::Acquire) {
                    let text = fs::read_to_string(&files.hosts).unwrap();
                    assert!(
                        text.contains("\tlocalhost\n") && text.contains("10.0.0.2\tweb name\n"),
                        "{text}"
                    );
                    reads += 1;
                }
                reads
            });
            for round in 0..300_u32 {
                let others: Vec<_> = (0..round % 30).map(|n| address(format!("10.0.1.{n}"))).collect();
                rewrite(dir.path(), "web", &own, &others, &Resolver::default()).unwrap();
            }
            is_over.store(true, std::sync::atomic::Ordering::Release);
            reader.join().unwrap();
        });
    }
}
