//! A disk that notes what was written to it and when it was told to keep it: one file, served through FUSE.
//!
//! What was written after the last flush may be lost when power is, any part of it. The log therefore gives every state in
//! which a disk may be found: everything up to a flush, and any choice of what came after.

#![allow(unreachable_pub, clippy::unwrap_used, reason = "part of a test program")]

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::mount::{MountFlags, mount};

/// The file's node; 1 is the directory it is in.
const DISK: u64 = 2;
const ENOENT: i32 = 2;
const ENOSYS: i32 = 38;
/// A whole request: the largest write and its headers.
const REQUEST_BYTES: usize = (1 << 20) + 4096;

/// What happened to a disk.
pub enum Event {
    Written { offset: u64, data: Vec<u8> },
    Flushed,
}

/// Serves the file `initial` as `target/disk` until it is unmounted, and writes what happens to `log`.
pub fn serve(initial: &Path, target: &Path, log: &Path) {
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let disk = File::options().read(true).write(true).open(initial).unwrap();
    let size = disk.metadata().unwrap().len();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let options = std::ffi::CString::new(options).unwrap();
    mount("cofferdam-test", target, "fuse", MountFlags::empty(), &*options).unwrap();
    let mut log = File::create(log).unwrap();
    let mut request = vec![0; REQUEST_BYTES];
    // Unmounted: there is nothing to read any more.
    while let Ok(length) = (&device).read(&mut request) {
        let (head, body) = request[..length].split_at(40);
        let (opcode, unique, node) = (u32_at(head, 4), u64_at(head, 8), u64_at(head, 16));
        let answer: Result<Vec<u8>, i32> = match opcode {
            2 | 42 => continue,
            26 => Ok(init(u32_at(body, 8))),
            1 if body == b"disk\0" => Ok([words(&[DISK, 0, 3600, 3600, 0]), attributes(DISK, size)].concat()),
            1 => Err(ENOENT),
            3 | 4 => Ok([words(&[3600, 0]), attributes(node, size)].concat()),
            14 | 27 => Ok(words(&[0, 0])),
            15 => {
                let mut data = vec![0; u32_at(body, 16) as usize];
                let count = disk.read_at(&mut data, u64_at(body, 8)).unwrap();
                data.truncate(count);
                Ok(data)
            }
            16 => {
                let (offset, size) = (u64_at(body, 8), u32_at(body, 16));
                let data = &body[40..40 + size as usize];
                disk.write_all_at(data, offset).unwrap();
                let head = [&[1][..], &offset.to_le_bytes(), &size.to_le_bytes()].concat();
                log.write_all(&[&head, data].concat()).unwrap();
                Ok([size.to_le_bytes(), [0; 4]].concat())
            }
            20 => {
                log.write_all(&[0]).unwrap();
                Ok(Vec::new())
            }
            18 | 25 | 29 | 34 | 38 => Ok(Vec::new()),
            _ => Err(ENOSYS),
        };
        let (error, data) = match answer {
            Ok(data) => (0, data),
            Err(error) => (-error, Vec::new()),
        };
        let length = (16 + data.len()) as u32;
        let head = [&length.to_le_bytes()[..], &error.to_le_bytes(), &unique.to_le_bytes()].concat();
        // Who asked may be gone.
        drop((&device).write(&[head, data].concat()));
    }
}

/// Reads a log from its start.
pub fn read_log(path: &Path) -> Vec<Event> {
    let mut log = BufReader::new(File::open(path).unwrap());
    let mut events = Vec::new();
    let mut kind = [0];
    while log.read(&mut kind).unwrap() == 1 {
        events.push(match kind {
            [0] => Event::Flushed,
            _ => {
                let mut head = [0; 12];
                log.read_exact(&mut head).unwrap();
                let mut data = vec![0; u32_at(&head, 8) as usize];
                log.read_exact(&mut data).unwrap();
                Event::Written { offset: u64_at(&head, 0), data }
            }
        });
    }
    events
}

/// The protocol's version 7.31; writes of up to 128 KiB, none of them kept back.
fn init(readahead: u32) -> Vec<u8> {
    let mut answer = Vec::new();
    for number in [7, 31, readahead, 0, 0, 128 * 1024, 1] {
        answer.extend_from_slice(&u32::to_le_bytes(number));
    }
    answer.resize(64, 0);
    answer
}

fn attributes(node: u64, size: u64) -> Vec<u8> {
    let mut answer = words(&[node, size, size / 512, 0, 0, 0]);
    let mode = if node == DISK { 0o100_600 } else { 0o40_700 };
    for number in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        answer.extend_from_slice(&u32::to_le_bytes(number));
    }
    answer
}

fn words(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
