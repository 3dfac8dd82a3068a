//! How layers are kept and writable layers limited, seen through `run`.

use std::path::Path;
use std::process::{Command, Stdio};

use cofferdam_tests::needs;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

use crate::host::{Answer, call, cofferdam, program, run, settle, settled_world, succeed, world};

#[test]
fn a31_a70_tasks_run_on_every_backend() {
    let Some(world) = world() else { return };
    for backend in ["overlay-dir", "erofs", "copy"] {
        // A store of its own, or the layers that are there would be used as they are.
        let root = world.files().join(backend);
        let with = |words: &[&str]| {
            let mut command = Command::new(program());
            command.arg("--state").arg(world.state()).arg("--cni-config").arg(world.files());
            command.arg("--root").arg(&root).args(["--layers", backend]).args(words).stdin(Stdio::null());
            Answer::from(command.output().unwrap())
        };
        let first = with(&["run", "--rm", "--network", "none", "demo", "true"]);
        if first.stderr.contains("layers cannot be kept as") {
            println!("skipped: {}", first.stderr.trim());
            continue;
        }
        assert_eq!(first.code, Some(0), "{backend}: {first:?}");
        let watch = world.watch();
        let answer = with(&["run", "--rm", "--network", "none", "demo", "write", "/new", "words"]);
        assert_eq!(answer.code, Some(0), "{backend}: {answer:?}");
        let answer = with(&["run", "--rm", "--network", "none", "--user", "root", "demo", "id"]);
        assert!(answer.stdout.contains("Uid 0"), "{backend}: {answer:?}");
        let answer = with(&["run", "--rm", "--network", "none", "demo", "cat", "/new"]);
        assert_ne!(answer.code, Some(0), "{backend}: one task saw what another wrote");
        let seen = with(&["run", "--rm", "--network", "none", "demo", "cat", "/proc/self/mountinfo"]).stdout;
        let root = seen.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap_or_default();
        assert!(root.contains("nodev"), "{backend}: {seen}");
        settle(&watch);
    }
}

#[test]
fn a77_a_writable_layer_of_64_mib_is_full_then_and_the_host_is_not() {
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    let small = run(&world, &["--storage-opt", "size=64m"], &["write", "/file", "words"]);
    if small.stderr.contains("cannot be limited") {
        println!("skipped: {}", small.stderr.trim());
        return;
    }
    assert_eq!(small.code, Some(0), "{small:?}");
    let mut child = crate::host::cofferdam(
        &world,
        &["run", "--rm", "-i", "--network", "none", "--storage-opt", "size=64m", "demo", "write", "/file"],
    )
    .stdin(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let block = vec![b'x'; 1 << 20];
    let mut written = 0;
    // It stops reading when there is no room left.
    while written < 128 && std::io::Write::write_all(&mut stdin, &block).is_ok() {
        written += 1;
    }
    drop(stdin);
    let answer = Answer::from(child.wait_with_output().unwrap());
    assert_ne!(answer.code, Some(0), "{answer:?}");
    assert!(answer.stderr.contains("No space left on device"), "{answer:?}");
    settle(&watch);
}

/// A new btrfs with quotas at `target`, or `None`, and a line that says so, where this host cannot have it.
fn mount_btrfs(file: &Path, target: &Path) -> Option<()> {
    if !needs::programs(&["mkfs.btrfs", "btrfs", "mount"]) {
        return None;
    }
    std::fs::File::create(file).unwrap().set_len(512 << 20).unwrap();
    std::fs::create_dir(target).unwrap();
    let ok = |program: &str, arguments: &[&std::ffi::OsStr]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (made, why) = ok("mkfs.btrfs", &["-q".as_ref(), file.as_ref()]);
    assert!(made, "{why}");
    let (mounted, why) = ok("mount", &["-o".as_ref(), "loop".as_ref(), file.as_ref(), target.as_ref()]);
    if !mounted {
        println!("skipped: no btrfs can be mounted: {}", why.trim());
        return None;
    }
    let (counts, why) = ok("btrfs", &["quota".as_ref(), "enable".as_ref(), target.as_ref()]);
    assert!(counts, "{why}");
    Some(())
}

#[test]
fn a77_a_writable_layer_on_btrfs_is_limited_by_its_quota_group() {
    let Some(world) = world() else { return };
    let (file, target) = (world.files().join("btrfs.disk"), world.files().join("btrfs"));
    let Some(()) = mount_btrfs(&file, &target) else { return };
    let root = target.join("root");
    let with = |words: &[&str]| {
        let mut command = Command::new(program());
        command.arg("--state").arg(world.state()).arg("--cni-config").arg(world.files());
        command.arg("--root").arg(&root).args(words).stdin(Stdio::null());
        command
    };
    let call = |words: &[&str]| Answer::from(with(words).output().unwrap());
    let limited = ["run", "--rm", "--network", "none", "--storage-opt", "size=64m"];
    let small = call(&[&limited[..], &["demo", "write", "/file", "words"]].concat());
    assert_eq!(small.code, Some(0), "{small:?}");
    assert!(backing_files(&target).is_empty());
    let told = call(&["doctor"]).stdout;
    let line = |name: &str| told.lines().find(|line| line.contains(name)).unwrap_or_default().to_owned();
    assert!(line("btrfs quota group").contains("this is the way that is taken"), "{told}");
    assert!(line("project quota").contains("btrfs"), "{told}");

    let words = [&limited[..], &["-i", "demo", "write", "/file"]].concat();
    let mut child = with(&words).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let (block, mut written) = (vec![b'x'; 1 << 20], 0);
    while written < 128 && std::io::Write::write_all(&mut stdin, &block).is_ok() {
        written += 1;
    }
    drop(stdin);
    let answer = Answer::from(child.wait_with_output().unwrap());
    assert_ne!(answer.code, Some(0), "{answer:?}");
    assert!(answer.stderr.contains("quota exceeded"), "{answer:?}");
    // More was taken on the way than what the task could write.
    assert!(written >= 60, "{written} MiB");
    // The file system has room, for tasks without a limit and for everybody else.
    let free = call(&["run", "--rm", "--network", "none", "demo", "write", "/file", "words"]);
    assert_eq!(free.code, Some(0), "{free:?}");
    std::fs::write(target.join("other"), &block).unwrap();
    // What a task wrote goes with it, subvolume and all.
    assert_eq!(call(&["image", "settle"]).code, Some(0));
    let left = Command::new("btrfs").args(["subvolume", "list"]).arg(&target).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::empty()).unwrap();
}

/// A program makes a hundred thousand directories, one in the other, in a second: in its root and in its volumes.
#[test]
fn a_task_that_made_directories_without_end_is_removed_like_any_other() {
    let Some(world) = settled_world() else { return };
    let watch = world.watch();
    let id = succeed(&world, &["run", "-d", "--network", "none", "demo", "sleep", "1000"]);
    let snapshots = std::fs::read_dir(world.root().join("images/snapshots")).unwrap();
    let tops = snapshots.map(|snapshot| snapshot.unwrap().path().join("upper"));
    for top in tops.chain([world.root().join("tasks").join(&id)]) {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = openat(CWD, &top, flags, Mode::empty()).unwrap();
        for _ in 0..2000 {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", flags, Mode::empty()).unwrap();
        }
    }
    for words in [&["rm", "--force", &id][..], &["image", "settle"]] {
        // With fewer descriptors than there are levels.
        let call = cofferdam(&world, words);
        let mut limited = Command::new("sh");
        limited
            .args(["-c", "ulimit -n 1024; exec \"$0\" \"$@\""])
            .arg(call.get_program())
            .args(call.get_args());
        let answer = Answer::from(limited.output().unwrap());
        assert!(answer.code == Some(0) && answer.stderr.is_empty(), "{words:?}: {answer:?}");
    }
    settle(&watch);
}

#[test]
fn a77_a_limited_task_that_is_killed_with_its_supervisor_leaves_no_loop_device() {
    let Some(world) = settled_world() else { return };
    let options = ["run", "-d", "--network", "none", "--storage-opt", "size=16m", "--name", "full"];
    let started = call(&world, &[&options[..], &["demo", "sleep", "1000"]].concat());
    if started.stderr.contains("cannot be limited") {
        println!("skipped: {}", started.stderr.trim());
        return;
    }
    assert_eq!(started.code, Some(0), "{started:?}");
    assert_eq!(backing_files(&world.root()).len(), 1);
    succeed(&world, &["rm", "-f", "full"]);
    assert!(backing_files(&world.root()).is_empty());
    assert!(call(&world, &["run", "--rm", "--storage-opt", "size=1m", "demo", "true"]).code != Some(0));
}

#[test]
fn a76_integrity_that_the_kernel_cannot_keep_is_refused() {
    let Some(world) = settled_world() else { return };
    let answer = run(&world, &["--storage-opt", "integrity=require"], &["true"]);
    assert!(answer.code != Some(0) && answer.stderr.contains("fs-verity"), "{answer:?}");
}

/// Files below a folder that loop devices are made of.
fn backing_files(folder: &Path) -> Vec<String> {
    let devices = std::fs::read_dir("/sys/block").unwrap().flatten();
    let files =
        devices.filter_map(|device| std::fs::read_to_string(device.path().join("loop/backing_file")).ok());
    files.filter(|file| Path::new(file).starts_with(folder)).collect()
}
