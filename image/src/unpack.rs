//! One layer, from its source to a tree, on two threads.
//!
//! ```text
//! caller's thread                    thread of its own, confined to the staging directory
//! source ─▶ hash ─▶ decode ─▶ ring ─▶ hash ─▶ entries ─▶ sink
//! ```
//! Each thread has about half of the work (of small files, a third one takes a share: [`crate::filler`]). The second one is where names from the archive meet the file system, and sees
//! nothing of the host but the staging directory (see [`cofferdam_linux::confined`]): no other file, no socket, no program.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;

use cofferdam_linux::confined;
use cofferdam_registry::{Algorithm, Digest};

use crate::backend::Sink;
use crate::decode::TarStream;
use crate::error::{Error, LayerError};
use crate::extract::Extracted;
use crate::limits::Limits;
use crate::recipe::Rest;
use crate::ring::{RingReader, ring};
use crate::tar::TarReader;

/// A layer whose entries were all made.
pub(crate) struct Unpacked {
    pub(crate) extracted: Extracted,
    /// The tar's digest and size in bytes.
    pub(crate) tar: Digest,
    pub(crate) tar_bytes: u64,
    pub(crate) blob: Digest,
    pub(crate) blob_bytes: u64,
}

/// Unpacks `stream` into a sink that keeps what it makes in `folder`, and writes what the tree lacks of the tar to `recipe`.
/// The sink is opened on the confined thread, where `folder` is all that there is. The blob's digest and size are compared; the tar's are the caller's to.
pub(crate) fn unpack<R: Read>(
    mut stream: TarStream<R>,
    folder: &Path,
    open_sink: impl FnOnce(OwnedFd) -> Result<Box<dyn Sink>, LayerError> + Send,
    recipe: &Path,
    algorithm: Algorithm,
    limits: Limits,
) -> Result<Unpacked, LayerError> {
    let (writer, reader) = ring();
    let (rest, recipe_writer) = Rest::sent();
    let (fed, made, written) = thread::scope(|scope| {
        let written = scope.spawn(move || recipe_writer.write(recipe));
        let work =
            move |root| make(open_sink(root)?, TarReader::new(reader, algorithm, limits).recording(rest));
        let thread = confined::spawn(scope, "cofferdam-unpack", folder, work);
        let fed = stream.feed(writer);
        (fed, thread.map(thread::ScopedJoinHandle::join), written.join())
    });
    written.unwrap_or(Err(Error::Cancelled))?;
    let made = match made.map_err(Error::io("start a thread for", folder))? {
        Ok(made) => made.map_err(Error::io("confine the thread for", folder))?,
        Err(_) => Err(LayerError::Read(std::io::Error::other("the unpacking thread panicked"))),
    };
    let error = match (fed, made) {
        (Ok(()), Ok((extracted, tar, tar_bytes))) => {
            let (blob, blob_bytes) = stream.finish()?;
            return Ok(Unpacked { extracted, tar, tar_bytes, blob, blob_bytes });
        }
        // The archive's end is never seen when decoding fails; what came before may have failed for a reason of its own.
        (Err(error), Ok(_) | Err(LayerError::Cancelled)) | (_, Err(error)) => error,
    };
    Err(stream.explain(error))
}

type Made = (Extracted, Digest, u64);

fn make(mut sink: Box<dyn Sink>, mut tar: TarReader<RingReader>) -> Result<Made, LayerError> {
    while let Some(entry) = tar.next()? {
        sink.add(entry, &mut tar)?;
    }
    let extracted = sink.finish()?;
    let (digest, tar_bytes) = tar.finish()?;
    Ok((extracted, digest, tar_bytes))
}
