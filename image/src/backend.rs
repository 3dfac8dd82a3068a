//! The seam between a layer's archive and the form in which a backend keeps it.

use crate::entry::Entry;
use crate::error::LayerError;
use crate::extract::Extracted;
use crate::ring::Supply;
use crate::tar::TarReader;

/// Where the entries of a layer's archive go, in the archive's order. Every backend makes the same tree of them.
pub(crate) trait Sink {
    /// Takes one entry, reading its data from `contents`.
    fn add(&mut self, entry: Entry, contents: &mut dyn Contents) -> Result<(), LayerError>;

    /// After the last entry: deletions, directories' attributes, and whatever the form needs to be read.
    fn finish(self: Box<Self>) -> Result<Extracted, LayerError>;
}

/// The data of the entry that is being added.
pub(crate) trait Contents {
    /// The next piece; empty at the end.
    fn data(&mut self) -> Result<&[u8], LayerError>;
}

impl<S: Supply> Contents for TarReader<S> {
    fn data(&mut self) -> Result<&[u8], LayerError> {
        TarReader::data(self)
    }
}
