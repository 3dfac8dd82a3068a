//! The fault sweep: every step of every golden plan fails once; the error names the step, and the host is as before.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use cofferdam_tests::bundle::Bundle;
use cofferdam_tests::needs;
use cofferdam_tests::oci::Runtime;
use cofferdam_tests::world::{World, succeed};
use serde_json::{Value, json};

/// What the injected error number (EIO) is in words.
const INJECTED: &str = "input/output error";

#[test]
fn default() {
    sweep("default");
}

#[test]
fn fields() {
    sweep("fields");
}

#[test]
fn hooks_and_bind() {
    sweep("hooks-and-bind");
}

#[test]
fn limits() {
    sweep("limits");
}

#[test]
fn joined_network() {
    sweep("overlay-and-joined-network");
}

#[test]
fn supervised() {
    sweep("supervised");
}

#[test]
fn terminal() {
    sweep("terminal");
}

#[test]
fn user_namespace() {
    sweep("user-namespace");
}

#[test]
fn every_golden_case_is_swept_or_is_a_refusal() {
    let swept = [
        "default",
        "fields",
        "hooks-and-bind",
        "limits",
        "overlay-and-joined-network",
        "supervised",
        "terminal",
        "user-namespace",
        // An ordinary user's: for root it is another plan.
        "rootless",
        // A service manager's: one that fails, in every manner, is in oci_systemd.
        "limits-in-systemd-scope",
        // Takes resctrl, which few hosts have; executor/runtime/tests/resctrl.rs has a folder that plays it.
        "intel-rdt",
        // A handful of steps, which are all in the others too.
        "without-a-mount-namespace",
        "without-a-process",
    ];
    for entry in std::fs::read_dir(golden()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let is_case = path.extension().is_some_and(|extension| extension == "json");
        assert!(
            !is_case || name.contains("refused-") || swept.contains(&name.as_str()),
            "{name} is not swept"
        );
    }
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn sweep(case: &str) {
    if !needs::root() || !needs::programs(&["busybox", "ip"]) {
        return;
    }
    let world = World::enter().unwrap();
    let runtime = Runtime::ours(&world.state());
    let bundle = Bundle::make(&world.files().join(case), &["true"], |_| {}).unwrap();
    bundle.configure(&adapted(case, &world, &bundle)).unwrap();
    let console = world.files().join("console");
    // Connections are taken by the kernel; nobody has to answer.
    let _listener = UnixListener::bind(&console).unwrap();
    let steps = steps(&runtime, &bundle, (case == "terminal").then_some(&console.to_string_lossy()));
    assert!(steps.len() > 30, "{steps:?}");
    // Folders that the first container makes and all share are made before the census.
    assert_eq!(launch(&runtime, &bundle, &console, None), Ok(()), "{case} does not run at all");
    let watch = world.watch();
    let mut wrong = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        match launch(&runtime, &bundle, &console, Some(index)) {
            Ok(()) => wrong.push(format!("{step}: no error")),
            Err(said) if says_what_failed(&said, index, step) => {}
            Err(said) => wrong.push(format!("{step}: {said}")),
        }
        for difference in watch.settle() {
            wrong.push(format!("{step}: {difference}"));
        }
        if wrong.len() > 20 {
            break;
        }
    }
    assert!(wrong.is_empty(), "{} of {} steps:\n{}", wrong.len(), steps.len(), wrong.join("\n"));
    assert_eq!(launch(&runtime, &bundle, &console, None), Ok(()), "{case} does not run after the sweep");
    watch.end();
}

/// The steps of a bundle's plan as `cofferdam-oci plan` prints them: `12 enter    set-hostname x  # /hostname`.
fn steps(runtime: &Runtime, bundle: &Bundle, console: Option<&str>) -> Vec<String> {
    let bundle = bundle.path().to_string_lossy().into_owned();
    let mut plan = vec!["plan", "--bundle", &bundle];
    if let Some(console) = console {
        plan.extend(["--console-socket", console]);
    }
    plan.push("faulty");
    let plan = runtime.succeed(&plan).unwrap().stdout;
    plan.lines()
        .filter(|line| line.trim_start().starts_with(|first: char| first.is_ascii_digit()))
        .map(str::to_owned)
        .collect()
}

/// Creates, starts and deletes a container; the first error is returned, after everything was cleaned up.
fn launch(runtime: &Runtime, bundle: &Bundle, console: &Path, fault: Option<usize>) -> Result<(), String> {
    let config = std::fs::read(bundle.path().join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let (path, console) = (bundle.path().to_string_lossy(), console.to_string_lossy());
    let step = fault.map(|step| step.to_string());
    let mut create = vec!["create", "--bundle", &path];
    if config["process"]["terminal"] == true {
        create.extend(["--console-socket", &console]);
    }
    if let Some(step) = &step {
        create.extend(["--fail-step", step]);
    }
    create.push("faulty");
    let outcome = runtime.call(&create).unwrap();
    if outcome.status != Some(0) {
        return Err(outcome.stderr);
    }
    let started = runtime.call(&["start", "faulty"]).unwrap();
    let deleted = runtime.call(&["delete", "--force", "faulty"]).unwrap();
    if started.status != Some(0) {
        return Err(started.stderr);
    }
    if deleted.status == Some(0) { Ok(()) } else { Err(deleted.stderr) }
}

/// An error names the step's number, its operation and the errno in words.
fn says_what_failed(said: &str, index: usize, step: &str) -> bool {
    let operation = step.split_whitespace().nth(2).unwrap_or_default();
    if operation == "exec" {
        // Engines look for runc's words when the command cannot be executed: they take their exit status from them.
        return said.contains("exec /bin/true: ") && said.contains(INJECTED);
    }
    said.contains(&format!("step {index}")) && said.contains(operation) && said.contains(INJECTED)
}

/// A golden case's configuration, with what it takes from its host put where this world has it.
fn adapted(case: &str, world: &World, bundle: &Bundle) -> Value {
    let text = std::fs::read(golden().join(case).with_extension("json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    config["process"]["args"] = json!(["/bin/true"]);
    config["process"]["env"] = json!(["PATH=/bin"]);
    config["linux"]["cgroupsPath"] = json!(format!("/cofferdam-fault-{}/{case}", std::process::id()));
    leave_out_what_hosts_lack(&mut config);
    for mount in config["mounts"].as_array_mut().unwrap() {
        if mount["type"] == "bind"
            || mount["options"].as_array().is_some_and(|all| all.contains(&json!("bind")))
        {
            mount["source"] = json!(world.root());
        }
    }
    if let Some(hooks) = config["hooks"].as_object_mut() {
        for hook in hooks.values_mut().flat_map(|hooks| hooks.as_array_mut().unwrap()) {
            // It is there on the host and in the container, wherever the hook runs.
            hook["path"] = json!("/bin/true");
            hook["args"] = json!(["true"]);
        }
    }
    if config["linux"]["seccomp"]["listenerPath"].is_string() {
        // The supervisor's socket is the console's: connections to both are taken and never read.
        config["linux"]["seccomp"]["listenerPath"] = json!(world.files().join("console"));
    }
    for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace.get("path").is_some() {
            let pinned = world.files().join("network");
            std::fs::write(&pinned, "").unwrap();
            let own = "/proc/thread-self/ns/net";
            succeed(std::process::Command::new("mount").args(["--bind", own]).arg(&pinned)).unwrap();
            namespace["path"] = json!(pinned);
        }
    }
    if let Some(root) = config["linux"]["uidMappings"][0]["hostID"].as_u64() {
        // What the image lacks, its own root makes, who needs a root file system that is his.
        let root = u32::try_from(root).unwrap();
        std::os::unix::fs::chown(bundle.rootfs(), Some(root), Some(root)).unwrap();
        // Nobody makes devices in a user namespace: they are the host's, if it has them.
        if let Some(devices) = config["linux"]["devices"].as_array_mut() {
            devices.retain(|device| Path::new(device["path"].as_str().unwrap()).exists());
        }
        // Root in the container owns nothing of the host's, so its files must be readable by others.
        for folder in [world.folder(), &world.files(), bundle.path(), &bundle.rootfs()] {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    config
}

/// Golden plans are those of a host that has everything.
fn leave_out_what_hosts_lack(config: &mut Value) {
    let process = config["process"].as_object_mut().unwrap();
    // Security modules, and a scheduling class that a busy host refuses to promise.
    process.retain(|name, _| !["apparmorProfile", "selinuxLabel", "scheduler"].contains(&name.as_str()));
    let linux = config["linux"].as_object_mut().unwrap();
    linux.retain(|name, _| !["mountLabel", "netDevices"].contains(&name.as_str()));
    // Links of the host that would have to be there.
    let leads_through_a_link =
        |mount: &Value| mount["destination"].as_str().is_some_and(|at| at.ends_with("link"));
    config["mounts"].as_array_mut().unwrap().retain(|mount| !leads_through_a_link(mount));
}
