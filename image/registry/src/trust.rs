//! Whom TLS trusts, and who this client says it is.
//!
//! The system's certificate authorities, those of the client's options, those that hosts.toml names, and what lies in
//! `certs.d/<host[:port]>/`: `*.crt` are authorities, `*.cert` with `*.key` is a client certificate, as docker and podman
//! read them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError,
    RootCertStore, SignatureScheme,
};

use crate::error::Error;
use crate::transport::Peer;

/// Certificates, read when the first TLS connection needs them.
pub(crate) struct Trust {
    extra: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    system: Arc<OnceLock<RootCertStore>>,
    configs: Mutex<HashMap<Peer, Arc<ClientConfig>>>,
}

impl Trust {
    /// The system's authorities, those in the PEM files `extra`, and what lies in `folders` for a host.
    pub(crate) fn new(extra: Vec<PathBuf>, folders: Vec<PathBuf>) -> Trust {
        Trust { extra, folders, system: Arc::default(), configs: Mutex::default() }
    }

    pub(crate) fn config_for(&self, peer: &Peer) -> Result<Arc<ClientConfig>, Error> {
        if let Some(config) = self.configs.lock().unwrap_or_else(PoisonError::into_inner).get(peer) {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.build(peer)?);
        self.configs.lock().unwrap_or_else(PoisonError::into_inner).insert(peer.clone(), Arc::clone(&config));
        Ok(config)
    }

    fn build(&self, peer: &Peer) -> Result<ClientConfig, Error> {
        let host = peer.origin.authority();
        let tls = |reason: String| Error::Tls { host: host.clone(), reason };
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| tls(error.to_string()))?;
        let judge = if peer.tls.unchecked { Judge::Nobody } else { self.judge(peer, &host)? };
        let builder =
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Verifier { provider, judge }));
        let Some((certificate, key)) = peer.tls.client.clone().or_else(|| self.client_files(&host)) else {
            return Ok(builder.with_no_client_auth());
        };
        let read =
            |path: &Path, error: String| tls(format!("client certificate {}: {error}", path.display()));
        let chain = certificates(&certificate).map_err(|error| read(&certificate, error))?;
        let secret = PrivateKeyDer::from_pem_file(&key).map_err(|error| read(&key, error.to_string()))?;
        builder.with_client_auth_cert(chain, secret).map_err(|error| read(&certificate, error.to_string()))
    }

    fn judge(&self, peer: &Peer, host: &str) -> Result<Judge, Error> {
        let mut own = RootCertStore::empty();
        let files = self.files(host, "crt");
        for file in self.extra.iter().chain(&peer.tls.authorities).chain(&files) {
            let read = |error: String| Error::Tls {
                host: host.to_owned(),
                reason: format!("{}: {error}", file.display()),
            };
            for certificate in certificates(file).map_err(read)? {
                own.add(certificate).map_err(|error| read(error.to_string()))?;
            }
        }
        Ok(Judge::Authorities { own, system: Arc::clone(&self.system), checks: OnceLock::new() })
    }

    /// The first `*.cert` that has a `*.key` beside it.
    fn client_files(&self, host: &str) -> Option<(PathBuf, PathBuf)> {
        let pairs = self.files(host, "cert").into_iter().map(|file| (file.with_extension("key"), file));
        pairs.filter(|(key, _)| key.exists()).map(|(key, certificate)| (certificate, key)).next()
    }

    fn files(&self, host: &str, extension: &str) -> Vec<PathBuf> {
        let folders = self.folders.iter().map(|folder| folder.join(host));
        let entries = folders.filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|own| own == extension));
        files.sort();
        files
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(file).map_err(|error| error.to_string())?;
    found.collect::<Result<_, _>>().map_err(|error| error.to_string())
}

/// What a failed handshake means, for people.
pub(crate) fn explain(error: &std::io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    let class = match inner {
        Some(TlsError::InvalidCertificate(certificate)) => match certificate {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the certificate has expired"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the certificate is not valid yet"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the certificate is for another host"
            }
            CertificateError::UnknownIssuer => "the certificate's authority is not trusted",
            _ => "the certificate is not acceptable",
        },
        Some(TlsError::AlertReceived(AlertDescription::CertificateRequired)) => {
            "it wants a client certificate, and there is none for it"
        }
        Some(TlsError::AlertReceived(AlertDescription::ProtocolVersion) | TlsError::PeerIncompatible(_)) => {
            "it does not speak TLS 1.2 or later"
        }
        Some(TlsError::AlertReceived(_)) => "it refused the handshake",
        _ => return error.to_string(),
    };
    format!("{class} ({error})")
}

/// Who says whether a certificate is good.
#[derive(Debug)]
enum Judge {
    /// Any is taken: an administrator said so for one host. The handshake itself is still checked.
    Nobody,
    /// The authorities of the host's own files and the system's. The latter, a hundred files and more, are read when a
    /// certificate is shown: a registry on loopback that speaks plain HTTP shows none.
    Authorities {
        own: RootCertStore,
        system: Arc<OnceLock<RootCertStore>>,
        checks: OnceLock<Arc<WebPkiServerVerifier>>,
    },
}

#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    judge: Judge,
}

/// A system without a certificate store is no error as long as the registry's own authority is laid out.
fn system_authorities() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let Judge::Authorities { own, system, checks } = &self.judge else {
            return Ok(ServerCertVerified::assertion());
        };
        let checks = match checks.get() {
            Some(checks) => checks,
            None => {
                let mut roots = system.get_or_init(system_authorities).clone();
                roots.extend(own.roots.iter().cloned());
                let built =
                    WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&self.provider));
                let built = built.build().map_err(|_| CertificateError::UnknownIssuer)?;
                checks.get_or_init(|| built)
            }
        };
        checks.verify_server_cert(certificate, between, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
