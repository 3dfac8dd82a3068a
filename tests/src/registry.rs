//! Debian's docker-registry on a loopback port, for as long as a test needs it.

use std::fmt::Write as _;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::world::succeed;

/// The user that a registry with [`Access::Password`] lets in.
pub const USER: &str = "operator";
/// That user's password.
pub const PASSWORD: &str = "correct horse battery staple";

/// The password's bcrypt hash: docker-registry takes no other kind, and no package here makes one.
const PASSWORD_HASH: &str = "$2b$05$92p2bTqAIGonBWvAdJfe8udIXK1qXl5UcuoFS6LFaadlU0HrKoKBq";

/// How long a registry may take until it answers: seconds even on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How a registry is to behave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Who may use it.
    pub access: Access,
    /// How it is spoken to.
    pub transport: Transport,
    /// Whether pushes are accepted.
    pub writes: Writes,
}

/// Who may use a registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    #[default]
    Open,
    /// [`USER`] with [`PASSWORD`], by basic authentication.
    Password,
}

/// How a registry is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// HTTP.
    #[default]
    Plain,
    /// HTTPS with a certificate of an authority made for this registry, see [`Registry::authority`].
    Tls,
}

/// Whether a registry accepts pushes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writes {
    /// It does.
    #[default]
    Accepted,
    /// It does not, so that many can serve one folder.
    Refused,
}

/// A running registry; it ends when this is dropped.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    port: u16,
    folder: TempDir,
}

impl Registry {
    /// Starts a registry on a free loopback port of the calling thread's network namespace.
    ///
    /// `storage` is docker-registry's root folder; it may be empty.
    pub fn start(storage: &Path, options: Options) -> Result<Registry> {
        let folder = tempfile::Builder::new().prefix("cofferdam-registry-").tempdir()?;
        let port = free_port()?;
        let configuration = folder.path().join("config.yml");
        std::fs::write(&configuration, configure(storage, port, options, folder.path())?)?;
        let log = File::create(folder.path().join("log"))?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&configuration)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting docker-registry")?;
        let mut registry = Registry { process, port, folder };
        registry.wait_until_ready()?;
        Ok(registry)
    }

    /// `127.0.0.1:PORT`: what stands before the first slash of an image's name.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The certificate of the authority that signed this registry's, for [`Transport::Tls`].
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// Pushes an image, given as the archive of an OCI layout, by skopeo; returns its whole name.
    pub fn push(&self, archive: &[u8], name: &str) -> Result<String> {
        let file = self.folder.path().join("pushed.tar");
        std::fs::write(&file, archive)?;
        let name = format!("{}/{name}:latest", self.address());
        succeed(
            Command::new("skopeo")
                .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
                .arg(format!("oci-archive:{}", file.display()))
                .arg(format!("docker://{name}")),
        )?;
        Ok(name)
    }

    /// What the registry has written so far, requests included.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        while TcpStream::connect_timeout(&address, START_LIMIT).is_err() {
            if let Some(status) = self.process.try_wait()? {
                bail!("docker-registry ended with {status}:\n{}", self.log());
            }
            if Instant::now() >= deadline {
                bail!("docker-registry does not answer on port {}:\n{}", self.port, self.log());
            }
            // Its only sign of life is the port itself.
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

/// Bytes that do not compress, the same each time: what makes a pull take a while.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(|_| byte()).collect()
}

fn configure(storage: &Path, port: u16, options: Options, folder: &Path) -> Result<String> {
    let mut text = format!(
        "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\n",
        storage.display()
    );
    if options.writes == Writes::Refused {
        text.push_str("  maintenance:\n    readonly:\n      enabled: true\n");
    }
    write!(text, "http:\n  addr: 127.0.0.1:{port}\n")?;
    if options.transport == Transport::Tls {
        make_certificates(folder)?;
        let (certificate, key) = (folder.join("registry.pem"), folder.join("registry.key"));
        write!(text, "  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display())?;
    }
    if options.access == Access::Password {
        let passwords = folder.join("passwords");
        std::fs::write(&passwords, format!("{USER}:{PASSWORD_HASH}\n"))?;
        write!(text, "auth:\n  htpasswd:\n    realm: fixtures\n    path: {}\n", passwords.display())?;
    }
    Ok(text)
}

/// An authority, and a certificate by it for the loopback address.
fn make_certificates(folder: &Path) -> Result<()> {
    let openssl = |words: &str| succeed(Command::new("openssl").args(words.split(' ')).current_dir(folder));
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=fixtures \
         -keyout authority.key -out authority.pem",
    )?;
    openssl(
        "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -keyout registry.key \
         -out registry.csr",
    )?;
    std::fs::write(
        folder.join("extensions"),
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n",
    )?;
    openssl(
        "x509 -req -in registry.csr -CA authority.pem -CAkey authority.key -CAcreateserial -days 2 \
         -extfile extensions -out registry.pem",
    )?;
    Ok(())
}
