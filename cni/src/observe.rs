//! What an operation tells while it goes on: every call of a plugin in full, and what is odd but does not stop it.

use std::time::Duration;

use crate::error::Verb;
use crate::name::{ContainerId, NetworkName};
use crate::record::Implementation;

/// One call of one plugin, after it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Call<'a> {
    /// The plugin.
    pub plugin: &'a str,
    /// What it was asked.
    pub verb: Verb,
    /// The network.
    pub network: &'a NetworkName,
    /// The container, for verbs about an attachment.
    pub container: Option<&'a ContainerId>,
    /// Who did it.
    pub implementation: &'a Implementation,
    /// What it read from its standard input, byte for byte.
    pub input: &'a str,
    /// What it wrote to its standard output; of a built-in plugin the result as it would have been written.
    pub output: &'a str,
    /// The end of what it wrote to its standard error.
    pub stderr_tail: &'a str,
    /// How long it took.
    pub elapsed: Duration,
}

/// Is told what happens. Called on the thread of the operation, which waits.
pub trait Observer: Send + Sync {
    /// A plugin was called.
    fn called(&self, call: &Call<'_>) {
        let _ = call;
    }

    /// Something is odd, and the operation goes on.
    fn warning(&self, text: &str) {
        let _ = text;
    }
}
