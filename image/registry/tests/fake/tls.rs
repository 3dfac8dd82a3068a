//! The fake registry over TLS.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "for tests")]

use std::path::PathBuf;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned, crypto::ring};

use super::fake::{FakeRegistry, Shake};

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Whether a client must show a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    Anybody,
    Known,
}

/// A registry with that certificate, a file of the fixtures.
pub fn start(certificate: &str, clients: Clients) -> FakeRegistry {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        Clients::Anybody => builder.with_no_client_auth(),
        Clients::Known => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(fixture("ca.pem")).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let chain = vec![CertificateDer::from_pem_file(fixture(certificate)).unwrap()];
    let key = PrivateKeyDer::from_pem_file(fixture("server.key")).unwrap();
    let config = Arc::new(builder.with_single_cert(chain, key).unwrap());
    let shake: Shake = Arc::new(move |stream| {
        let session = ServerConnection::new(Arc::clone(&config)).ok()?;
        Some(Box::new(StreamOwned::new(session, stream)))
    });
    FakeRegistry::start_with(shake)
}
