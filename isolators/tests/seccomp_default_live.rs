//! The default profile in force: loaded into a thread, then asked by real system calls.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use cofferdam_isolators::capabilities::{CapSet, Capability};
use cofferdam_isolators::seccomp::{Architecture, Filter, compile, default};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

fn load(filter: &Filter) {
    rustix::thread::set_no_new_privs(true).unwrap();
    let program: Vec<cofferdam_linux::seccomp::SockFilter> = filter
        .program
        .iter()
        .map(|i| cofferdam_linux::seccomp::SockFilter { code: i.code, jt: i.jt, jf: i.jf, k: i.k })
        .collect();
    cofferdam_linux::seccomp::load(&program, filter.flags).unwrap();
}

/// Filters belong to the thread, so each test spoils a thread of its own.
fn under(style: default::Style, granted: CapSet, body: impl FnOnce() + Send) {
    let profile = default::profile(style, granted, Architecture::native().unwrap());
    let filter = compile(&profile).unwrap();
    let body = || {
        load(&filter);
        body();
    };
    std::thread::scope(|scope| scope.spawn(body).join().unwrap());
}

fn socket(family: u16) -> Result<(), Errno> {
    socket_with(AddressFamily::from_raw(family), SocketType::DGRAM, SocketFlags::CLOEXEC, None).map(drop)
}

#[test]
fn ordinary_work_goes_on_under_the_strict_profile() {
    under(default::Style::Strict, CapSet::DEFAULT, || {
        let directory = std::env::temp_dir();
        assert!(std::fs::read_dir(directory).unwrap().count() < usize::MAX);
        assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
        let output = std::process::Command::new("/bin/echo").arg("still here").output().unwrap();
        assert_eq!(output.stdout, b"still here\n");
        socket(1).unwrap();
        socket(2).unwrap();
        let pipe = rustix::pipe::pipe().unwrap();
        assert!(!rustix::termios::isatty(&pipe.0));
    });
}

#[test]
fn dangerous_calls_fail_with_the_documented_errors() {
    under(default::Style::Strict, CapSet::DEFAULT, || {
        for family in [17, 21, 38, 40] {
            assert_eq!(socket(family), Err(Errno::PERM), "family {family}");
        }
        let unshare = cofferdam_linux::process::unshare(0x0400_0000);
        assert_eq!(unshare, Err(Errno::PERM));
        let mount = rustix::mount::mount(
            c"none",
            c"/nonexistent",
            c"tmpfs",
            rustix::mount::MountFlags::empty(),
            None,
        );
        assert_eq!(mount, Err(Errno::PERM));
        let open_tree =
            rustix::mount::open_tree(rustix::fs::CWD, c"/", rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE);
        assert_eq!(open_tree.err(), Some(Errno::PERM));
    });
}

#[test]
fn a_granted_capability_opens_its_calls() {
    under(default::Style::Strict, CapSet::EMPTY.with(Capability::SYS_ADMIN), || {
        let mount = rustix::mount::mount(
            c"none",
            c"/nonexistent",
            c"tmpfs",
            rustix::mount::MountFlags::empty(),
            None,
        );
        // Past the filter: the kernel itself answers, by privilege or by path.
        let expected = if rustix::process::geteuid().is_root() { Errno::NOENT } else { Errno::PERM };
        assert_eq!(mount, Err(expected));
    });
}
