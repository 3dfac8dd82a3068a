//! Containers without privilege over the host: of an ordinary user, of the root of somebody's user namespace, of podman when
//! such a user calls it; and user namespaces that root makes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use cofferdam_tests::bundle::Bundle;
use cofferdam_tests::needs;
use cofferdam_tests::oci::{Outcome, Runtime, outcome};
use cofferdam_tests::user::{FIRST_SUBORDINATE, ID, SUBORDINATES, User};
use cofferdam_tests::world::World;
use serde_json::{Value, json};

/// The programs that write maps of more than one's own id.
const HELPERS: &[&str] = &["newuidmap", "newgidmap"];

/// Runs a test's body in a world with an ordinary user.
fn as_user(body: impl Fn(&World, &User, &Runtime)) {
    if !needs::root() || !needs::programs(&["busybox", "ip"]) {
        return;
    }
    let world = World::enter().unwrap();
    let user = User::make().unwrap();
    let runtime = Runtime::ours(&world.state());
    user.program(runtime.program()).unwrap();
    let watch = world.watch();
    body(&world, &user, &runtime);
    watch.end();
}

/// A bundle of the user's own, with the configuration that `spec --rootless` writes for him.
fn bundle(user: &User, runtime: &Runtime, name: &str, script: &str) -> (Bundle, Value) {
    let folder = user.home().join(name);
    let bundle = Bundle::make(&folder, &["true"], |_| {}).unwrap();
    std::fs::remove_file(folder.join("config.json")).unwrap();
    user.give(&folder).unwrap();
    let mut spec = user.call(runtime, &["spec", "--rootless", "--bundle", folder.to_str().unwrap()]).unwrap();
    assert!(spec.status().unwrap().success());
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    config["process"]["args"] = json!(["sh", "-c", script]);
    config["process"]["terminal"] = json!(false);
    (bundle, config)
}

fn run(user: &User, runtime: &Runtime, bundle: &Bundle, id: &str) -> Outcome {
    outcome(&mut user.call(runtime, &["run", "--bundle", bundle.path().to_str().unwrap(), id]).unwrap())
        .unwrap()
}

fn ranges() -> Value {
    json!([
        { "containerID": 0, "hostID": ID, "size": 1 },
        { "containerID": 1, "hostID": FIRST_SUBORDINATE, "size": SUBORDINATES }
    ])
}

fn map(config: &mut Value, ranges: &Value) {
    config["linux"]["uidMappings"] = ranges.clone();
    config["linux"]["gidMappings"] = ranges.clone();
}

/// What a row of a table expects.
enum Expect {
    /// The program ends with 0 and says this.
    Says(&'static str),
    /// The runtime refuses, in words that have this in them.
    Refused(&'static str),
}
use Expect::{Refused, Says};

/// A change of the configuration, a script, and what comes of it.
type Row = (&'static str, fn(&mut Value), &'static str, Expect);

const UNPRIVILEGED: &[Row] = &[
    // user_namespaces(7): one line for oneself, with setgroups denied.
    (
        "one id",
        |_| {},
        "id -u; cat /proc/self/uid_map | tr -s ' '; cat /proc/self/setgroups",
        Says("0\n 0 54321 1\ndeny\n"),
    ),
    (
        "devices are bound",
        |_| {},
        "echo x > /dev/null && head -c 3 /dev/zero | wc -c && test -c /dev/full",
        Says("3\n"),
    ),
    ("sysfs is the host's", |_| {}, "touch /sys/kernel/x 2>/dev/null || echo read-only", Says("read-only\n")),
    (
        "a cgroup mount shows the caller's, never to be written",
        |config| {
            config["mounts"].as_array_mut().unwrap().push(json!({
                "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]
            }));
        },
        "cd /sys/fs/cgroup; for folder in *; do mkdir $folder/x 2>/dev/null && echo made; done; echo none",
        Says("none\n"),
    ),
    (
        "a bind of a folder that is closed to others",
        |config| {
            config["mounts"].as_array_mut().unwrap().push(json!({
                "destination": "/data", "type": "bind", "source": "/tmp/home/closed", "options": ["rbind", "rw"]
            }));
        },
        "cat /data/word; echo more > /data/more; stat -c %u /data/more",
        Says("secret\n0\n"),
    ),
    (
        "a higher out-of-memory score",
        |config| config["process"]["oomScoreAdj"] = json!(321),
        "cat /proc/self/oom_score_adj",
        Says("321\n"),
    ),
    (
        "a lower one is not his to give",
        |config| config["process"]["oomScoreAdj"] = json!(-500),
        "cat /proc/self/oom_score_adj",
        Says("0\n"),
    ),
    (
        "hooks, outside and inside",
        |config| {
            let hook = |name: &str, program: &str, arguments: &[&str]| {
                let script = format!("id -u > /tmp/home/closed/{name}");
                let script = if arguments.is_empty() { script } else { arguments[0].to_owned() };
                json!([{ "path": program, "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] }])
            };
            config["hooks"] = json!({
                "createRuntime": hook("runtime", "/bin/sh", &[]),
                "createContainer": hook("container", "/bin/sh", &[]),
                "startContainer": hook("start", "/bin/sh", &["id -u > /dev/shm/start"]),
                "poststart": hook("poststart", "/bin/sh", &[])
            });
            config["mounts"].as_array_mut().unwrap().push(json!({
                "destination": "/closed", "type": "bind", "source": "/tmp/home/closed", "options": ["rbind"]
            }));
        },
        "until test -s /closed/poststart; do sleep 0.01; done; cd /closed; \
         cat runtime container /dev/shm/start poststart; rm runtime container poststart",
        Says("54321\n0\n0\n54321\n"),
    ),
    (
        "limits above his own",
        |config| {
            config["process"]["rlimits"] =
                json!([{ "type": "RLIMIT_NOFILE", "soft": 1 << 30, "hard": 1 << 30 }]);
        },
        "echo ran",
        Says("ran\n"),
    ),
    (
        "privileges that grow",
        |config| config["process"]["noNewPrivileges"] = json!(false),
        "echo ran",
        Says("ran\n"),
    ),
    (
        "no user namespace",
        |config| {
            config["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != "user");
            config["linux"].as_object_mut().unwrap().remove("uidMappings");
            config["linux"].as_object_mut().unwrap().remove("gidMappings");
        },
        "",
        Refused("user namespace"),
    ),
    (
        "supplementary groups (CVE-2014-8989)",
        |config| config["process"]["user"]["additionalGids"] = json!([0]),
        "",
        Refused("/etc/subgid"),
    ),
    (
        "a user who is not mapped",
        |config| config["process"]["user"]["uid"] = json!(7),
        "",
        Refused("not mapped"),
    ),
    (
        "a limit that cannot hold",
        |config| config["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 } }),
        "",
        Refused("cannot set memory."),
    ),
    (
        "a cgroup that he may not make",
        |config| config["linux"]["cgroupsPath"] = json!("/cofferdam-rootless-denied"),
        "",
        Refused("ermission denied"),
    ),
    (
        "device rules alone are no limit that he could break",
        |config| {
            config["linux"]["resources"] = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
        },
        "echo ran",
        Says("ran\n"),
    ),
    (
        "a new sysfs without a network namespace",
        |config| {
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| mount["destination"] != "/sys");
            mounts.push(json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs" }));
        },
        "",
        Refused("network namespace"),
    ),
    (
        "a new sysfs with one",
        |config| {
            config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "network" }));
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| mount["destination"] != "/sys");
            mounts.push(json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs" }));
            config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
        },
        "ls /sys/class/net; cat /proc/sys/net/ipv4/ip_forward",
        Says("lo\n1\n"),
    ),
    (
        "clocks of its own",
        |config| {
            config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "time" }));
            config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1_000_000_000 } });
        },
        "cut -c1 /proc/uptime",
        Says("1\n"),
    ),
];

const WITH_RANGES: &[Row] = &[
    (
        "ranges through the helpers, with groups",
        |config| {
            map(config, &ranges());
            config["process"]["user"] = json!({ "uid": 5, "gid": 6, "additionalGids": [7, 8] });
        },
        "id; wc -l < /proc/self/uid_map",
        Says("uid=5 gid=6 groups=7,8\n2\n"),
    ),
    (
        "ranges and his own group",
        |config| config["linux"]["uidMappings"] = ranges(),
        "cat /proc/self/setgroups; wc -l < /proc/self/uid_map",
        Says("deny\n2\n"),
    ),
    (
        "ranges that are somebody else's",
        |config| map(config, &json!([{ "containerID": 0, "hostID": 0, "size": 1000 }])),
        "",
        Refused("newgidmap: gid range [0-1000) -> [0-1000) not allowed"),
    ),
];

fn check_rows(rows: &[Row]) {
    as_user(|_, user, runtime| {
        let closed = user.home().join("closed");
        std::fs::create_dir(&closed).unwrap();
        std::fs::write(closed.join("word"), "secret\n").unwrap();
        user.give(&closed).unwrap();
        std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
        let (bundle, plain) = bundle(user, runtime, "bundle", "");
        if let Some(peer) = Runtime::peer(&user.runtime_folder()).filter(|peer| peer.name() == "runc") {
            let mut config = plain.clone();
            config["process"]["args"] = json!(["cat", "/proc/self/uid_map"]);
            bundle.configure(&config).unwrap();
            let said = [&peer, runtime].map(|runtime| run(user, runtime, &bundle, "c").stdout);
            assert_eq!(said[0], said[1], "{} disagrees", peer.name());
        }
        for (name, change, script, expected) in rows {
            let mut config = plain.clone();
            config["process"]["args"] = json!(["sh", "-c", script]);
            change(&mut config);
            bundle.configure(&config).unwrap();
            let outcome = run(user, runtime, &bundle, "c");
            match expected {
                Says(words) => {
                    assert_eq!(
                        (outcome.status, outcome.stdout.as_str()),
                        (Some(0), *words),
                        "{name}: {outcome:?}"
                    );
                    // What is left out is told there, and nothing else.
                    let warned = outcome.stderr.lines().all(|line| line.contains("level=warning"));
                    assert!(warned, "{name}: {outcome:?}");
                }
                Refused(words) => {
                    assert!(
                        outcome.status != Some(0) && outcome.stderr.contains(words),
                        "{name}: {outcome:?}"
                    );
                }
            }
        }
    });
}

#[test]
fn an_ordinary_user_gets_what_needs_no_privilege_and_a_clear_no_to_the_rest() {
    check_rows(UNPRIVILEGED);
}

#[test]
fn newuidmap_and_newgidmap_map_what_etc_subuid_allows() {
    if needs::programs(HELPERS) {
        check_rows(WITH_RANGES);
    }
}

/// runtime.md, "Lifecycle", with the state where the user's session keeps such things.
#[test]
fn an_ordinary_user_creates_starts_enters_lists_kills_and_deletes() {
    as_user(|_, user, runtime| {
        let (bundle, config) = bundle(user, runtime, "bundle", "sleep 1000");
        let single = json!([{ "containerID": 0, "hostID": ID, "size": 1 }]);
        let maps =
            if needs::find_program("newuidmap").is_some() { vec![single, ranges()] } else { vec![single] };
        for ids in maps {
            let mut config = config.clone();
            map(&mut config, &ids);
            config["process"]["oomScoreAdj"] = json!(100);
            bundle.configure(&config).unwrap();
            let call = |arguments: &[&str]| {
                let outcome = outcome(&mut user.call(runtime, arguments).unwrap()).unwrap();
                assert_eq!(outcome.status, Some(0), "{arguments:?} {outcome:?}");
                outcome.stdout
            };
            call(&["create", "--bundle", bundle.path().to_str().unwrap(), "c"]);
            assert!(user.runtime_folder().join("cofferdam/c/state.json").exists());
            let state: Value = serde_json::from_str(&call(&["state", "c"])).unwrap();
            assert_eq!(state["status"], "created");
            // Nothing of the container may reach the program through /proc/PID/exe: without privilege it is a sealed copy.
            let program = std::fs::read_link(format!("/proc/{}/exe", state["pid"])).unwrap();
            assert!(program.to_string_lossy().starts_with("/memfd:cofferdam"), "{program:?}");
            // Before its program runs, its first process lets nobody but root look into it, and nobody else in there either.
            let pid = state["pid"].to_string();
            let script = "id -u; hostname; cat /proc/1/maps > /dev/null 2>&1 || echo closed";
            assert_eq!(call(&["exec", "c", "sh", "-c", script]), "0\ncofferdam\nclosed\n");
            let own = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
            let joined = call(&["exec", "c", "readlink", "/proc/self/ns/mnt"]);
            assert_eq!(joined.trim(), own.to_string_lossy());
            assert!(call(&["state", "c"]).contains("created"));
            call(&["start", "c"]);
            let inside =
                call(&["exec", "c", "sh", "-c", "id -u; echo $(($$ > 1)); grep -c ^CapEff /proc/1/status"]);
            assert_eq!(inside, "0\n1\n1\n");
            assert_eq!(
                call(&["exec", "--env", "A=b", "--cwd", "/tmp", "c", "sh", "-c", "pwd; echo $A"]),
                "/tmp\nb\n"
            );
            let pids: Vec<i32> = serde_json::from_str(&call(&["ps", "--format", "json", "c"])).unwrap();
            assert_eq!(pids, [i32::try_from(state["pid"].as_i64().unwrap()).unwrap()]);
            assert!(call(&["list"]).contains("running"));
            call(&["kill", "c", "KILL"]);
            call(&["delete", "--force", "c"]);
            assert_eq!(call(&["list", "--quiet"]), "");
        }
    });
}

/// config.md, "process.terminal": in a user namespace too it belongs to the process's user, `/dev/console` as well.
#[test]
fn a_terminal_belongs_to_the_container_s_user() {
    if !needs::programs(&["script"]) {
        return;
    }
    as_user(|_, user, runtime| {
        let script = "tty; for file in /dev/pts/0 /dev/console; do stat -c %u:%t $file; done; echo typed > /dev/console";
        let (bundle, mut config) = bundle(user, runtime, "bundle", script);
        config["process"]["terminal"] = json!(true);
        let program = user.program(runtime.program()).unwrap();
        let call = format!("{} run --bundle {} c", program.display(), bundle.path().display());
        let mut cases = vec![(json!([{ "containerID": 0, "hostID": ID, "size": 1 }]), 0)];
        if needs::find_program("newuidmap").is_some() {
            cases.push((ranges(), 5));
        }
        for (ids, uid) in cases {
            let mut config = config.clone();
            map(&mut config, &ids);
            config["process"]["user"] = json!({ "uid": uid, "gid": uid });
            bundle.configure(&config).unwrap();
            let outcome = outcome(user.command("script").args(["-qec", &call, "/dev/null"])).unwrap();
            // script passes the end of its own input on as a character, which the terminal echoes somewhere.
            let said = outcome.stdout.replace("^@", "");
            let said: Vec<&str> = said.split_whitespace().collect();
            let owned = format!("{uid}:88");
            assert_eq!(said, ["/dev/pts/0", &owned, &owned, "typed"], "{outcome:?}");
        }
    });
}

#[test]
fn a_state_root_that_cannot_be_made_is_named() {
    as_user(|_, user, runtime| {
        let mut list = user.call(runtime, &["list"]).unwrap();
        let outcome = outcome(list.env("XDG_RUNTIME_DIR", "/proc/nowhere")).unwrap();
        assert_ne!(outcome.status, Some(0));
        assert!(outcome.stderr.contains("/proc/nowhere/cofferdam"), "{outcome:?}");
    });
}

/// The fault sweep of `faults.rs`, for the plan that an ordinary user's container has.
#[test]
fn every_step_of_an_ordinary_user_s_plan_failed_once_leaves_nothing() {
    as_user(|world, user, runtime| {
        let (bundle, config) = bundle(user, runtime, "bundle", "true");
        bundle.configure(&config).unwrap();
        let folder = bundle.path().to_str().unwrap().to_owned();
        let call = |arguments: &[&str]| outcome(&mut user.call(runtime, arguments).unwrap()).unwrap();
        let plan = call(&["plan", "--bundle", &folder, "c"]).stdout;
        let is_step = |line: &&str| line.trim_start().starts_with(|first: char| first.is_ascii_digit());
        let steps: Vec<&str> = plan.lines().filter(is_step).collect();
        assert!(steps.len() > 30, "{plan}");
        let watch = world.watch();
        let mut wrong = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let created = call(&["create", "--bundle", &folder, "--fail-step", &index.to_string(), "c"]);
            let failed = if created.status == Some(0) { call(&["start", "c"]) } else { created };
            if failed.status == Some(0) || !failed.stderr.contains("input/output error") {
                wrong.push(format!("{step}: {failed:?}"));
            }
            let _ = call(&["delete", "--force", "c"]);
            if std::fs::read_dir(user.runtime_folder().join("cofferdam")).unwrap().next().is_some() {
                wrong.push(format!("{step}: a state folder is left"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert_eq!(call(&["run", "--bundle", &folder, "c"]).status, Some(0));
        watch.end();
    });
}

/// Root of a namespace that somebody else made: podman's situation.
#[test]
fn root_of_a_user_namespace_needs_no_other_and_may_have_one() {
    as_user(|_, user, runtime| {
        let (bundle, config) = bundle(user, runtime, "bundle", "id -u; echo $(cat /proc/self/uid_map)");
        let mut flat = config.clone();
        flat["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != "user");
        flat["linux"].as_object_mut().unwrap().remove("uidMappings");
        flat["linux"].as_object_mut().unwrap().remove("gidMappings");
        let mut nested = config;
        map(&mut nested, &json!([{ "containerID": 0, "hostID": 0, "size": 1 }]));
        let program = user.program(runtime.program()).unwrap();
        let folder = bundle.path().to_str().unwrap();
        // With its own mounts and without: then it is root of nothing that matters.
        for (flags, config, says) in [
            ("-Urm", &flat, format!("0\n0 {ID} 1\n")),
            ("-Ur", &flat, format!("0\n0 {ID} 1\n")),
            ("-Urm", &nested, "0\n0 0 1\n".to_owned()),
        ] {
            bundle.configure(config).unwrap();
            let mut unshare = user.command("/bin/busybox");
            unshare.args(["unshare", flags, program.to_str().unwrap(), "run", "--bundle", folder, "c"]);
            let outcome = outcome(&mut unshare).unwrap();
            if flags == "-Ur" {
                assert!(outcome.stderr.contains("user namespace"), "{outcome:?}");
                continue;
            }
            assert_eq!((outcome.status, outcome.stdout), (Some(0), says), "{flags} {}", outcome.stderr);
            let mut config = config.clone();
            config["process"]["args"] = json!(["sleep", "1000"]);
            bundle.configure(&config).unwrap();
            let script = format!(
                "set -e; c={}; $c run --detach --bundle {folder} c > /dev/null; $c exec c sh -c 'echo $(($$ > 1))'; \
                 $c delete --force c",
                program.display()
            );
            let mut unshare = user.command("/bin/busybox");
            let outcome =
                cofferdam_tests::oci::outcome(unshare.args(["unshare", flags, "sh", "-c", &script])).unwrap();
            assert_eq!(
                (outcome.status, outcome.stdout.as_str()),
                (Some(0), "1\n"),
                "{flags} {}",
                outcome.stderr
            );
        }
    });
}

/// A root file system whose owner is the first of some range of ids, below a folder that is root's alone.
fn shifted(world: &World, first: u32) -> Bundle {
    fn shift(path: &Path, first: u32) {
        std::os::unix::fs::lchown(path, Some(first), Some(first)).unwrap();
        if path.symlink_metadata().unwrap().is_dir() {
            std::fs::read_dir(path).unwrap().for_each(|entry| shift(&entry.unwrap().path(), first));
        }
    }
    let bundle = Bundle::make(&world.files().join("shifted"), &["true"], |_| {}).unwrap();
    shift(&bundle.rootfs(), first);
    bundle
}

/// user_namespaces(7), and whatever belongs to one: mqueue, devpts, sysfs, clocks, kernel parameters, the terminal.
#[test]
fn root_gives_containers_user_namespaces_of_their_own_and_of_others() {
    const FIRST: u32 = 7_000_000;
    if !needs::root() || !needs::programs(&["busybox", "ip"]) {
        return;
    }
    let world = World::enter().unwrap();
    let bundle = shifted(&world, FIRST);
    let script = "echo $(cat /proc/self/uid_map); touch /made /dev/mqueue/q; stat -c %u /made; ls /sys/class/net; \
                  cat /proc/sys/net/ipv4/ip_forward; head -c 2 /dev/zero | wc -c; id -u; id -G";
    let says = format!("0 {FIRST} 65536\n0\nlo\n1\n2\n0\n0 9\n");
    let plain: Value =
        serde_json::from_slice(&std::fs::read(bundle.path().join("config.json")).unwrap()).unwrap();
    let ids = json!([{ "containerID": 0, "hostID": FIRST, "size": 65536 }]);
    let configure = |namespaces: Value| {
        let mut config = plain.clone();
        config["process"]["args"] = json!(["sh", "-c", script]);
        config["process"]["user"]["additionalGids"] = json!([9]);
        config["linux"]["namespaces"] = namespaces;
        config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
        map(&mut config, &ids);
        bundle.configure(&config).unwrap();
    };
    let mut holder =
        Command::new("/bin/busybox").args(["unshare", "-U", "-n", "sleep", "1000"]).spawn().unwrap();
    let namespace = |kind: &str| format!("/proc/{}/ns/{kind}", holder.id());
    wait_for_other(&PathBuf::from(namespace("user")));
    for file in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{file}", holder.id()), format!("0 {FIRST} 65536")).unwrap();
    }
    let own = |kinds: &[&str]| kinds.iter().map(|kind| json!({ "type": kind })).collect::<Vec<_>>();
    let mut joined = own(&["pid", "ipc", "uts", "mount", "cgroup"]);
    joined.push(json!({ "type": "user", "path": namespace("user") }));
    joined.push(json!({ "type": "network", "path": namespace("net") }));
    let runtime = Runtime::ours(&world.state());
    for (name, namespaces) in [
        ("own", own(&["user", "pid", "network", "ipc", "uts", "mount", "cgroup"])),
        ("with clocks", own(&["user", "pid", "network", "ipc", "uts", "mount", "time"])),
        ("joined", joined),
    ] {
        configure(json!(namespaces));
        let outcome = runtime.run("c", bundle.path()).unwrap();
        assert_eq!((outcome.status, &outcome.stdout), (Some(0), &says), "{name}: {}", outcome.stderr);
        assert_eq!(bundle.rootfs().join("made").metadata().unwrap().uid(), FIRST, "{name}");
        std::fs::remove_file(bundle.rootfs().join("made")).unwrap();
    }
    holder.kill().unwrap();
    holder.wait().unwrap();
}

/// cgroups(7), "Cgroups delegation": root of a user namespace that sees its cgroup writable makes others below it, and
/// raises none of its own limits.
#[test]
fn a_writable_cgroup_of_a_user_namespace_belongs_to_its_root() {
    const FIRST: u32 = 7_100_000;
    if !needs::root() || !needs::programs(&["busybox", "ip"]) {
        return;
    }
    let world = World::enter().unwrap();
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        // Beside version 1 the tree has few controllers, but all that this is about.
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), flags, None::<&str>).unwrap();
    }
    let bundle = shifted(&world, FIRST);
    let script = "cd /sys/fs/cgroup; mkdir below && echo 0 > below/cgroup.procs && test -n \"$(cat below/cgroup.procs)\" && echo moved; \
                  echo 5 > cgroup.max.depth || echo denied; stat -c %u . cgroup.procs cgroup.max.depth";
    for (options, says) in
        [(json!(["rw"]), "moved\ndenied\n0\n0\n65534\n"), (json!(["ro"]), "denied\n65534\n65534\n65534\n")]
    {
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(bundle.path().join("config.json")).unwrap()).unwrap();
        config["process"]["args"] = json!(["sh", "-c", format!("exec 2>/dev/null; {script}")]);
        let kinds = ["user", "pid", "network", "ipc", "uts", "mount", "cgroup"];
        config["linux"]["namespaces"] = json!(kinds.map(|kind| json!({ "type": kind })));
        map(&mut config, &json!([{ "containerID": 0, "hostID": FIRST, "size": 65536 }]));
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
        mounts.push(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options }));
        bundle.configure(&config).unwrap();
        let outcome = Runtime::ours(&world.state()).run("c", bundle.path()).unwrap();
        assert_eq!(
            (outcome.status, outcome.stdout.as_str()),
            (Some(0), says),
            "{options}: {}",
            outcome.stderr
        );
    }
}

/// A part of the version 2 tree that a user was given, with a session in it, as a service manager would.
struct Delegated {
    folder: PathBuf,
}

impl Delegated {
    /// Makes it, and moves this process into the session: whatever it starts is there as well.
    fn make() -> Delegated {
        let folder = PathBuf::from(format!("/sys/fs/cgroup/cofferdam-delegated-{}", std::process::id()));
        let session = folder.join("session");
        std::fs::create_dir_all(&session).unwrap();
        for place in [&folder, &session] {
            for file in [".", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
                std::os::unix::fs::chown(place.join(file), Some(ID), Some(ID)).unwrap();
            }
        }
        std::fs::write(session.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        Delegated { folder }
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        let _ = std::fs::write("/sys/fs/cgroup/cgroup.procs", std::process::id().to_string());
        for folder in [self.folder.join("session"), self.folder.clone()] {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// cgroups(7), "Cgroups delegation": where a user has cgroups of his own, his containers are in them.
#[test]
fn an_ordinary_user_s_container_is_in_a_cgroup_that_is_delegated_to_him() {
    as_user(|_, user, runtime| {
        let beside = !Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        if beside {
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), flags, None::<&str>)
                .unwrap();
        }
        let delegated = Delegated::make();
        let (bundle, mut config) = bundle(user, runtime, "bundle", "sleep 1000 & sleep 1000");
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "cgroup" }));
        config["linux"]["resources"] = json!({ "unified": { "cgroup.max.depth": "3" } });
        config["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]
        }));
        bundle.configure(&config).unwrap();
        let call = |arguments: &[&str]| {
            let outcome = outcome(&mut user.call(runtime, arguments).unwrap()).unwrap();
            assert_eq!(outcome.status, Some(0), "{arguments:?} {outcome:?}");
            outcome.stdout
        };
        call(&["run", "--detach", "--bundle", bundle.path().to_str().unwrap(), "c"]);
        let cgroup = delegated.folder.join("cofferdam-c");
        let text = |file: &str| std::fs::read_to_string(cgroup.join(file)).unwrap();
        assert_eq!(text("cgroup.max.depth"), "3\n");
        // The shell and what it starts when it comes to it.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while text("cgroup.procs").lines().count() < 2 {
            assert!(std::time::Instant::now() < deadline, "{}", text("cgroup.procs"));
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(call(&["exec", "c", "tail", "-n1", "/proc/self/cgroup"]), "0::/\n");
        call(&["pause", "c"]);
        assert!(text("cgroup.events").contains("frozen 1"));
        assert!(call(&["list"]).contains("paused"));
        call(&["resume", "c"]);
        assert!(call(&["ps", "--format", "json", "c"]).matches(',').count() >= 1);
        call(&["kill", "--all", "c", "KILL"]);
        call(&["delete", "--force", "c"]);
        assert!(!cgroup.exists());
        drop(delegated);
        if beside {
            nix::mount::umount("/sys/fs/cgroup").unwrap();
        }
    });
}

/// Version 1: the user was given a folder in some hierarchies, as a login manager for version 1 would.
struct DelegatedV1 {
    folders: Vec<PathBuf>,
}

impl DelegatedV1 {
    fn make(hierarchies: &[&str]) -> DelegatedV1 {
        let name = format!("cofferdam-delegated-{}", std::process::id());
        let folder = |hierarchy: &&str| Path::new("/sys/fs/cgroup").join(hierarchy).join(&name);
        let folders: Vec<PathBuf> = hierarchies.iter().map(folder).collect();
        for folder in &folders {
            std::fs::create_dir(folder).unwrap();
            for file in [".", "cgroup.procs", "tasks"] {
                std::os::unix::fs::chown(folder.join(file), Some(ID), Some(ID)).unwrap();
            }
            std::fs::write(folder.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        }
        DelegatedV1 { folders }
    }
}

impl Drop for DelegatedV1 {
    fn drop(&mut self) {
        for folder in &self.folders {
            let _ = std::fs::write(folder.with_file_name("cgroup.procs"), std::process::id().to_string());
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// cgroups(7), "Cgroups version 1": a folder that belongs to a user is his to make cgroups in, hierarchy by hierarchy. What
/// is limited in the others is refused by name.
#[test]
fn an_ordinary_user_s_container_is_in_the_v1_cgroups_that_are_delegated_to_him() {
    const GIVEN: [&str; 2] = ["pids", "freezer"];
    if !Path::new("/sys/fs/cgroup/pids").exists() {
        println!("skipped: no cgroup v1 hierarchies here");
        return;
    }
    as_user(|_, user, runtime| {
        let delegated = DelegatedV1::make(&GIVEN);
        let (bundle, mut config) = bundle(user, runtime, "bundle", "sleep 1000 & sleep 1000");
        let mut limit = |resources: Value| {
            config["linux"]["resources"] = resources;
            bundle.configure(&config).unwrap();
        };
        limit(json!({ "memory": { "limit": 64 << 20 } }));
        let refused = run(user, runtime, &bundle, "c");
        assert!(refused.status != Some(0) && refused.stderr.contains("memory"), "{refused:?}");
        limit(json!({ "pids": { "limit": 20 } }));
        let call = |arguments: &[&str]| {
            let outcome = outcome(&mut user.call(runtime, arguments).unwrap()).unwrap();
            assert_eq!(outcome.status, Some(0), "{arguments:?} {outcome:?}");
            outcome.stdout
        };
        call(&["run", "--detach", "--bundle", bundle.path().to_str().unwrap(), "c"]);
        let cgroups: Vec<_> = delegated.folders.iter().map(|folder| folder.join("cofferdam-c")).collect();
        assert_eq!(std::fs::read_to_string(cgroups[0].join("pids.max")).unwrap(), "20\n");
        let joined = call(&["exec", "c", "cat", "/proc/self/cgroup"]);
        for (given, cgroup) in GIVEN.iter().zip(&cgroups) {
            let inside = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
            assert!(inside.lines().count() >= 2, "{cgroup:?}: {inside}");
            let own = joined.lines().find(|line| line.contains(&format!(":{given}:"))).unwrap();
            assert!(own.ends_with("/cofferdam-c"), "{joined}");
        }
        call(&["pause", "c"]);
        assert!(call(&["list"]).contains("paused"));
        call(&["resume", "c"]);
        call(&["delete", "--force", "c"]);
        assert!(cgroups.iter().all(|cgroup| !cgroup.exists()));
    });
}

/// runc's `--rootless`: true does without cgroups that cannot be made, false does not, whoever calls.
#[test]
fn whether_cgroups_that_cannot_be_made_are_done_without_is_the_caller_s_to_say() {
    as_user(|_, user, runtime| {
        let (bundle, config) = bundle(user, runtime, "bundle", "echo ran");
        bundle.configure(&config).unwrap();
        let run = |value: &str| {
            let bundle = bundle.path().to_str().unwrap();
            let arguments = ["--rootless", value, "run", "--bundle", bundle, "c"];
            outcome(&mut user.call(runtime, &arguments).unwrap()).unwrap()
        };
        for value in ["true", "auto"] {
            let ran = run(value);
            assert!(ran.status == Some(0) && ran.stdout == "ran\n", "{value}: {ran:?}");
        }
        let refused = run("false");
        assert!(refused.status != Some(0) && refused.stderr.contains("cgroup"), "{refused:?}");
        assert_ne!(run("maybe").status, Some(0));
    });
}

/// Waits until a process has left this namespace.
fn wait_for_other(namespace: &Path) {
    let own = std::fs::read_link("/proc/self/ns/user").unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while std::fs::read_link(namespace).is_ok_and(|theirs| theirs == own) {
        assert!(std::time::Instant::now() < deadline, "the namespace was never made");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// podman as an ordinary user: conmon calls create as root of podman's namespace, podman itself exec, kill and delete.
#[test]
fn podman_of_an_ordinary_user_runs_execs_and_removes() {
    if !needs::programs(&["podman", "conmon", "newuidmap", "newgidmap", "tar"]) {
        return;
    }
    as_user(|world, user, runtime| {
        let (bundle, _) = bundle(user, runtime, "bundle", "");
        let archive = user.home().join("image.tar");
        let tar =
            Command::new("tar").arg("-C").arg(bundle.rootfs()).arg("-cf").arg(&archive).arg(".").status();
        assert!(tar.unwrap().success());
        user.give(&archive).unwrap();
        let program = user.program(runtime.program()).unwrap();
        let podman = |arguments: &[&str]| {
            let mut podman = user.command("podman");
            podman.arg("--runtime").arg(&program);
            podman.args([
                "--cgroup-manager",
                "cgroupfs",
                "--events-backend",
                "none",
                "--storage-driver",
                "vfs",
            ]);
            outcome(podman.args(arguments)).unwrap()
        };
        // Limits that podman would raise above what this machine allows.
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"];
        let imported = podman(&["import", archive.to_str().unwrap(), "image"]);
        assert_eq!(imported.status, Some(0), "{imported:?}");
        let container = |flags: &[&str], command: &[&str]| {
            let network = if flags.contains(&"--network") { &[][..] } else { &["--network", "none"] };
            podman(&[&["run"], &limits[..], network, flags, &["image"], command].concat())
        };
        for (flags, command, status, says) in [
            (&["--rm"][..], "id -u; exit 7", 7, "0\n"),
            (&["--rm", "--user", "5:6"], "id -u; id -g", 0, "5\n6\n"),
            (&["--rm", "--userns", "keep-id"], "id -u", 0, "54321\n"),
            (&["--rm", "--userns", "auto"], "id -u", 0, "0\n"),
            // The storage's folder has belonged to either of two ids by now.
            (&["--rm", "--userns", "keep-id"], "id -u", 0, "54321\n"),
            (
                &["--rm", "--read-only", "--tmpfs", "/x", "-v", "/tmp/home/bundle:/v:ro"],
                "touch /v/a /x/b; ls /x",
                0,
                "b\n",
            ),
            (&["--rm", "--network", "host", "--pid", "host"], "echo ran", 0, "ran\n"),
        ] {
            let outcome = container(flags, &["sh", "-c", command]);
            assert_eq!(
                (outcome.status, outcome.stdout.as_str()),
                (Some(status), says),
                "{flags:?}: {outcome:?}"
            );
        }
        let calls: &[(&[&str], &str)] = &[
            (&["exec", "one", "sh", "-c", "id -u; echo $(($$ > 1))"], "0\n1\n"),
            (&["exec", "-t", "one", "tty"], "/dev/pts/0\r\n"),
            (&["exec", "--user", "7", "one", "id", "-u"], "7\n"),
            (&["inspect", "--format", "{{.State.Status}}", "one"], "running\n"),
            (&["stop", "--time", "0", "one"], ""),
            (&["inspect", "--format", "{{.State.ExitCode}}", "one"], "137\n"),
            (&["start", "one"], ""),
            (&["exec", "one", "id", "-u"], "0\n"),
            (&["rm", "--force", "--time", "0", "one"], ""),
        ];
        let started = container(&["--detach", "--name", "one"], &["sleep", "1000"]);
        assert_eq!(started.status, Some(0), "{started:?}");
        for (arguments, says) in calls {
            let outcome = podman(arguments);
            assert_eq!(outcome.status, Some(0), "{arguments:?}: {outcome:?}");
            assert!(says.is_empty() || outcome.stdout == *says, "{arguments:?}: {outcome:?}");
        }
        let left = podman(&["system", "reset", "--force"]);
        assert_eq!(left.status, Some(0), "{left:?}");
        // podman leaves its locks behind, and a process that holds its namespace.
        let _ = std::fs::remove_file(format!("/dev/shm/libpod_rootless_lock_{ID}"));
        let pause = user.runtime_folder().join("libpod/tmp/pause.pid");
        if let Ok(pid) = std::fs::read_to_string(pause) {
            let _ = user.command("/bin/busybox").args(["kill", "-9", pid.trim()]).status();
        }
        cofferdam_tests::process::reap();
        let _ = world;
    });
}
