//! What copies of this program do: another process that works on the same state, to be waited for or to be killed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam_cni::{
    AddResult, Deadlines, Error, IfName, NetnsFate, Object, Plugin, PluginError, Request, Valid,
};
use cofferdam_tests::pace;

use crate::bed::{self, Bed, FOLDER, JOB, attachment, id, network, plain, three};

/// Does the job that the environment names; without one there is nothing to do.
#[test]
fn the_other_process() {
    let (Ok(job), Some(folder)) = (std::env::var(JOB), std::env::var_os(FOLDER)) else { return };
    let folder = PathBuf::from(folder);
    let done = match job.as_str() {
        "attach" => Bed::at(&folder, |_| {}).caller.attach(&three(), &attachment()).map(drop),
        "detach" => Bed::at(&folder, |_| {}).detach(),
        "attach peer" => attach_peer(&folder),
        "gc" => Bed::at(&folder, |_| {}).caller.gc(&three(), &Valid::Nothing),
        "write" => write(&folder),
        "collide" => collide(&folder),
        "crash" => crash(&folder),
        other => panic!("no job {other}"),
    };
    // Whoever started us reads the status, and the rest on a failure.
    if let Err(error) = &done {
        eprintln!("{job}: {error}");
    }
    std::process::exit(i32::from(done.is_err()));
}

/// A plugin in this process that keeps a file for each attachment, and notices when it is called twice at a time for one
/// container.
pub(crate) struct Keeper;

impl Keeper {
    fn work(
        request: &Request<'_>,
        work: impl FnOnce(&Path) -> std::io::Result<()>,
    ) -> Result<(), PluginError> {
        let folder: PathBuf = request.get("folder")?.unwrap();
        let busy = folder.join(format!("{}.busy", request.container));
        if std::fs::create_dir(&busy).is_err() {
            std::fs::write(folder.join("overlap"), "").unwrap();
        }
        let done = work(&folder.join(format!("{}.{}.lease", request.container, request.if_name)));
        std::thread::yield_now();
        let _ = std::fs::remove_dir(&busy);
        done.map_err(|error| PluginError::config(error.to_string()))
    }
}

impl Plugin for Keeper {
    fn kind(&self) -> &'static str {
        "keeper"
    }
    fn supports(&self, _: &Object) -> Result<(), String> {
        Ok(())
    }
    fn add(&self, request: &Request<'_>) -> Result<AddResult, PluginError> {
        Self::work(request, |lease| std::fs::write(lease, ""))?;
        Ok(AddResult::default())
    }
    fn del(&self, request: &Request<'_>) -> Result<(), PluginError> {
        Self::work(request, |lease| match std::fs::remove_file(lease) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
    }
    fn check(&self, request: &Request<'_>) -> Result<(), PluginError> {
        Self::work(request, |lease| std::fs::metadata(lease).map(drop))
    }
    fn gc(&self, _: &Request<'_>) -> Result<(), PluginError> {
        Ok(())
    }
    fn status(&self, _: &Request<'_>) -> Result<(), PluginError> {
        Ok(())
    }
}

/// A bed whose caller has the keeper, and the network of the keeper.
pub(crate) fn keeping(folder: &Path) -> (Bed, cofferdam_cni::NetworkList) {
    static KEEPER: &[&dyn Plugin] = &[&Keeper];
    let deadlines = Deadlines { lock: pace::limit(Duration::from_secs(60)), ..Deadlines::default() };
    let bed = Bed::at(folder, |options| (options.builtins, options.deadlines) = (KEEPER, deadlines));
    let leases = folder.join("leases");
    std::fs::create_dir_all(&leases).unwrap();
    (bed, network(&format!(r#"{{"type":"keeper","folder":"{}"}}"#, leases.display())))
}

/// The reference's bridge, then a scripted plugin that ends us.
fn attach_peer(folder: &Path) -> Result<(), Error> {
    let bed = Bed::at(folder, |options| options.plugin_path.push("/usr/lib/cni".into()));
    let netns = std::fs::read_to_string(folder.join("netns")).unwrap();
    let mut attachment = plain("one");
    attachment.netns = netns.into();
    bed.caller.attach(&crate::killed::peer_network(folder), &attachment).map(drop)
}

/// Records come and go until we are killed.
fn write(folder: &Path) -> Result<(), Error> {
    let (bed, list) = keeping(folder);
    loop {
        bed.caller.attach(&list, &plain("one"))?;
        bed.caller.detach(&list.name, &id("one"), &bed::eth0(), NetnsFate::Stays)?;
    }
}

/// Calls at random, over few containers.
fn collide(folder: &Path) -> Result<(), Error> {
    let (bed, list) = keeping(folder);
    let mut state = u64::from(std::process::id()) | 1;
    let mut draw = |below: u64| {
        // Knuth's multiplier: any sequence will do that differs from process to process.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for _ in 0..pace::rounds(250, 25) {
        let mut attachment = plain(["one", "two", "three"][draw(3) as usize]);
        attachment.if_name = IfName::parse(["eth0", "eth1"][draw(2) as usize]).unwrap();
        let all =
            ["one", "two", "three"].into_iter().flat_map(|name| ["eth0", "eth1"].map(|link| (name, link)));
        let valid = all.map(|(name, link)| (id(name), IfName::parse(link).unwrap())).collect();
        let done = match draw(4) {
            // Whatever anybody has is valid, also what is about to be.
            3 => bed.caller.gc(&list, &Valid::Only(valid)),
            0 => bed.caller.attach(&list, &attachment).map(drop),
            1 => bed.caller.check(&list.name, &attachment.container, &attachment.if_name),
            _ => bed.caller.detach(&list.name, &attachment.container, &attachment.if_name, NetnsFate::Stays),
        };
        match done {
            Ok(()) | Err(Error::Attached { .. } | Error::NotAttached { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Plugins that crash and rave, and how much memory that costs us.
fn crash(folder: &Path) -> Result<(), Error> {
    const MOST_KIB: u64 = 16 * 1024;
    let bed = Bed::at(folder, |options| options.deadlines = Deadlines::default());
    let fails = |script: &str| {
        bed.plugin("a", &format!("[ $CNI_COMMAND = ADD ] || exit 0; {script}"));
        let error = bed.caller.attach(&network(r#"{"type":"a"}"#), &plain("one")).unwrap_err().to_string();
        assert!(error.contains(" ms)"), "{error}");
        error
    };
    fails("exit 1");
    let idle = peak_kib();
    let crash = fails("echo dying >&2; kill -SEGV $$");
    assert!(crash.contains("signal: 11") && crash.contains("dying"), "{crash}");
    assert!(fails("exit 2").contains("exit status: 2"));
    let noisy = fails("head -c 1048576 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 1");
    assert!(noisy.ends_with("the end") && noisy.len() < 70_000, "{}", noisy.len());
    let begun = Instant::now();
    let flood = fails("echo raving >&2; exec cat /dev/zero");
    assert!(flood.contains("more than 4194304 bytes") && flood.contains("raving"), "{flood}");
    assert!(begun.elapsed() < pace::limit(Duration::from_secs(60)), "{:?}", begun.elapsed());
    let grown = peak_kib() - idle;
    assert!(grown < MOST_KIB, "{grown} KiB above idle");
    Ok(())
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
