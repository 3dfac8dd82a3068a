//! TLS: who is trusted, and that nobody falls back to plain HTTP because a certificate is bad.

#![allow(clippy::unwrap_used, reason = "a test program")]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use cofferdam_registry::{
    Client, ClientOptions, CredentialSource, Error, ImageRef, OCI_MANIFEST, PlainHttp, Platform,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::ring};

const MANIFEST: &str = r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Serves the manifest over TLS for any request; returns its port.
fn start() -> u16 {
    let certificates = vec![CertificateDer::from_pem_file(fixture("server.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(fixture("server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let session = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut reader = BufReader::new(StreamOwned::new(session, stream));
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|count| count > 2) {
                line.clear();
            }
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {OCI_MANIFEST}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{MANIFEST}",
                MANIFEST.len()
            );
            // A client that refuses the certificate is gone by now.
            let _ = reader.get_mut().write_all(answer.as_bytes());
        }
    });
    port
}

fn resolve(name: &str, ca_files: Vec<PathBuf>, plain_http: PlainHttp) -> Result<(), Error> {
    let credentials = CredentialSource::Anonymous;
    let client =
        Client::new(ClientOptions { ca_files, plain_http, credentials, ..ClientOptions::default() })?;
    client.resolve(&ImageRef::parse(name)?, &Platform::host()).map(drop)
}

#[test]
fn a_registry_is_trusted_by_its_authority_and_name() {
    let port = start();
    let ca = || vec![fixture("ca.pem")];
    resolve(&format!("127.0.0.1:{port}/x"), ca(), PlainHttp::LoopbackOnly).unwrap();
    resolve(&format!("localhost:{port}/x"), ca(), PlainHttp::LoopbackOnly).unwrap();
    for plain_http in [PlainHttp::LoopbackOnly, PlainHttp::Allowed] {
        let error = resolve(&format!("127.0.0.1:{port}/x"), vec![], plain_http).unwrap_err();
        assert!(matches!(&error, Error::Tls { reason, .. } if reason.contains("UnknownIssuer")), "{error}");
        let error = resolve(&format!("127.0.0.2:{port}/x"), ca(), plain_http);
        assert!(error.is_err());
    }
    let error = resolve(&format!("127.0.0.1:{port}/x"), vec![fixture("none.pem")], PlainHttp::LoopbackOnly)
        .unwrap_err();
    assert!(error.to_string().contains("none.pem"), "{error}");
}
