//! Loss of power, on a real file system: what the disk was not told to keep is gone, in any part.
//!
//! ```text
//! registry (the test)    a store on ext4 on a loop device on a file that FUSE serves and logs (a child with mounts of its own)
//!                        ─▶ for many moments of the log: a disk as it may be found then ─▶ mounted, in another boot
//! ```

#![allow(clippy::unwrap_used, reason = "a test program")]

#[path = "support/disk.rs"]
mod disk;
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cofferdam_image::{Damaged, Durability, Image, ImageRef, Store, StoreOptions, Verdict, VerifyOptions};
use cofferdam_tests::{needs, pace};
use disk::Event;
use support::fake::FakeRegistry;
use support::*;

const FOLDER: &str = "COFFERDAM_TEST_FOLDER";
const IMAGES: &str = "COFFERDAM_TEST_IMAGES";
const DISK_BYTES: u64 = 32 << 20;

fn layers(image: usize) -> Vec<Layer> {
    let layer = |index: usize| {
        let mut tar = Tar::new().dir("tmp", 0o1777, 0, 0);
        for file in 0..30 {
            let data = format!("{image} {index} {file} ").repeat(400);
            tar = tar.file(&format!("dir{}/file{image}-{index}-{file}", file % 5), &data);
        }
        // A directory that a lower layer describes, so that there is a fix-up.
        Layer::gzip(tar.file(&format!("tmp/{index}"), "").end())
    };
    // The images share their lowest layer.
    let lowest = Layer::gzip(Tar::new().dir("opt", 0o700, 1, 2).file("opt/all", &"x".repeat(9000)).end());
    let upper = Layer::gzip(Tar::new().file(&format!("opt/{image}"), "implied").end());
    vec![lowest, layer(0), layer(1), upper]
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a56_what_is_recorded_as_durable_survives_every_loss_of_power_and_nothing_torn_is_served() {
    let programs = ["unshare", "setpriv", "mount", "umount", "mkfs.ext4"];
    if !is_root() || !needs::programs(&programs) {
        return;
    }
    let has_devices = ["/dev/fuse", "/dev/loop-control"].iter().all(|device| Path::new(device).exists());
    if !needs::met(has_devices, "needs FUSE and loop devices") {
        return;
    }
    let registry = FakeRegistry::start();
    let mut names = Vec::new();
    for image in 0..3 {
        serve(&registry, &format!("test/image{image}"), "latest", &layers(image));
        names.push(registry.name(&format!("test/image{image}")));
    }
    let folder = temporary_folder();
    let disk = folder.path().join("disk.img");
    std::fs::File::create(&disk).unwrap().set_len(DISK_BYTES).unwrap();
    succeed(Command::new("mkfs.ext4").args(["-q", "-F", "-J", "size=4"]).arg(&disk));
    std::fs::copy(&disk, folder.path().join("initial.img")).unwrap();
    for name in ["fuse", "mnt", "crash"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    let mut child = Command::new("setpriv");
    child.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--"]);
    child.arg(std::env::current_exe().unwrap()).args(["--exact", "child_that_loses_power", "--nocapture"]);
    let output = child.env(FOLDER, folder.path()).env(IMAGES, names.join(" ")).output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Not a test of its own: the disk.
#[test]
fn child_that_serves_a_disk() {
    let Ok(folder) = std::env::var(FOLDER).map(PathBuf::from) else { return };
    disk::serve(&folder.join("disk.img"), &folder.join("fuse"), &folder.join("log"));
}

fn pull(store: &Store, name: &str) -> Image {
    store.pull(&ImageRef::parse(name).unwrap(), &options(), &|_| {}).unwrap()
}

/// Not a test of its own: writes to the disk, and then looks at what may be left of it.
#[test]
fn child_that_loses_power() {
    let (Ok(folder), Ok(images)) = (std::env::var(FOLDER), std::env::var(IMAGES)) else { return };
    let (folder, names) = (PathBuf::from(folder), images.split(' ').collect::<Vec<_>>());
    let durable = write(&folder, &names);
    // The next boot.
    let boot = folder.join("boot");
    std::fs::write(&boot, "00000000-0000-4000-8000-000000000000\n").unwrap();
    succeed(Command::new("mount").arg("--bind").arg(&boot).arg("/proc/sys/kernel/random/boot_id"));
    let events = disk::read_log(&folder.join("log"));
    let flushes = events.iter().filter(|event| matches!(event, Event::Flushed)).count();
    let rounds = pace::rounds(30, 4) as usize;
    let mut crashes = Crashes::new(&folder);
    let mut at = 0;
    for round in 0..rounds {
        let end = events.len() * (round + 1) / rounds;
        crashes.advance(&events[at..end]);
        at = end;
        let expected = durable.iter().filter(|(_, moment)| *moment <= at).map(|(image, _)| image);
        crashes.look(round, &names, &expected.collect::<Vec<_>>());
    }
    println!("{rounds} losses of power in {} events, {flushes} of them flushes", events.len());
    assert!(crashes.lost > 0, "every loss left everything");
}

/// Pulls images onto the disk. Gives those that are durable, and the moment from which on they must be.
fn write(folder: &Path, names: &[&str]) -> Vec<(Image, usize)> {
    let mut server = Command::new("setpriv");
    server.args(["--pdeathsig", "KILL"]).arg(std::env::current_exe().unwrap());
    server.args(["--exact", "child_that_serves_a_disk"]).env(FOLDER, folder);
    let mut server = server.stdout(Stdio::null()).spawn().unwrap();
    let (file, log) = (folder.join("fuse/disk"), folder.join("log"));
    let deadline = Instant::now() + pace::limit(Duration::from_secs(10));
    while !file.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let target = folder.join("mnt");
    succeed(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&file).arg(&target));
    let moment = || disk::read_log(&log).len();
    let open = |durability| {
        let options = StoreOptions { durability, ..StoreOptions::default() };
        Store::open_with(&target.join("store"), options).unwrap()
    };
    let mut durable = Vec::new();
    let store = open(Durability::None);
    let first = pull(&store, names[0]);
    store.settle().unwrap();
    durable.push((first, moment()));
    // Written back by the file system when it likes, but not settled.
    let second = pull(&store, names[1]);
    rustix::fs::syncfs(std::fs::File::open(&target).unwrap()).unwrap();
    let again = pull(&store, names[0]);
    assert_eq!(again.digest, durable[0].0.digest);
    let store = open(Durability::Sync);
    let third = pull(&store, names[2]);
    durable.extend([(third, moment()), (second, moment())]);
    store.settle().unwrap();
    drop(store);
    succeed(Command::new("umount").arg(&target));
    succeed(Command::new("umount").arg(folder.join("fuse")));
    assert!(server.wait().unwrap().success());
    durable
}

/// The disk as it may be found.
struct Crashes<'a> {
    folder: &'a Path,
    /// What was flushed.
    kept: Vec<u8>,
    /// What was written since.
    pending: Vec<(u64, Vec<u8>)>,
    random: u64,
    lost: usize,
}

impl Crashes<'_> {
    fn new(folder: &Path) -> Crashes<'_> {
        let kept = std::fs::read(folder.join("initial.img")).unwrap();
        Crashes { folder, kept, pending: Vec::new(), random: 1, lost: 0 }
    }

    fn advance(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Written { offset, data } => self.pending.push((*offset, data.clone())),
                Event::Flushed => {
                    for (offset, data) in std::mem::take(&mut self.pending) {
                        put(&mut self.kept, offset, &data);
                    }
                }
            }
        }
    }

    /// A coin: with no chance, an even one, or certainty of heads, in turn.
    fn keeps(&mut self, round: usize) -> bool {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        [false, self.random >> 63 == 0, true][round % 3]
    }

    fn look(&mut self, round: usize, names: &[&str], expected: &[&Image]) {
        let mut found = self.kept.clone();
        for (offset, data) in self.pending.clone() {
            // A disk writes sectors, not requests.
            for (number, sector) in data.chunks(4096).enumerate() {
                match self.keeps(round) {
                    true => put(&mut found, offset + 4096 * number as u64, sector),
                    false => self.lost += 1,
                }
            }
        }
        let (image, target) = (self.folder.join("crash.img"), self.folder.join("crash"));
        std::fs::write(&image, found).unwrap();
        succeed(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&image).arg(&target));
        if target.join("store").exists() {
            check(round, &target.join("store"), names, expected);
        }
        succeed(Command::new("umount").arg(&target));
    }
}

fn put(disk: &mut [u8], offset: u64, data: &[u8]) {
    let offset = usize::try_from(offset).unwrap();
    disk[offset..offset + data.len()].copy_from_slice(data);
}

fn check(round: usize, root: &Path, names: &[&str], expected: &[&Image]) {
    let store =
        Store::open_with(root, StoreOptions { durability: Durability::None, ..StoreOptions::default() })
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
    for image in expected {
        let found = store.find(&image.digest.to_string()).unwrap();
        let found = found.unwrap_or_else(|| panic!("round {round}: {:?} is lost", image.names));
        store.prepare(&format!("durable-{}", image.digest), &found).unwrap();
        let only = VerifyOptions { images: vec![image.digest.clone()], ..VerifyOptions::default() };
        let verified = store.verify(&only).unwrap();
        assert!(verified.findings.is_empty(), "round {round}: {:?}: {verified:?}", image.names);
    }
    // Whatever else is trusted is sound: what is not is missing.
    let options = VerifyOptions { damaged: Damaged::Keep, ..VerifyOptions::default() };
    for finding in store.verify(&options).unwrap().findings {
        let is_document = finding.path.starts_with("blobs/");
        assert!(finding.verdict == Verdict::Missing || is_document, "round {round}: {finding:?}");
    }
    for (number, image) in store.images().unwrap().iter().enumerate() {
        let is_complete = store.require_complete(image).is_ok();
        assert_eq!(store.prepare(&format!("any-{number}"), image).is_ok(), is_complete, "round {round}");
    }
    for snapshot in store.snapshots().unwrap() {
        store.remove_snapshot(&snapshot.key).unwrap();
    }
    for name in names {
        let image = pull(&store, name);
        store.require_complete(&image).unwrap();
    }
    assert!(store.verify(&VerifyOptions::default()).unwrap().findings.is_empty(), "round {round}");
    store.settle().unwrap();
}
