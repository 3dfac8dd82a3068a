//! `--console-socket`: the master of a terminal comes over a unix socket, on ours as on a peer. Its documentation is
//! runc's docs/terminals.md, "detached new terminal".

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use cofferdam_tests::bundle::Bundle;
use cofferdam_tests::needs;
use cofferdam_tests::oci::Runtime;
use cofferdam_tests::process;
use cofferdam_tests::world::World;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::json;

/// Takes the master that a runtime sends.
fn master(listener: &UnixListener) -> File {
    let (socket, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut message = [0; 256];
    recvmsg(&socket, &mut [IoSliceMut::new(&mut message)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    File::from(descriptors.flatten().next().expect("a descriptor"))
}

/// Reads until the words have come; the end of a terminal is an error (EIO).
fn hear(master: &mut File, words: &str) -> String {
    let mut heard = Vec::new();
    let mut buffer = [0; 256];
    while !String::from_utf8_lossy(&heard).contains(words) {
        match master.read(&mut buffer) {
            Ok(size) if size > 0 => heard.extend_from_slice(&buffer[..size]),
            end => panic!("{end:?} before {words:?}: {:?}", String::from_utf8_lossy(&heard)),
        }
    }
    String::from_utf8_lossy(&heard).into_owned()
}

fn converse(runtime: &Runtime, mut master: File) {
    let heard = hear(&mut master, "ready");
    assert!(heard.contains("/dev/"), "{}: {heard:?}", runtime.name());
    master.write_all(b"hello\n").unwrap();
    hear(&mut master, "got hello");
}

fn with_terminal(folder: &Path, script: &str) -> Bundle {
    Bundle::make(folder, &["sh", "-c", script], |config| config["process"]["terminal"] = json!(true)).unwrap()
}

/// Waits for processes that have ended: the first one of a pid namespace cannot end while another is a zombie of ours.
fn reap_down_to(count: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while process::descendants().len() > count {
        process::reap();
        assert!(Instant::now() < deadline, "{:?}", process::descendants());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_terminal_comes_over_the_console_socket_of_run_create_and_exec() {
    if !needs::root() || !needs::programs(&["busybox", "ip"]) {
        return;
    }
    const TALK: &str = "tty; echo ready; read word; echo got $word";
    let stay = format!("{TALK}; sleep 1000");
    let world = World::enter().unwrap();
    for runtime in Runtime::all(&world.state()) {
        println!("on {}", runtime.name());
        runtime.make_root().unwrap();
        let folder = world.files().join(runtime.name());
        std::fs::create_dir(&folder).unwrap();
        let watch = world.watch();
        {
            let path = folder.join("console");
            let (listener, socket) = (UnixListener::bind(&path).unwrap(), path.to_str().unwrap());
            let bundle = with_terminal(&folder.join("talker"), &stay);
            let bundle = bundle.path().to_str().unwrap();

            runtime
                .succeed(&["run", "--detach", "--console-socket", socket, "--bundle", bundle, "r"])
                .unwrap();
            converse(&runtime, master(&listener));
            let before = process::descendants().len();
            let exec = ["exec", "--detach", "--tty", "--console-socket", socket, "r", "sh", "-c", TALK];
            runtime.succeed(&exec).unwrap();
            converse(&runtime, master(&listener));
            reap_down_to(before);
            runtime.succeed(&["delete", "--force", "r"]).unwrap();

            runtime.succeed(&["create", "--console-socket", socket, "--bundle", bundle, "c"]).unwrap();
            let waiting = master(&listener);
            runtime.succeed(&["start", "c"]).unwrap();
            converse(&runtime, waiting);
            runtime.succeed(&["delete", "--force", "c"]).unwrap();
        }
        watch.end();
    }
}
