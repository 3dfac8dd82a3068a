//! The pull half of the distribution specification: references, digests, platforms, credentials and a registry client.
//!
//! This crate talks to registries and checks what they say; it writes no file and knows nothing of layers' contents.
//! Everything it returns carries a verified digest, except the bytes of a [`BlobReader`], which its reader hashes.
//!
//! Read first: [`reference`](ImageRef) (what a name means), then `client` (the surface), `exchange` (what happens to one
//! request: scheme, authentication, redirects, retries), `auth` (tokens). Rules that hold throughout:
//!
//! - HTTPS, unless the registry is on loopback or the caller allows plain HTTP. Never silently otherwise.
//! - Credentials go to the registry's own origin and its token server, never to where a redirect leads.
//! - Every document has a size limit, every wait a time limit, every retry a bound.
//! - No privileges are needed. One thread per [`Client`]; the calls block and must not be made from async code.

mod auth;
mod blob;
mod body;
mod challenge;
mod client;
mod credentials;
mod digest;
mod error;
mod exchange;
mod helper;
mod manifest;
mod platform;
mod reference;
mod retry;
mod thread;
mod transport;
mod trust;

pub use blob::BlobReader;
pub use client::{CONFIG_LIMIT_BYTES, Client, ClientOptions, MANIFEST_LIMIT_BYTES, PlainHttp, Resolved};
pub use credentials::{Credential, CredentialSource, Secret};
pub use digest::{Algorithm, Digest, Hasher, InvalidDigest};
pub use error::{Error, Kind};
pub use manifest::{
    Descriptor, Document, Index, LAYER_LIMIT, Manifest, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST,
    choose,
};
pub use platform::{InvalidPlatform, Platform};
pub use reference::{ImageRef, InvalidReference};
pub use retry::RetryPolicy;
pub use transport::Timeouts;
