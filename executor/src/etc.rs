//! The files that a task finds in `/etc` whatever its image holds: `hosts`, `hostname`, `resolv.conf`.
//!
//! They are written into a directory of ours and bind-mounted, never into the image's tree. Every name and address in them
//! is checked first: a newline in a host name would be a line of its own in `hosts`.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::bundle::EtcFiles;
use crate::error::Error;

/// Name servers for a host that has only itself to ask: its own resolver is not reachable from another network namespace.
const FALLBACK_SERVERS: [&str; 2] = ["1.1.1.1", "8.8.8.8"];

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

/// The text of `/etc/hosts` for a task with this name and these addresses.
fn hosts(hostname: &str, addresses: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for address in addresses {
        let _ = writeln!(text, "{address}\t{hostname}");
    }
    if addresses.is_empty() {
        let _ = writeln!(text, "127.0.1.1\t{hostname}");
    }
    text
}

/// Writes the three files into `directory`. `hostname` must have been checked.
pub(crate) fn write(
    directory: &Path,
    hostname: &str,
    addresses: &[IpAddr],
    resolver: &Resolver,
) -> Result<EtcFiles, Error> {
    fs::create_dir_all(directory).map_err(Error::io("make the directory", directory))?;
    let files = EtcFiles {
        hosts: directory.join("hosts"),
        hostname: directory.join("hostname"),
        resolv_conf: directory.join("resolv.conf"),
    };
    for (path, text) in [
        (&files.hosts, hosts(hostname, addresses)),
        (&files.hostname, format!("{hostname}\n")),
        (&files.resolv_conf, resolver.print()),
    ] {
        write_file(path, &text).map_err(Error::io("write", path))?;
    }
    Ok(files)
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
        let files = write(dir.path(), "web", &["10.0.0.2".parse().unwrap()], &Resolver::default()).unwrap();
        assert!(fs::read_to_string(&files.hosts).unwrap().contains("10.0.0.2\tweb\n"));
        assert_eq!(fs::metadata(&files.hosts).unwrap().mode() & 0o777, 0o644);
    }
}
