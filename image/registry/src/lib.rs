//! The client side of the distribution specification: references, digests, platforms, credentials, mirrors, pull and push.
//!
//! This crate talks to registries and checks what they say; it writes no file and knows nothing of layers' contents.
//! Everything it returns carries a verified digest, except the bytes of a [`BlobReader`], which its reader hashes.
//!
//! Read first: [`reference`](ImageRef) (what a name means), then `client` (the surface), `exchange` (what happens to one
//! request: hosts, scheme, authentication, redirects, retries), `endpoint` (mirrors), `auth` (tokens). Rules that hold throughout:
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
mod encoding;
mod endpoint;
mod error;
mod exchange;
#[cfg(test)]
mod fuzz;
mod helper;
mod hosts;
mod json;
mod manifest;
mod payload;
mod platform;
mod proxy;
mod push;
mod reference;
mod referrers;
mod registries;
mod retry;
mod tags;
mod thread;
mod transport;
mod trust;
mod walk;

pub use blob::{BlobOptions, BlobReader, RangePolicy, Tap};
pub use client::{
    CONFIG_LIMIT_BYTES, Client, ClientOptions, Fetched, MANIFEST_LIMIT_BYTES, PlainHttp, Resolved, Stopper,
};
pub use credentials::{Credential, CredentialSource, Secret};
pub use digest::{Algorithm, Digest, Hasher, InvalidDigest};
pub use endpoint::HostFiles;
pub use error::{Error, Kind};
pub use json::parse_json;
pub use manifest::{
    Descriptor, Document, Index, LAYER_LIMIT, Manifest, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST,
};
pub use payload::OpenSource;
pub use platform::{InvalidPlatform, Platform};
pub use proxy::{InvalidProxy, Proxies};
pub use push::{BlobSource, Pushed};
pub use reference::{ImageRef, InvalidReference};
pub use retry::RetryPolicy;
pub use transport::Timeouts;
pub use walk::Walk;
