//! Whatever hangs is given up, named and undone; and `delete --force` works all the same. ARCHITECTURE.md, invariants 11
//! and 12.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use cofferdam_runtime::{Console, Create, Created, Error, Limits, Status};
use serde_json::{Value, json};

use super::{ALONE, Census, Place, own_mounts, plain, privileged};

/// Long enough for what works, which takes milliseconds (a second under emulation), and short enough to wait for what does not.
const SHORT: Duration = Duration::from_secs(3);
/// No operation may take this long when every wait is short.
const LONG: Duration = Duration::from_secs(90);

const LIMITS: Limits =
    Limits { child: SHORT, lock: SHORT, forced_lock: SHORT, console: SHORT, end: Duration::from_secs(10) };

/// A place with short limits, in a mount namespace of the thread's own.
fn hasty() -> Place {
    own_mounts();
    Place::make_with(LIMITS)
}

fn hook(script: &str, timeout_s: u64) -> Value {
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"], "timeout": timeout_s }])
}

/// Stops the process whose state is on standard input: from then on it hangs, as on a dead file system.
const STOP: &str = r#"kill -STOP $(sed 's/.*"pid":\([0-9]*\).*/\1/')"#;

fn created(place: &Place, create: Create) -> Result<Created, Error> {
    let begin = Instant::now();
    let result = place.runtime.create(create);
    assert!(begin.elapsed() < LONG, "{:?}", begin.elapsed());
    result
}

fn gated(place: &Place, name: &str, change: impl Fn(&mut Value)) -> Create {
    let mut create = place.create(name, change);
    create.start = false;
    create
}

#[test]
fn a_process_that_hangs_on_its_way_is_killed_and_the_step_it_hangs_in_is_named() {
    if !privileged() {
        return;
    }
    let _alone = ALONE.lock().unwrap();
    let place = hasty();
    drop(created(&place, gated(&place, "warm", plain)).unwrap());
    place.runtime.delete(&cofferdam_runtime::ContainerId::parse("warm").unwrap(), true).unwrap();
    let before = Census::take(&place);
    for point in ["prestart", "createRuntime"] {
        for gate in [true, false] {
            let mut create = gated(&place, "hangs", |config| config["hooks"][point] = hook(STOP, 20));
            create.start = !gate;
            let error = created(&place, create).unwrap_err().to_string();
            assert!(error.contains("silent for 3 s") && error.contains("step "), "{error}");
            assert_eq!(Census::take(&place), before, "{error}");
        }
    }
}

#[test]
fn a_start_that_comes_to_no_program_stops_the_container() {
    if !privileged() {
        return;
    }
    let _alone = ALONE.lock().unwrap();
    let place = hasty();
    let before = Census::take(&place);
    let create = gated(&place, "stuck", plain);
    let id = create.id.clone();
    let container = created(&place, create).unwrap();
    let stop = rustix::process::Signal::STOP;
    rustix::process::pidfd_send_signal(&container.pidfd, stop).unwrap();
    let error = place.runtime.start(&id).unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }) && error.to_string().contains("/guest"), "{error}");
    assert_eq!(place.runtime.state(&id).unwrap().status, Status::Stopped);
    place.runtime.delete(&id, false).unwrap();
    cofferdam_runtime::foreground::reap(container.pidfd.as_fd()).unwrap();
    drop(container);
    assert_eq!(Census::take(&place), before);
}

/// A runtime process that was stopped in the middle of an operation holds the lock of its container for good.
#[test]
fn a_lock_that_is_never_let_go_is_named_and_delete_by_force_does_without() {
    if !privileged() {
        return;
    }
    let _alone = ALONE.lock().unwrap();
    let place = hasty();
    let before = Census::take(&place);
    let create =
        place.create("held", |config| config["process"]["args"] = json!(["/guest", "sleep", "1000"]));
    let id = create.id.clone();
    let container = created(&place, create).unwrap();
    let held = std::fs::File::open(place.runtime.root().join("held")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let ours = format!("process {}", std::process::id());
    for error in [
        place.runtime.delete(&id, false).unwrap_err(),
        place.runtime.kill(&id, 9, false).unwrap_err(),
        place.runtime.pause(&id).unwrap_err(),
    ] {
        assert!(matches!(&error, Error::Locked { holder, .. } if holder.contains(&ours)), "{error}");
    }
    let warnings = place.runtime.delete(&id, true).unwrap();
    assert!(warnings.iter().any(|warning| warning.contains(&ours)), "{warnings:?}");
    cofferdam_runtime::foreground::reap(container.pidfd.as_fd()).unwrap();
    drop((container, held));
    assert_eq!(Census::take(&place), before);
}

#[test]
fn a_create_that_hangs_in_a_hook_does_not_keep_its_container_from_being_deleted() {
    if !privileged() {
        return;
    }
    let _alone = ALONE.lock().unwrap();
    let place = hasty();
    let before = Census::take(&place);
    let mark = place.bundle.join("mark");
    let script = format!("echo > {}; sleep 1000", mark.display());
    let create = gated(&place, "hooked", |config| config["hooks"]["createRuntime"] = hook(&script, 600));
    let id = create.id.clone();
    std::thread::scope(|scope| {
        let creating = scope.spawn(|| place.runtime.create(create));
        wait_for(&mark);
        place.runtime.delete(&id, true).unwrap();
        let begin = Instant::now();
        let error = creating.join().unwrap().unwrap_err();
        assert!(begin.elapsed() < LONG && error.to_string().contains("process ended"), "{error}");
    });
    std::fs::remove_file(mark).unwrap();
    assert_eq!(Census::take(&place), before);
}

fn wait_for(path: &Path) {
    let deadline = Instant::now() + LONG;
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} did not come", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_console_socket_that_nobody_serves_is_given_up() {
    if !privileged() {
        return;
    }
    let _alone = ALONE.lock().unwrap();
    let place = hasty();
    let socket = place.bundle.join("console");
    let listener = UnixListener::bind(&socket).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let waiting = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let before = Census::take(&place);
    let mut create = gated(&place, "console", |config| config["process"]["terminal"] = json!(true));
    create.console = Console::Socket(socket);
    let error = created(&place, create).unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }) && error.to_string().contains("console"), "{error}");
    assert_eq!(Census::take(&place), before, "{error}");
    drop(waiting);
}
