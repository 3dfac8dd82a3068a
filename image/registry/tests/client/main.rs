//! The client against registries that misbehave: a request, a hostile answer, and what must come of it. Names begin with the
//! acceptance statements that they prove.

#![allow(clippy::unwrap_used, reason = "a test program")]

#[path = "../fake/mod.rs"]
mod fake;
#[path = "../fake/tls.rs"]
mod secure;

mod authentication;
mod environment;
mod failures;
mod hostile;
mod hosts;
mod pushing;
mod tls;
mod transfers;

use std::io::Read;
use std::time::Duration;

use cofferdam_registry::{
    Client, ClientOptions, Credential, CredentialSource, Descriptor, Error, HostFiles, ImageRef, OCI_CONFIG,
    OCI_MANIFEST, Platform, Proxies, RetryPolicy, Secret,
};
use fake::FakeRegistry;

/// Options that look at nothing of this machine's, and that try again at once.
fn options() -> ClientOptions {
    ClientOptions {
        credentials: CredentialSource::Anonymous,
        retry: RetryPolicy { first_delay: Duration::from_millis(5), ..RetryPolicy::default() },
        hosts: HostFiles::none(),
        proxies: Some(Proxies::default()),
        ..ClientOptions::default()
    }
}

fn client(credentials: CredentialSource) -> Client {
    Client::new(ClientOptions { credentials, ..options() }).unwrap()
}

fn anonymous() -> Client {
    client(CredentialSource::Anonymous)
}

fn user(name: &str, password: &str) -> CredentialSource {
    CredentialSource::Given(Credential::Basic { user: name.into(), password: Secret::new(password) })
}

fn platform() -> Platform {
    Platform::parse("linux/amd64").unwrap()
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// A manifest with one blob of a megabyte that serves as its config.
fn image(registry: &FakeRegistry) -> (ImageRef, Descriptor, Vec<u8>) {
    image_of(registry, 1_000_000)
}

fn image_of(registry: &FakeRegistry, size: usize) -> (ImageRef, Descriptor, Vec<u8>) {
    let blob = bytes(size);
    let digest = registry.add_blob(&blob);
    let json = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"{OCI_CONFIG}","digest":"{digest}","size":{}}},"layers":[]}}"#,
        blob.len()
    );
    registry.add_manifest("a/b", "v1", OCI_MANIFEST, json.as_bytes());
    let reference = ImageRef::parse(&registry.name("a/b:v1")).unwrap();
    (reference, Descriptor::new(OCI_CONFIG, digest, blob.len() as u64), blob)
}

fn read(client: &Client, reference: &ImageRef, blob: &Descriptor) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    match client.open(reference, blob).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(error.downcast::<Error>().unwrap()),
    }
}

/// Everything that an error may show, to be searched for secrets.
fn shown(error: &Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        text += &format!(" {source} {source:?}");
        cause = source;
    }
    text
}
