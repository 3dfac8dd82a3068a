//! TLS: who is trusted, who is shown a certificate, and that nobody falls back to plain HTTP because of a bad one.

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;

use cofferdam_registry::PlainHttp;

use super::secure::{Clients, fixture, start};
use super::*;

fn resolve(name: &str, ca_files: Vec<PathBuf>, plain_http: PlainHttp) -> Result<(), Error> {
    let client = Client::new(ClientOptions { ca_files, plain_http, ..options() })?;
    client.resolve(&ImageRef::parse(name)?, &platform()).map(drop)
}

#[test]
fn n12_a_registry_is_trusted_by_its_authority_and_name() {
    let ca = || vec![fixture("ca.pem")];
    for (certificate, trusted, host, expected) in [
        ("server.pem", true, "127.0.0.1", None),
        ("server.pem", true, "localhost", None),
        ("server.pem", false, "127.0.0.1", Some("authority is not trusted")),
        ("server.pem", true, "127.0.0.2", Some("")),
        ("expired.pem", true, "127.0.0.1", Some("has expired")),
        ("other.pem", true, "127.0.0.1", Some("for another host")),
    ] {
        let registry = start(certificate, Clients::Anybody);
        image(&registry);
        let name = format!("{host}:{}/a/b:v1", registry.address.port());
        for plain_http in [PlainHttp::LoopbackOnly, PlainHttp::Allowed] {
            let result = resolve(&name, if trusted { ca() } else { vec![] }, plain_http);
            match (expected, result) {
                (None, result) => result.unwrap(),
                (Some(expected), result) => {
                    let error = result.unwrap_err().to_string();
                    assert!(error.contains(expected), "{certificate} {host}: {error}");
                }
            }
        }
        if expected.is_some() {
            assert!(registry.seen("").is_empty(), "no request over a connection that is not trusted");
        }
    }
    let registry = start("server.pem", Clients::Anybody);
    let error =
        resolve(&registry.name("a/b:v1"), vec![fixture("none.pem")], PlainHttp::LoopbackOnly).unwrap_err();
    assert!(error.to_string().contains("none.pem"), "{error}");
}

#[test]
fn n12_an_old_tls_is_refused_by_name() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // A fatal alert, protocol_version, in a record of TLS 1.1.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(&[21, 3, 2, 0, 2, 2, 70]);
        }
    });
    let error = resolve(&format!("{address}/x"), vec![], PlainHttp::LoopbackOnly).unwrap_err();
    assert!(matches!(&error, Error::Tls { reason, .. } if reason.contains("TLS 1.2 or later")), "{error}");
}

#[test]
fn a9_a11_n12_a_client_certificate_is_shown_where_it_is_laid_out() {
    let registry = start("server.pem", Clients::Known);
    let (reference, blob, bytes) = image(&registry);
    let error =
        resolve(&reference.to_string(), vec![fixture("ca.pem")], PlainHttp::LoopbackOnly).unwrap_err();
    assert!(matches!(&error, Error::Tls { reason, .. } if reason.contains("client certificate")), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join(reference.registry());
    std::fs::create_dir(&place).unwrap();
    // As docker and podman have it.
    for (from, to) in [("ca.pem", "ca.crt"), ("client.pem", "client.cert"), ("client.key", "client.key")] {
        std::fs::copy(fixture(from), place.join(to)).unwrap();
    }
    let certificates = vec![folder.path().to_owned()];
    let hosts = HostFiles { certificates, ..HostFiles::none() };
    let client = Client::new(ClientOptions { hosts, ..options() }).unwrap();
    client.resolve(&reference, &platform()).unwrap();
    assert!(read(&client, &reference, &blob).unwrap() == bytes);

    // As containerd has it.
    let pair = "client = [[\"client.cert\", \"client.key\"]]\nca = \"ca.crt\"";
    std::fs::write(place.join("hosts.toml"), pair).unwrap();
    let hosts = HostFiles { hosts: vec![folder.path().to_owned()], ..HostFiles::none() };
    let client = Client::new(ClientOptions { hosts, ..options() }).unwrap();
    client.resolve(&reference, &platform()).unwrap();

    // Without the authority, only if the administrator says that it does not matter.
    for (line, works) in [("", false), ("skip_verify = true", true)] {
        let text = format!("client = [[\"client.cert\", \"client.key\"]]\n{line}");
        std::fs::write(place.join("hosts.toml"), text).unwrap();
        let hosts = HostFiles { hosts: vec![folder.path().to_owned()], ..HostFiles::none() };
        let client = Client::new(ClientOptions { hosts, ..options() }).unwrap();
        assert_eq!(client.resolve(&reference, &platform()).is_ok(), works, "{line}");
    }
}
