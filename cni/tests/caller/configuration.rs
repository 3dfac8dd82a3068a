//! Configuration directories: what is loaded, what is reported, what stays in use.

use std::path::Path;

use cofferdam_cni::{ConfigError, NetworkList, NetworkName, Networks};

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn names(networks: &Networks) -> Vec<&str> {
    networks.iter().map(|list| list.name.as_str()).collect()
}

fn kinds(list: &NetworkList) -> Vec<&str> {
    list.plugins.iter().map(|plugin| plugin.kind.as_str()).collect()
}

fn of(name: &str) -> String {
    format!(r#"{{"name":"{name}","cniVersion":"1.0.0","plugins":[{{"type":"x"}}]}}"#)
}

fn refused(text: &str, folder: Option<&Path>) -> ConfigError {
    NetworkList::parse(text, folder).unwrap_err()
}

#[test]
fn c1_a_broken_file_costs_no_other_network_wherever_it_sorts() {
    for broken in ["00-broken.conflist", "15-broken.conflist", "99-broken.conflist"] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), broken, "{\"name\": \"x\",\n   oops}");
        write(dir.path(), "10-a.conflist", &of("a"));
        write(dir.path(), "20-b.conflist", &of("b"));
        let networks = Networks::load(&[dir.path()]);
        assert_eq!(names(&networks), ["a", "b"], "{broken}");
        let [problem] = networks.problems() else { panic!("{:?}", networks.problems()) };
        let text = problem.to_string();
        assert!(text.contains(broken) && text.contains("line 2, column 4"), "{text}");
    }
}

#[test]
fn c2_single_plugin_files_are_lists_of_one_with_the_same_name_and_version() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.conf", r#"{"name":"a","cniVersion":"0.4.0","type":"loopback","n":1.0}"#);
    write(dir.path(), "b.json", r#"{"name":"b","type":"bridge"}"#);
    let networks = Networks::load(&[dir.path()]);
    assert_eq!(names(&networks), ["a", "b"]);
    let (a, b) = (networks.get("a").unwrap(), networks.get("b").unwrap());
    assert_eq!((a.version.to_string().as_str(), kinds(a)), ("0.4.0", vec!["loopback"]));
    assert_eq!((b.version.to_string().as_str(), kinds(b)), ("0.1.0", vec!["bridge"]));
    assert!(networks.problems().is_empty(), "{:?}", networks.problems());
}

#[test]
fn c3_drop_ins_follow_by_name_unless_only_inlined_plugins_count() {
    let dir = tempfile::tempdir().unwrap();
    for (file, text) in [
        ("n/20.conf", r#"{"type":"two"}"#),
        ("n/10.conf", r#"{"type":"one"}"#),
        ("n/30.json", "junk"),
        ("n/sub.conf/40.conf", "junk"),
        ("m/10.conf", "junk"),
    ] {
        write(dir.path(), file, text);
    }
    let of = |flag: &str| {
        write(dir.path(), "n.conflist", &format!(r#"{{"name":"n",{flag}"plugins":[{{"type":"x"}}]}}"#));
        let networks = Networks::load(&[dir.path()]);
        kinds(networks.get("n").unwrap()).join(" ")
    };
    assert_eq!(of(""), "x one two");
    assert_eq!(of(r#""loadOnlyInlinedPlugins":false,"#), "x one two");
    assert_eq!(of(r#""loadOnlyInlinedPlugins":true,"#), "x");
    assert_eq!(of(r#""loadOnlyInlinedPlugins":"True","#), "x");
}

#[test]
fn c4_each_way_to_have_no_plugins_is_an_error_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "full/10.conf", r#"{"type":"one"}"#);
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let full = NetworkList::parse(r#"{"name":"full"}"#, Some(dir.path())).unwrap();
    assert_eq!(kinds(&full), ["one"]);
    for name in ["empty", "missing"] {
        let error = refused(&format!(r#"{{"name":"{name}"}}"#), Some(dir.path()));
        assert!(matches!(error, ConfigError::NoPlugins { .. }), "{error}");
    }
    let error = refused(r#"{"name":"full","plugins":[]}"#, Some(dir.path()));
    assert!(matches!(error, ConfigError::PluginsEmpty), "{error}");
    let error = refused(r#"{"name":"full","loadOnlyInlinedPlugins":true}"#, Some(dir.path()));
    assert!(matches!(error, ConfigError::OnlyInlinedButNone), "{error}");
}

#[test]
fn c5_a_broken_drop_in_costs_its_network_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.conflist", &of("a"));
    write(dir.path(), "b.conflist", &of("b"));
    write(dir.path(), "a/firewall.conf", "{");
    let networks = Networks::load(&[dir.path()]);
    assert_eq!(names(&networks), ["b"]);
    assert!(networks.problems()[0].to_string().contains("a/firewall.conf"), "{:?}", networks.problems());
}

#[test]
fn c6_names_that_could_leave_a_directory_are_refused_at_load() {
    for name in ["../x", "a/b", "", &"x".repeat(201)] {
        let error = refused(&of(name), None);
        assert!(matches!(error, ConfigError::Name(_)), "{name:?}: {error}");
        assert!(NetworkName::parse(name).is_err());
    }
}

#[test]
fn c7_of_two_networks_with_one_name_the_first_file_counts_and_both_are_named() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(one.path(), "20.conf", r#"{"name":"n","type":"second"}"#);
    write(one.path(), "10.conf", r#"{"name":"n","type":"first"}"#);
    write(two.path(), "00.conf", r#"{"name":"n","type":"third"}"#);
    let networks = Networks::load(&[one.path(), two.path()]);
    assert_eq!(kinds(networks.get("n").unwrap()), ["first"]);
    let problems: Vec<_> = networks.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 2);
    assert!(problems[0].contains("20.conf") && problems[0].contains("10.conf"), "{problems:?}");
}

#[test]
fn c8_what_a_file_said_stays_in_use_while_it_is_broken_and_changes_count_at_once() {
    let (dir, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = dir.path().join("net.d");
    let load = || Networks::load_keeping(&[&folder], kept.path());
    let kind = |networks: &Networks| networks.get("n").map(|list| kinds(list).join(" "));
    assert!(load().iter().next().is_none());
    let text = r#"{"name":"n","cniVersions":["1.0.0","0.4.0"],"plugins":[{"type":"old","n":1e400}]}"#;
    write(&folder, "n.conflist", text);
    assert_eq!(kind(&load()).as_deref(), Some("old"));
    let (versions, config) = {
        let networks = load();
        let list = networks.get("n").unwrap();
        (list.versions.clone(), list.to_text())
    };
    // At every point of being written.
    let new = text.replace("old", "new");
    for length in 0..new.len() {
        write(&folder, "n.conflist", &new[..length]);
        let networks = load();
        let list = networks.get("n").unwrap();
        assert_eq!((kinds(list), &list.versions, list.to_text()), (vec!["old"], &versions, config.clone()));
        assert!(networks.problems()[0].to_string().contains("what it said before is used"));
    }
    write(&folder, "n.conflist", &new);
    assert_eq!(kind(&load()).as_deref(), Some("new"));
    // A directory that goes and comes is noticed, and what is gone is not remembered.
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(kind(&load()), None);
    write(&folder, "n.conflist", "{");
    assert_eq!(kind(&load()), None);
    write(&folder, "n.conflist", text);
    assert_eq!(kind(&load()).as_deref(), Some("old"));
}

#[test]
fn c9_the_highest_common_version_is_chosen_and_none_is_refused_with_both_sets() {
    let list = |versions: &str| format!(r#"{{"name":"n",{versions},"plugins":[{{"type":"x"}}]}}"#);
    let chosen = |versions: &str| NetworkList::parse(&list(versions), None).unwrap().version.to_string();
    assert_eq!(chosen(r#""cniVersions":["0.4.0","1.0.0","9.0.0"]"#), "1.0.0");
    assert_eq!(chosen(r#""cniVersion":"0.4.0","cniVersions":["0.3.1"]"#), "0.4.0");
    for only in [r#""cniVersion":"9.0.0""#, r#""cniVersions":["9.0.0"]"#] {
        let text = refused(&list(only), None).to_string();
        assert!(text.contains("9.0.0") && text.contains("0.1.0") && text.contains("1.1.0"), "{text}");
    }
}

#[test]
fn c10_a_key_in_the_wrong_case_is_asked_about() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        "n.conflist",
        r#"{"name":"n","DisableCheck":true,"plugins":[{"type":"x","Capabilities":{},"custom":1}]}"#,
    );
    let networks = Networks::load(&[dir.path()]);
    let problems: Vec<_> = networks.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains(r#"did you mean "disableCheck"?"#), "{problems:?}");
    assert!(problems[1].contains(r#"did you mean "capabilities"?"#), "{problems:?}");
    assert!(!networks.get("n").unwrap().disable_check);
}

#[test]
fn c11_of_a_key_that_occurs_twice_the_last_value_counts_and_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "n.conf", r#"{"name":"n","type":"first","type":"last","mtu":1,"mtu":2}"#);
    let networks = Networks::load(&[dir.path()]);
    let plugin = &networks.get("n").unwrap().plugins[0];
    assert_eq!((plugin.kind.as_str(), plugin.object.get::<u32>("mtu").unwrap()), ("last", Some(2)));
    let problems: Vec<_> = networks.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains(r#""type" occurs more than once"#), "{problems:?}");
}
