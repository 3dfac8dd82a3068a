//! The least that a pull must cost here and now: receive, hash, inflate, hash, write, and make the files.
//!
//! ```text
//! cpu  = c/receive + c/hash + u/inflate + u/hash + u/write + files·file
//! wall = max(cpu / processors, largest layer / inflate)
//! ```
//! `c` compressed and `u` uncompressed bytes. Each rate is measured in this run, by the same libraries that cofferdam uses, and
//! in time of a processor: somebody else's work does not move the floor.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use cofferdam_image::Digest;
use flate2::bufread::GzDecoder;
use rustix::fs::{Mode, OFlags};

use super::disk::thread_cpu;
use super::images::{Coder, Made};

/// Seconds a byte, and seconds a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    receive: f64,
    hash: f64,
    inflate: f64,
    write: f64,
    file: f64,
}

const PIECE_BYTES: usize = 256 * 1024;
const FILES: usize = 4000;
/// The best of so many: what disturbs only makes slower.
const ATTEMPTS: usize = 3;

/// Measures the rates, with the layers of `image` as data and `folder` on the disk that is pulled to.
pub(super) fn measure(image: &Made, folder: &Path) -> Result<Rates> {
    let blob = fs::read(&image.blobs[0].path)?;
    let mut tar = Vec::new();
    let inflate = best(|| inflate(image.shape.coder, &blob, &mut tar))?;
    let hash = best(|| {
        let started = thread_cpu();
        std::hint::black_box(Digest::of(&tar));
        Ok(since(started) / tar.len() as f64)
    })?;
    let write = best(|| write(&tar, folder))?;
    let file = best(|| files(folder))?;
    // Of loopback: one copy out of the kernel, at the rate of memory.
    Ok(Rates { receive: 1.0 / 3e9, hash, inflate, write, file })
}

/// Seconds that this thread has run since.
fn since(started: Duration) -> f64 {
    (thread_cpu() - started).as_secs_f64()
}

/// The least of what some attempts took.
fn best(mut attempt: impl FnMut() -> Result<f64>) -> Result<f64> {
    (0..ATTEMPTS).try_fold(f64::MAX, |least, _| Ok(least.min(attempt()?)))
}

fn inflate(coder: Coder, blob: &[u8], tar: &mut Vec<u8>) -> Result<f64> {
    let keep = tar.is_empty();
    let started = thread_cpu();
    let mut decoder: Box<dyn Read> = match coder {
        Coder::Gzip => Box::new(GzDecoder::new(blob)),
        Coder::Zstd => Box::new(zstd::Decoder::with_buffer(blob)?),
    };
    let mut piece = vec![0; PIECE_BYTES];
    let mut total = 0u32;
    loop {
        match decoder.read(&mut piece)? {
            0 => return Ok(since(started) / f64::from(total)),
            count => {
                total += u32::try_from(count)?;
                if keep {
                    tar.extend_from_slice(&piece[..count]);
                }
            }
        }
    }
}

fn write(data: &[u8], folder: &Path) -> Result<f64> {
    let path = folder.join("written");
    let started = thread_cpu();
    let mut file = File::create(&path)?;
    for piece in data.chunks(PIECE_BYTES) {
        file.write_all(piece)?;
    }
    drop(file);
    let took = since(started);
    fs::remove_file(path)?;
    Ok(took / data.len() as f64)
}

/// The files stay: see [`super::disk`].
fn files(folder: &Path) -> Result<f64> {
    let path = tempfile::Builder::new().prefix("files-").tempdir_in(folder)?.keep();
    // What was written before is not to be written back meanwhile, as it is not while a pull is measured.
    rustix::fs::sync();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(&path, flags, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let time = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    let started = thread_cpu();
    for number in 0..FILES {
        let file = rustix::fs::openat(&directory, number.to_string(), flags, Mode::RUSR | Mode::WUSR)?;
        rustix::io::write(&file, b"x")?;
        rustix::fs::futimens(&file, &times)?;
    }
    Ok(since(started) / FILES as f64)
}

impl Rates {
    /// The least wall and processor time for an image.
    pub(super) fn floor(&self, image: &Made) -> (Duration, Duration) {
        let compressed: u64 = image.blobs.iter().map(|blob| blob.bytes).sum();
        let unpacked = image.unpacked_bytes();
        let largest = image.blobs.iter().map(|blob| blob.unpacked_bytes).max().unwrap_or(0);
        let (compressed, unpacked) = (compressed as f64, unpacked as f64);
        let files = image.shape.all_files() as f64;
        let cpu = compressed * (self.receive + self.hash)
            + unpacked * (self.inflate + self.hash + self.write)
            + files * self.file;
        let processors = std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
        let wall = (cpu / processors).max(largest as f64 * self.inflate);
        (Duration::from_secs_f64(wall), Duration::from_secs_f64(cpu))
    }

    /// In words, per second.
    pub(super) fn describe(&self) -> String {
        let rate = |seconds: f64| format!("{:.0} MB/s", 1e-6 / seconds);
        format!(
            "hash {}, inflate {}, write {}, {:.1} µs a file",
            rate(self.hash),
            rate(self.inflate),
            rate(self.write),
            self.file * 1e6
        )
    }
}
