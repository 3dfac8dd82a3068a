//! Keeping compressed layers, where the store is told to.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use cofferdam_registry::Digest;

use crate::error::{Error, LayerError};
use crate::layout::{self, Layout};
use crate::options::KeepBlobs;

/// Writes blobs beside what is made of them. They are published with their image: by then their digests were seen to match.
pub(crate) struct Keeper<'a> {
    layout: &'a Layout,
    folder: PathBuf,
}

impl<'a> Keeper<'a> {
    /// `workspace` is the operation's folder.
    pub(crate) fn new(layout: &'a Layout, workspace: &Path) -> Keeper<'a> {
        Keeper { layout, folder: workspace.to_owned() }
    }

    /// What reads as `source` does, and keeps what is read if blobs are to be kept.
    pub(crate) fn keep(&self, index: usize, source: Box<dyn Read>) -> Result<Box<dyn Read>, LayerError> {
        if self.layout.options().keep_blobs != KeepBlobs::Always {
            return Ok(source);
        }
        let path = self.at(index);
        let copy = File::create(&path).map_err(Error::io("create", &path))?;
        Ok(Box::new(Kept { source, copy, path }))
    }

    /// Puts the blobs of an image where they are found; those of layers that were there already were never read.
    pub(crate) fn publish<'b>(&self, blobs: impl Iterator<Item = (&'b Digest, u64)>) -> Result<(), Error> {
        for (index, (digest, size)) in blobs.enumerate() {
            let path = self.at(index);
            if path.metadata().is_ok_and(|metadata| metadata.len() == size) {
                fs::rename(&path, self.layout.at(&layout::blob(digest))).map_err(Error::io("keep", &path))?;
            }
        }
        Ok(())
    }

    fn at(&self, index: usize) -> PathBuf {
        self.folder.join(format!("blob-{index}"))
    }
}

struct Kept {
    source: Box<dyn Read>,
    copy: File,
    path: PathBuf,
}

impl Read for Kept {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.copy
            .write_all(&buffer[..count])
            .map_err(|error| io::Error::other(LayerError::from(Error::io("write", &self.path)(error))))?;
        Ok(count)
    }
}
