//! Networks of tasks: several at once, made and removed, connected and disconnected while a task runs.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use cofferdam_tests::world::World;
use cofferdam_tests::{needs, pace};
use serde_json::Value;

use crate::host::{call, settle, settled_world, succeed};

/// Makes and removes a network, so that what the first one leaves for good is there before a census.
fn warm_up(world: &World) {
    succeed(world, &["network", "create", "first"]);
    succeed(world, &["network", "rm", "first"]);
}

fn hosts(world: &World, task: &str) -> String {
    succeed(world, &["exec", task, "cat", "/etc/hosts"])
}

/// The interfaces that a task sees.
fn interfaces(world: &World, task: &str) -> Vec<String> {
    let text = succeed(world, &["exec", task, "cat", "/proc/net/dev"]);
    let names = text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    names.filter(|name| name != "lo").collect()
}

#[test]
fn a_task_is_on_several_networks_with_the_addresses_names_and_ports_that_it_asked_for() {
    let Some(world) = settled_world() else { return };
    warm_up(&world);
    let watch = world.watch();
    succeed(&world, &["network", "create", "--subnet", "10.77.0.0/24", "blue"]);
    let limited = needs::programs(&["tc"]);
    let rate = if limited { ",ingress_rate=8m" } else { "" };
    let blue =
        format!("blue:ip=10.77.0.9,mac=02:00:00:00:00:77,alias=db,alias=store,interface_name=blue0{rate}");
    let ports = "127.0.0.1:18090-18091:9000-9001";
    let words = ["run", "-d", "--name", "web", "--network", "bridge", "--network", &blue, "-p", ports];
    let rest = ["--dns", "192.0.2.53", "--dns-search", "own.example", "demo", "listen", "9000"];
    succeed(&world, &[&words[..], &rest].concat());
    let reached = std::net::TcpStream::connect("127.0.0.1:18090");
    assert!(reached.is_ok(), "{reached:?}");
    drop(reached);

    let hosts = hosts(&world, "web");
    let line = hosts.lines().find(|line| line.starts_with("10.77.0.9\t")).unwrap();
    assert!(line.ends_with(" db store web"), "{line}");
    assert_eq!(interfaces(&world, "web").len(), 2);
    let mac = succeed(&world, &["exec", "web", "cat", "/sys/class/net/blue0/address"]);
    assert_eq!(mac, "02:00:00:00:00:77");
    let resolver = succeed(&world, &["exec", "web", "cat", "/etc/resolv.conf"]);
    assert!(
        resolver.starts_with("nameserver 192.0.2.53\n") && resolver.contains("search own.example"),
        "{resolver}"
    );
    if limited {
        let queues = std::process::Command::new("tc").args(["qdisc", "show"]).output().unwrap();
        assert!(String::from_utf8_lossy(&queues.stdout).contains("tbf"), "{queues:?}");
    }
    let stats = succeed(&world, &["stats", "--no-stream", "--format", "json", "web"]);
    let stats: Value = serde_json::from_str(&stats).unwrap();
    let counted: Vec<_> = stats["stats"]["networks"].as_array().unwrap().iter().collect();
    let mut names: Vec<_> = counted.iter().map(|interface| interface["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["blue0", "eth0"]);
    assert!(counted.iter().any(|interface| interface["rx_bytes"].as_u64().unwrap() > 0), "{stats}");

    // What is taken is refused, with a reason, and leaves nothing.
    let taken = call(&world, &["run", "--rm", "--network", "blue:ip=10.77.0.9", "demo", "true"]);
    assert_eq!(taken.code, Some(125), "{taken:?}");
    assert!(taken.stderr.contains("10.77.0.9"), "{taken:?}");
    for (network, problem) in [
        ("blue:speed=1", "no option"),
        ("blue:ip=x", "no IP address"),
        ("blue:interface_name=a/b", "not valid"),
        ("blue:mac=01:00:00:00:00:01", "group"),
    ] {
        let refused = call(&world, &["run", "--rm", "--network", network, "demo", "true"]);
        assert_eq!(refused.code, Some(125), "{network}: {refused:?}");
        assert!(refused.stderr.contains(problem), "{network}: {refused:?}");
    }
    succeed(&world, &["rm", "-f", "web"]);
    succeed(&world, &["network", "rm", "blue"]);
    settle(&watch);
}

#[test]
fn a_running_task_is_connected_and_disconnected() {
    let Some(world) = settled_world() else { return };
    warm_up(&world);
    let watch = world.watch();
    succeed(&world, &["run", "-d", "--name", "c", "demo", "sleep", "1000"]);
    assert_eq!(succeed(&world, &["network", "create", "red"]), "red");
    let before = hosts(&world, "c");
    succeed(&world, &["network", "connect", "--alias", "other", "red", "c"]);
    assert_eq!(interfaces(&world, "c"), ["eth0", "eth1"]);
    let inspected: Value = serde_json::from_str(&succeed(&world, &["network", "inspect", "red"])).unwrap();
    let [attachment] = &inspected[0]["attachments"].as_array().unwrap()[..] else { panic!("{inspected}") };
    let address = attachment["addresses"][0].as_str().unwrap();
    assert_eq!(attachment["interface"], "eth1");
    assert_eq!(inspected[0]["not_ready"], Value::Null);
    let now = hosts(&world, "c");
    let line = now.lines().find(|line| line.starts_with(&format!("{address}\t"))).unwrap();
    assert!(line.ends_with(" other c"), "{line}");
    let known: Value = serde_json::from_str(&succeed(&world, &["inspect", "c"])).unwrap();
    assert!(known[0]["spec"]["network"].to_string().contains("\"red\""), "{}", known[0]["spec"]["network"]);

    for (words, problem) in [
        (&["network", "connect", "red", "c"][..], "already"),
        (&["network", "connect", "nowhere", "c"], "no network"),
        (&["network", "disconnect", "nowhere", "c"], "not connected"),
        (&["network", "rm", "red"], "in use"),
        (&["network", "rm", "bridge"], "not ours"),
        (&["network", "create", "red"], "already"),
        (&["network", "create", "--subnet", "10.88.0.0/24", "x"], "overlaps"),
        (&["network", "create", "../x"], "not valid"),
    ] {
        let refused = call(&world, words);
        assert_eq!(refused.code, Some(125), "{words:?}: {refused:?}");
        assert!(refused.stderr.contains(problem), "{words:?}: {refused:?}");
    }
    assert_eq!(succeed(&world, &["network", "prune"]), "");
    succeed(&world, &["network", "disconnect", "red", "c"]);
    assert_eq!(interfaces(&world, "c"), ["eth0"]);
    assert_eq!(hosts(&world, "c"), before);
    assert_eq!(succeed(&world, &["network", "prune"]), "red");
    // What a task is connected to at its end goes with it.
    succeed(&world, &["network", "create", "red"]);
    succeed(&world, &["network", "connect", "red:interface_name=late0", "c"]);
    assert_eq!(interfaces(&world, "c"), ["eth0", "late0"]);
    succeed(&world, &["rm", "-f", "c"]);
    succeed(&world, &["network", "rm", "red"]);
    settle(&watch);
}

#[test]
fn tasks_of_a_network_find_each_other_by_name_and_alias_as_they_come_and_go() {
    let Some(world) = settled_world() else { return };
    warm_up(&world);
    let watch = world.watch();
    succeed(&world, &["network", "create", "--subnet", "10.79.0.0/24", "names"]);
    let one = succeed(
        &world,
        &["run", "-d", "--name", "one", "--network", "names:alias=db", "demo", "sleep", "1000"],
    );
    let alone = hosts(&world, "one");
    let run = |name: &str, network: &str| {
        succeed(&world, &["run", "-d", "--name", name, "--network", network, "demo", "sleep", "1000"])
    };
    run("two", "names");
    run("far", "bridge");
    // The address of a task is what another finds by each of its names.
    let found = |task: &str, name: &str| {
        let hosts = hosts(&world, task);
        let line = hosts.lines().find(|line| line.split_whitespace().skip(1).any(|word| word == name));
        line.map(|line| line.split_whitespace().next().unwrap().to_owned())
    };
    let address = found("one", "one").unwrap();
    assert!(address.starts_with("10.79.0."), "{address}");
    for name in ["one", "db", &one[..12]] {
        assert_eq!(found("two", name).as_ref(), Some(&address), "{name}: {}", hosts(&world, "two"));
    }
    let both = hosts(&world, "one");
    assert!(found("one", "two").is_some() && found("one", "far").is_none(), "{both}");
    // The built-in network gives no names.
    assert!(found("far", "one").is_none());

    succeed(&world, &["network", "connect", "--alias", "late", "names", "far"]);
    assert!(found("one", "late").is_some() && found("two", "far").is_some());
    assert_eq!(found("far", "db").as_ref(), Some(&address));
    let inspected: Value = serde_json::from_str(&succeed(&world, &["network", "inspect", "names"])).unwrap();
    let all = inspected[0]["attachments"].as_array().unwrap();
    let far = all.iter().find(|attachment| attachment["name"] == "far").unwrap();
    assert_eq!(far["aliases"], serde_json::json!(["late", "far"]));
    assert_eq!(far["mac"].as_str().unwrap().len(), 17);
    succeed(&world, &["network", "disconnect", "names", "far"]);
    assert_eq!(hosts(&world, "one"), both);
    assert!(found("far", "db").is_none());
    succeed(&world, &["rm", "-f", "two"]);
    assert_eq!(hosts(&world, "one"), alone);
    // Another of the same name is found at its own address.
    run("two", "names:ip=10.79.0.99");
    assert_eq!(found("one", "two").as_deref(), Some("10.79.0.99"));
    ["one", "two", "far"].iter().for_each(|task| drop(succeed(&world, &["rm", "-f", task])));
    succeed(&world, &["network", "rm", "names"]);
    settle(&watch);
}

/// What a task does to the files that it has from us is its own affair.
#[test]
fn a_task_that_runs_its_own_hosts_file_as_a_program_keeps_nobody_from_its_network() {
    let Some(world) = settled_world() else { return };
    warm_up(&world);
    let watch = world.watch();
    succeed(&world, &["network", "create", "--subnet", "10.79.0.0/24", "shared"]);
    let run = |name: &str| {
        succeed(&world, &["run", "-d", "--name", name, "--network", "shared", "demo", "sleep", "1000"])
    };
    let evil = run("evil");
    let path = world.state().join("tasks").join(evil.trim()).join("etc/hosts");
    std::fs::copy("/bin/sleep", &path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut program = Command::new(&path).arg("1000").spawn().unwrap();
    let busy = std::fs::OpenOptions::new().write(true).open(&path).unwrap_err();
    assert_eq!(busy.kind(), std::io::ErrorKind::ExecutableFileBusy);
    run("good");
    assert!(hosts(&world, "good").contains("evil"), "{}", hosts(&world, "good"));
    program.kill().unwrap();
    program.wait().unwrap();
    ["evil", "good"].iter().for_each(|task| drop(succeed(&world, &["rm", "-f", task])));
    succeed(&world, &["network", "rm", "shared"]);
    settle(&watch);
}

#[test]
fn ports_lead_to_the_network_that_can_lead_them_and_come_back_with_it() {
    let Some(world) = settled_world() else { return };
    warm_up(&world);
    let watch = world.watch();
    succeed(&world, &["network", "create", "--subnet", "10.81.0.0/24", "plain"]);
    let file = world.files().join("plain.conflist");
    let mut plain: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    plain["plugins"].as_array_mut().unwrap().retain(|plugin| plugin["type"] != "portmap");
    std::fs::write(&file, plain.to_string()).unwrap();
    succeed(&world, &["network", "create", "--subnet", "10.82.0.0/24", "leading"]);
    let networks = ["--network", "plain", "--network", "leading", "-p", "127.0.0.1:18095:9000"];
    let listen = ["demo", "listen", "9000"];
    succeed(&world, &[&["run", "-d", "--name", "web"][..], &networks, &listen].concat());
    let answers = || std::net::TcpStream::connect("127.0.0.1:18095").is_ok();
    // Its program may need a moment to listen.
    let deadline = std::time::Instant::now() + pace::limit(std::time::Duration::from_secs(60));
    while !answers() {
        assert!(std::time::Instant::now() < deadline, "nobody answers");
        std::thread::yield_now();
    }
    let inspected: Value =
        serde_json::from_str(&succeed(&world, &["network", "inspect", "leading"])).unwrap();
    let ports = inspected[0]["attachments"][0]["ports"].to_string();
    assert!(ports.contains("18095") && ports.contains("tcp"), "{inspected}");
    succeed(&world, &["network", "disconnect", "leading", "web"]);
    assert!(!answers());
    succeed(&world, &["network", "connect", "leading", "web"]);
    assert!(answers());
    succeed(&world, &["rm", "-f", "web"]);
    succeed(&world, &["network", "rm", "leading", "plain"]);
    settle(&watch);
}

#[test]
fn c8_a_configuration_that_changes_counts_for_the_next_task_and_one_that_breaks_does_not() {
    let Some(world) = settled_world() else { return };
    succeed(&world, &["network", "create", "--subnet", "10.78.0.0/24", "green"]);
    let file = world.files().join("green.conflist");
    let text = std::fs::read_to_string(&file).unwrap();
    let address = || {
        let task = ["run", "--rm", "--network", "green", "demo", "cat", "/etc/hosts"];
        succeed(&world, &task).lines().last().unwrap().split_whitespace().next().unwrap().to_owned()
    };
    assert!(address().starts_with("10.78.0."));
    std::fs::write(&file, &text[..text.len() / 2]).unwrap();
    assert!(address().starts_with("10.78.0."));
    let told = call(&world, &["network", "reload"]);
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.stdout.contains("green\n") && told.stderr.contains("green.conflist: line"), "{told:?}");
    std::fs::write(&file, text.replace("10.78.0", "10.79.0")).unwrap();
    assert_eq!(call(&world, &["network", "reload"]).code, Some(0));
    // The bridge keeps the address of the network that it was; another one would be another bridge.
    std::fs::write(&file, text.replace("10.78.0", "10.79.0").replace("cofferdam1", "cofferdam7")).unwrap();
    assert!(address().starts_with("10.79.0."));
    succeed(&world, &["network", "rm", "green"]);
    let gone = call(&world, &["run", "--rm", "--network", "green", "demo", "true"]);
    assert!(gone.code == Some(125) && gone.stderr.contains("no network"), "{gone:?}");
}
