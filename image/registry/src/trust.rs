//! Whom TLS trusts: the system's certificate authorities, plus those that the administrator laid out for one registry.
//!
//! `/etc/containers/certs.d/<host[:port]>/*.crt` and `/etc/docker/certs.d/...` are read as podman and docker read them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::error::Error;
use crate::transport::Origin;

const HOST_FOLDERS: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

/// Certificate authorities, read when the first TLS connection needs them.
pub(crate) struct Trust {
    extra: Vec<PathBuf>,
    system: OnceLock<Vec<CertificateDer<'static>>>,
    configs: Mutex<HashMap<String, Arc<ClientConfig>>>,
}

impl Trust {
    /// The system's authorities and those in the PEM files `extra`.
    pub(crate) fn new(extra: Vec<PathBuf>) -> Trust {
        Trust { extra, system: OnceLock::new(), configs: Mutex::default() }
    }

    pub(crate) fn config_for(&self, origin: &Origin) -> Result<Arc<ClientConfig>, Error> {
        let key = origin.authority();
        if let Some(config) = self.configs.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.build(&key)?);
        self.configs.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::clone(&config));
        Ok(config)
    }

    fn build(&self, host: &str) -> Result<ClientConfig, Error> {
        let tls = |reason: String| Error::Tls { host: host.to_owned(), reason };
        // A system without a certificate store is no error as long as the registry's own authority is laid out.
        let system = self.system.get_or_init(|| rustls_native_certs::load_native_certs().certs);
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(system.iter().cloned());
        for file in self.extra.iter().cloned().chain(host_files(host)) {
            let read = |error: &dyn std::fmt::Display| tls(format!("{}: {error}", file.display()));
            let certificates = CertificateDer::pem_file_iter(&file).map_err(|error| read(&error))?;
            for certificate in certificates {
                roots.add(certificate.map_err(|error| read(&error))?).map_err(|error| read(&error))?;
            }
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| tls(error.to_string()))?;
        Ok(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

fn host_files(host: &str) -> Vec<PathBuf> {
    let folders = HOST_FOLDERS.iter().map(|folder| Path::new(folder).join(host));
    let entries = folders.filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "crt"));
    files.sort();
    files
}
