//! kill -9 of the caller or of a plugin at every point of a chain: the next DEL or GC cleans what is left.
//!
//! Plugins here make a file for each attachment at ADD and remove it at DEL. At the point that a test names they kill the
//! process that called them, or themselves.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use cofferdam_cni::{NetnsFate, NetworkList, Valid};
use cofferdam_linux::namespace;
use cofferdam_linux::netlink::Socket;
use cofferdam_tests::killed::{Moments, kill_after};
use cofferdam_tests::{needs, pace};

use crate::bed::{Bed, attachment, id, list, lives, three, wait_until};

const PLUGINS: [&str; 3] = ["a", "b", "c"];

/// A bed of plugins that make and remove files, and kill at the point that a file names.
fn mortal() -> Bed {
    let bed = Bed::new();
    std::fs::create_dir(bed.folder.join("made")).unwrap();
    let d = bed.folder.display();
    for name in PLUGINS {
        bed.plugin(
            name,
            &format!(
                r#"point() {{
  [ "$(cat {d}/point 2>/dev/null)" = "{name} $CNI_COMMAND $1" ] || return 0
  rm {d}/point
  case "$(cat {d}/victim)" in caller) kill -9 $PPID; sleep 5; echo late > {d}/late;; *) kill -9 $$;; esac
}}
point before
case $CNI_COMMAND in
ADD) : > {d}/made/$CNI_CONTAINERID.{name};;
DEL) rm -f {d}/made/$CNI_CONTAINERID.{name};;
esac
point after"#
            ),
        );
    }
    bed
}

fn aim(bed: &Bed, victim: &str, point: &str) {
    std::fs::write(bed.folder.join("victim"), victim).unwrap();
    std::fs::write(bed.folder.join("point"), point).unwrap();
}

fn made(bed: &Bed) -> usize {
    std::fs::read_dir(bed.folder.join("made")).unwrap().count()
}

fn assert_clean(bed: &Bed, what: &str) {
    assert_eq!(made(bed), 0, "{what}");
    assert!(!bed.has_records(), "{what}");
    assert!(!bed.folder.join("late").exists(), "{what}: a plugin outlived its caller");
    let state = bed.folder.join("state");
    for folder in ["results", "locks"] {
        let left: Vec<_> = std::fs::read_dir(state.join(folder)).unwrap().flatten().collect();
        let left: Vec<_> = left.iter().map(|entry| entry.file_name().into_string().unwrap()).collect();
        // A network's lock is shared, so nobody can know that he is the last.
        assert!(left.iter().all(|name| name == "network-net"), "{what}: {left:?}");
    }
}

fn points() -> impl Iterator<Item = (String, &'static str)> {
    ["ADD", "DEL"].into_iter().flat_map(|verb| {
        PLUGINS.into_iter().flat_map(move |plugin| {
            ["before", "after"].map(|moment| (format!("{plugin} {verb} {moment}"), verb))
        })
    })
}

#[test]
fn v3_a_caller_that_is_killed_at_any_point_of_a_chain_leaves_what_the_next_del_or_gc_cleans() {
    for (point, verb) in points() {
        for cleaner in ["detach", "detach all", "gc", "attach again"] {
            let bed = mortal();
            if verb == "DEL" {
                bed.caller.attach(&three(), &attachment()).unwrap();
            }
            aim(&bed, "caller", &point);
            let status = bed.start(if verb == "ADD" { "attach" } else { "detach" }).wait().unwrap();
            assert!(!status.success(), "{point}");
            // Whatever was made is on record.
            assert!(made(&bed) == 0 || bed.has_records(), "{point}");
            match cleaner {
                "detach" => bed.detach().unwrap(),
                "detach all" => bed.caller.detach_all(&id("one"), NetnsFate::Stays).unwrap(),
                "gc" => bed.caller.gc(&three(), &Valid::Nothing).unwrap(),
                _ if verb == "ADD" => {
                    bed.caller.attach(&three(), &attachment()).unwrap();
                    bed.check().unwrap();
                    bed.detach().unwrap();
                }
                _ => bed.detach().unwrap(),
            }
            assert_clean(&bed, &format!("{point}, {cleaner}"));
        }
    }
}

#[test]
fn v3_a_plugin_that_is_killed_at_any_point_of_a_chain_leaves_nothing_after_the_next_del() {
    for (point, verb) in points() {
        let bed = mortal();
        if verb == "ADD" {
            aim(&bed, "plugin", &point);
            let error = bed.caller.attach(&three(), &attachment()).unwrap_err();
            assert!(error.to_string().contains("signal: 9"), "{point}: {error}");
        } else {
            bed.caller.attach(&three(), &attachment()).unwrap();
            aim(&bed, "plugin", &point);
            let error = bed.detach().unwrap_err();
            assert!(error.to_string().contains("signal: 9"), "{point}: {error}");
            assert!(bed.has_records(), "{point}");
            bed.detach().unwrap();
        }
        assert_clean(&bed, &point);
    }
}

#[test]
fn v3_a_caller_that_is_killed_at_any_moment_leaves_what_the_next_del_cleans() {
    let bed = mortal();
    let moments = Moments::measure(pace::rounds(40, 6), || {
        assert!(bed.start("attach").wait().unwrap().success());
        bed.detach().unwrap();
    });
    for (round, moment) in moments.iter() {
        kill_after(&mut bed.job("attach"), moment).unwrap();
        assert!(made(&bed) == 0 || bed.has_records(), "round {round}");
        bed.caller.detach_all(&id("one"), NetnsFate::Stays).unwrap();
        assert_clean(&bed, &format!("round {round} after {moment:?}"));
    }
}

#[test]
fn v3_a_program_that_a_killed_callers_plugin_has_started_is_ended_before_the_del() {
    if !needs::root() || !needs::programs(&["setsid"]) {
        return;
    }
    let bed = mortal();
    let d = bed.folder.display();
    // It holds nothing, has left session and group, and is about to make something.
    bed.plugin("b", &format!(
        "[ $CNI_COMMAND = ADD ] && {{ setsid sh -c 'echo $$ > {d}/far; sleep 5; : > {d}/made/one.late' < /dev/null > /dev/null 2>&1 & \
         while [ ! -s {d}/far ]; do sleep 0.01; done; kill -9 $PPID; sleep 5; }}"
    ));
    assert!(!bed.start("attach").wait().unwrap().success());
    let far: i32 = bed.plugins.read("far").trim().parse().unwrap();
    assert!(lives(far));
    bed.detach().unwrap();
    wait_until("the end of the straggler", || !lives(far));
    assert_clean(&bed, "straggler");
}

/// The reference's bridge with an address and masquerading, and a plugin that never comes to its answer.
pub(crate) fn peer_network(folder: &Path) -> NetworkList {
    list(&format!(
        r#"{{"name":"net","cniVersion":"1.0.0","plugins":[
            {{"type":"bridge","bridge":"peer0","isGateway":true,"ipMasq":true,
              "ipam":{{"type":"host-local","subnet":"10.9.0.0/24","dataDir":"{}"}}}},
            {{"type":"c"}}]}}"#,
        folder.join("leases").display()
    ))
}

#[test]
fn v3_what_the_reference_plugins_made_for_a_killed_caller_is_cleaned_by_the_next_del() {
    let there = Path::new("/usr/lib/cni/bridge").exists();
    if !needs::root()
        || !needs::met(there, "needs the reference CNI plugins")
        || !needs::programs(&["iptables-save"])
    {
        return;
    }
    namespace::with_new_netns(|| {
        let bed = Bed::with(|options| {
            options.plugin_path.push("/usr/lib/cni".into());
            options.deadlines.add = pace::limit(Duration::from_secs(20));
        });
        bed.plugin("c", "[ $CNI_COMMAND = ADD ] && { kill -9 $PPID; sleep 5; }");
        let netns = namespace::new_anonymous_netns().unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd());
        std::fs::write(bed.folder.join("netns"), path).unwrap();
        assert!(!bed.start("attach peer").wait().unwrap().success());
        let veths = || {
            let links = Socket::route().unwrap().links().unwrap();
            links.iter().filter(|link| link.name.starts_with("veth")).count()
        };
        let leases = || {
            let entries = std::fs::read_dir(bed.folder.join("leases/net")).into_iter().flatten().flatten();
            entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("10.")).count()
        };
        let rules = || {
            let saved = std::process::Command::new("iptables-save").args(["-t", "nat"]).output().unwrap();
            String::from_utf8_lossy(&saved.stdout).matches("CNI-").count()
        };
        assert_eq!((veths(), leases()), (1, 1));
        assert!(rules() > 0);
        bed.caller.detach_all(&id("one"), NetnsFate::Stays).unwrap();
        assert_eq!((veths(), leases(), rules()), (0, 0, 0));
        assert!(!bed.has_records());
    })
    .unwrap();
}
