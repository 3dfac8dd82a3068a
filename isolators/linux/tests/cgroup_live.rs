//! Cgroups for real, in whichever world this host lives. Needs root.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cofferdam_linux::bpf;
use cofferdam_linux::cgroup::{Cgroup, Error, Layout};
use rustix::event::{PollFd, Timespec, poll};
use rustix::io::Errno;

/// Removes the cgroup however the test ends.
struct Guard(Cgroup);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.thaw();
        let _ = self.0.kill();
        let _ = self.0.remove();
    }
}

impl std::ops::Deref for Guard {
    type Target = Cgroup;
    fn deref(&self) -> &Cgroup {
        &self.0
    }
}

/// A cgroup of this test's own; `None` where there is nothing to test with.
fn make(name: &str) -> Option<Guard> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return None;
    }
    match Cgroup::create(&path(name)) {
        Ok(cgroup) => Some(Guard(cgroup)),
        Err(Error::None) => {
            println!("skipped: no cgroups here");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn path(name: &str) -> String {
    format!("/cofferdam-test-{}-{name}", std::process::id())
}

/// A shell that runs `script` once it is told to.
struct Shell(Child);

impl Shell {
    fn start(script: &str) -> Self {
        let child = Command::new("/bin/sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    fn go(&mut self) {
        self.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }

    /// A process of one thread is moved through the doors by others too, only slower.
    fn enter(&self, cgroup: &Cgroup) {
        for door in cgroup.doors().unwrap() {
            std::fs::File::from(door).write_all(self.pid().to_string().as_bytes()).unwrap();
        }
        cgroup.attach_unified(self.pid()).unwrap();
    }

    fn run_in(script: &str, cgroup: &Cgroup) -> Option<i32> {
        let mut shell = Self::start(script);
        shell.enter(cgroup);
        shell.go();
        shell.0.wait().unwrap().code()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_is_attached_counted_killed_and_the_cgroup_removed() {
    let Some(cgroup) = make("life") else { return };
    let mut shell = Shell::start("sleep 100 & sleep 100");
    shell.enter(&cgroup);
    assert_eq!(cgroup.processes().unwrap(), [shell.pid()]);
    shell.go();
    assert!(matches!(cgroup.0.remove(), Err(error) if error.errno() == Errno::BUSY));
    let statistics = cgroup.statistics();
    assert!(statistics.cpu.usage_ns.is_some(), "{statistics:?}");
    if let Some(pids) = statistics.pids {
        assert!(pids.current >= 1, "{pids:?}");
    }
    cgroup.kill().unwrap();
    assert!(cgroup.processes().unwrap().is_empty());
    cgroup.remove().unwrap();
    assert!(!cgroup.exists());
    cgroup.remove().unwrap();
    assert_eq!(Cgroup::open(&path("life")).unwrap_err().errno(), Errno::NOENT);
}

#[test]
fn a_cgroup_is_found_again_with_all_its_places() {
    let Some(cgroup) = make("again") else { return };
    let layout = Layout::probe().unwrap();
    let again = Cgroup::open_in(&layout, &path("again")).unwrap();
    assert_eq!(cgroup.paths().collect::<Vec<_>>(), again.paths().collect::<Vec<_>>());
    assert!(again.exists());
    for hierarchy in &layout.v1 {
        let place = hierarchy.mount_point.join(&path("again")[1..]);
        assert!(again.paths().any(|(_, known)| known == place), "{place:?}");
    }
}

#[test]
fn a_cgroup_in_use_is_refused_and_left_as_it_was() {
    let Some(cgroup) = make("used") else { return };
    let shell = Shell::start("true");
    shell.enter(&cgroup);
    assert!(matches!(Cgroup::create(&path("used")), Err(Error::NotEmpty { processes: 1, .. })));
    assert_eq!(cgroup.processes().unwrap(), [shell.pid()]);
    drop(shell);
    cgroup.freeze().unwrap();
    assert!(matches!(Cgroup::create(&path("used")), Err(Error::Frozen { .. })));
    cgroup.thaw().unwrap();
    assert!(Cgroup::create(&path("used")).unwrap().exists());
}

#[test]
fn frozen_processes_stand_still_run_again_and_die_frozen() {
    let Some(cgroup) = make("freeze") else { return };
    let mut shell = Shell::start("while :; do :; done");
    shell.enter(&cgroup);
    shell.go();
    assert!(!cgroup.is_frozen().unwrap());
    cgroup.freeze().unwrap();
    assert!(cgroup.is_frozen().unwrap());
    let used = || cgroup.statistics().cpu.usage_ns.unwrap();
    let before = used();
    // The one place where time must pass: the claim is that nothing happens in it.
    std::thread::sleep(Duration::from_millis(50));
    assert!(used() - before < 5_000_000, "it ran on for {} ns", used() - before);
    cgroup.thaw().unwrap();
    cgroup.freeze().unwrap();
    cgroup.kill().unwrap();
    assert!(!shell.0.wait().unwrap().success());
}

#[test]
fn cgroups_made_inside_are_killed_and_removed_too() {
    let Some(cgroup) = make("nest") else { return };
    let deeper = Cgroup::create(&format!("{}/a/b", path("nest"))).unwrap();
    let shell = Shell::start("true");
    shell.enter(&deeper);
    assert_eq!(cgroup.processes().unwrap(), [shell.pid()]);
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
    assert!(!deeper.exists());
}

/// Whoever has a tree of cgroups to himself may make it as deep as he likes, and hide in it.
#[test]
fn however_deep_the_cgroups_inside_are_they_are_killed_and_removed() {
    let Some(cgroup) = make("deep") else { return };
    let own = |mount: &str| std::path::PathBuf::from(format!("{mount}{}", path("deep")));
    let own =
        ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(own).into_iter().find(|own| own.is_dir()).unwrap();
    let deepest = own.join("d/".repeat(300));
    std::fs::create_dir_all(&deepest).unwrap();
    std::fs::create_dir_all(own.join("d/d/beside/d")).unwrap();
    let shell = Shell::start("true");
    std::fs::write(deepest.join("cgroup.procs"), shell.pid().to_string()).unwrap();
    assert_eq!(cgroup.processes().unwrap(), [shell.pid()]);
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
    assert!(!own.exists());
}

#[test]
fn limits_are_written_where_the_controller_lives_and_refusals_are_named() {
    let Some(cgroup) = make("limits") else { return };
    let layout = Layout::probe().unwrap();
    let (controller, file) = match layout.is_v2() {
        true => ("", "pids.max"),
        false => ("pids", "pids.max"),
    };
    if cgroup.read(controller, file).is_err() {
        println!("skipped: no pids controller");
        return;
    }
    cgroup.write(controller, file, "17", false).unwrap();
    assert_eq!(cgroup.read(controller, file).unwrap().trim(), "17");
    let error = cgroup.write(controller, file, "many", false).unwrap_err();
    assert!(error.to_string().contains("write \"many\" to /sys/fs/cgroup"), "{error}");
    assert_eq!(error.errno(), Errno::INVAL);
    assert!(cgroup.write(controller, "pids.no_such_file", "1", true).is_ok());
    assert_eq!(cgroup.write(controller, "pids.no_such_file", "1", false).unwrap_err().errno(), Errno::NOENT);
    assert!(matches!(cgroup.write("no_such", "x", "1", false), Err(Error::NoController { .. })));
    assert!(cgroup.write("no_such", "x", "1", true).is_ok());
    for file in ["", "../pids.max", "a/b"] {
        assert_eq!(cgroup.write(controller, file, "1", false).unwrap_err().errno(), Errno::INVAL);
    }
}

#[test]
fn paths_that_leave_the_tree_or_name_its_root_are_refused() {
    for bad in ["", "/", "//", "..", "/a/../b", "a/./b", "a\0b"] {
        assert!(matches!(Cgroup::create(bad), Err(Error::Path { .. } | Error::None)), "{bad:?}");
    }
}

/// `BPF_PROG_TYPE_CGROUP_DEVICE` programs: everything, nothing.
const ALLOW_ALL: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
const ALLOW_NONE: [u64; 2] = [0x0000_0000_0000_00b7, 0x95];

#[test]
fn a_device_program_is_in_force_at_once_and_replaced_in_one_step() {
    let Some(cgroup) = make("devices") else { return };
    let Ok(directory) = cgroup.directory() else {
        println!("skipped: no version 2 tree");
        return;
    };
    use std::os::fd::AsFd as _;
    let script = "exec < /dev/zero";
    cgroup.filter_devices(&ALLOW_ALL).unwrap();
    assert_eq!(Shell::run_in(script, &cgroup), Some(0));
    cgroup.filter_devices(&ALLOW_NONE).unwrap();
    assert_ne!(Shell::run_in(script, &cgroup), Some(0));
    cgroup.filter_devices(&ALLOW_ALL).unwrap();
    assert_eq!(bpf::device_programs(directory.as_fd()).unwrap().len(), 1);
    let error = cgroup.filter_devices(&[0x95]).unwrap_err();
    assert!(error.to_string().starts_with("bpf(BPF_PROG_LOAD)"), "{error}");
}

#[test]
fn the_out_of_memory_killer_is_noticed() {
    let Some(cgroup) = make("oom") else { return };
    let Ok(watch) = cgroup.watch_oom() else {
        println!("skipped: no memory controller");
        return;
    };
    let (controller, file, swap) = match Layout::probe().unwrap().is_v2() {
        true => ("", "memory.max", "memory.swap.max"),
        false => ("memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    };
    const LIMIT: &str = "16777216";
    cgroup.write(controller, file, LIMIT, false).unwrap();
    let swap_limit = if controller.is_empty() { "0" } else { LIMIT };
    cgroup.write(controller, swap, swap_limit, true).unwrap();
    assert_eq!(watch.kills().unwrap(), Some(0));
    // tail keeps all it reads until the end, and there is none.
    let code = Shell::run_in("tail /dev/zero", &cgroup);
    assert_ne!(code, Some(0));
    let limit = Timespec { tv_sec: 5, tv_nsec: 0 };
    let mut waiting = [PollFd::from_borrowed_fd(watch.descriptor(), watch.interest())];
    assert_eq!(poll(&mut waiting, Some(&limit)).unwrap(), 1);
    assert!(watch.kills().unwrap().unwrap() >= 1);
    let memory = cgroup.statistics().memory.unwrap();
    assert_eq!(memory.limit_bytes, Some(16 << 20));
    assert!(memory.oom_kills.unwrap() >= 1 && memory.peak_bytes.unwrap() > 8 << 20, "{memory:?}");
}
