//! A few buffers that go round between the thread that decodes a layer and the one that unpacks it.
//!
//! ```text
//!            filled pieces ─▶
//!  decoder                     unpacker        one layer holds at most PIECES × PIECE_BYTES
//!            ◀─ empty ones
//! ```
//! Whoever is slower makes the other one wait; whoever ends early is noticed at the other's next turn.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use crate::error::LayerError;

/// Bytes of data in one piece: large enough that handing it over costs nothing beside what is done with it.
pub(crate) const PIECE_BYTES: usize = 256 * 1024;
/// Pieces of one layer: one being filled, one being emptied, two between them.
pub(crate) const PIECES: usize = 4;
/// Room before a piece's data, in bytes, for the end of the piece before: a header that lies across the border is then whole.
pub(crate) const HEADROOM_BYTES: usize = 4096;

/// Some bytes of a layer's tar, with room before them.
#[derive(Debug)]
pub(crate) struct Piece {
    bytes: Vec<u8>,
    end: usize,
}

impl Piece {
    /// Where the next bytes go.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        &mut self.bytes[self.end..]
    }

    /// Says that `count` bytes were put into the space.
    pub(crate) fn extend(&mut self, count: usize) {
        self.end += count;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.end == HEADROOM_BYTES
    }

    /// The whole buffer, and where its data ends; it begins after the headroom.
    pub(crate) fn into_parts(self) -> (Vec<u8>, usize) {
        (self.bytes, self.end)
    }

    /// An empty piece in a buffer that may have been one before.
    pub(crate) fn reuse(mut bytes: Vec<u8>) -> Piece {
        bytes.resize(HEADROOM_BYTES + PIECE_BYTES, 0);
        Piece { bytes, end: HEADROOM_BYTES }
    }
}

/// Where a tar's bytes come from.
pub(crate) trait Supply {
    /// The next piece, never an empty one; `None` at the end. `used` is a buffer that is no longer needed.
    fn next(&mut self, used: Option<Vec<u8>>) -> Result<Option<Piece>, LayerError>;
}

/// The decoder's end.
pub(crate) struct RingWriter {
    filled: SyncSender<Option<Piece>>,
    empty: Receiver<Vec<u8>>,
    made: usize,
}

/// The unpacker's end.
pub(crate) struct RingReader {
    filled: Receiver<Option<Piece>>,
    empty: Sender<Vec<u8>>,
    ended: bool,
}

/// The two ends of a ring.
pub(crate) fn ring() -> (RingWriter, RingReader) {
    let (filled, receive_filled) = sync_channel(PIECES);
    let (empty, receive_empty) = channel();
    let writer = RingWriter { filled, empty: receive_empty, made: 0 };
    (writer, RingReader { filled: receive_filled, empty, ended: false })
}

impl RingWriter {
    /// An empty piece, waiting for one if all are on their way; `None` if the reader is gone.
    pub(crate) fn piece(&mut self) -> Option<Piece> {
        if let Ok(bytes) = self.empty.try_recv() {
            return Some(Piece::reuse(bytes));
        }
        if self.made < PIECES {
            self.made += 1;
            return Some(Piece::reuse(Vec::new()));
        }
        self.empty.recv().ok().map(Piece::reuse)
    }

    /// Hands a piece over; false if the reader is gone.
    pub(crate) fn send(&mut self, piece: Piece) -> bool {
        self.filled.send(Some(piece)).is_ok()
    }

    /// Says that this was all. A writer that is dropped without it has failed.
    pub(crate) fn end(self) {
        // A reader that is gone has seen enough.
        drop(self.filled.send(None));
    }
}

impl Supply for RingReader {
    fn next(&mut self, used: Option<Vec<u8>>) -> Result<Option<Piece>, LayerError> {
        if let Some(used) = used {
            // A writer that is gone needs none.
            drop(self.empty.send(used));
        }
        if self.ended {
            return Ok(None);
        }
        // The writer knows better what is wrong than that it is gone.
        let piece = self.filled.recv().map_err(|_| LayerError::Cancelled)?;
        self.ended = piece.is_none();
        Ok(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_go_round_and_no_more_are_made_than_allowed() {
        let (mut writer, mut reader) = ring();
        let feeder = std::thread::spawn(move || {
            for number in 0..100u8 {
                let mut piece = writer.piece().unwrap();
                assert!(piece.is_empty());
                piece.space()[0] = number;
                piece.extend(1);
                assert!(writer.send(piece));
            }
            let made = writer.made;
            writer.end();
            made
        });
        let (mut used, mut seen) = (None, 0);
        while let Some(piece) = reader.next(used.take()).unwrap() {
            let (bytes, end) = piece.into_parts();
            assert_eq!((bytes[HEADROOM_BYTES], end), (seen, HEADROOM_BYTES + 1));
            used = Some(bytes);
            seen += 1;
        }
        assert_eq!(seen, 100);
        assert!(reader.next(None).unwrap().is_none());
        assert!(feeder.join().unwrap() <= PIECES);
    }

    #[test]
    fn an_end_that_is_gone_is_noticed() {
        let (mut writer, reader) = ring();
        drop(reader);
        assert!((0..=PIECES).any(|_| writer.piece().is_none_or(|piece| !writer.send(piece))));
        let (writer, mut reader) = ring();
        drop(writer);
        assert!(matches!(reader.next(None), Err(LayerError::Cancelled)));
    }
}
