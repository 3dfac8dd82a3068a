//! 5: what is left after DEL. 6: ADD that fails.

use std::time::Duration;

use cofferdam_cni::Verb;
use serde_json::json;

use super::case;
use crate::case::Severity::{Must, Quality, Should};
use crate::case::{Case, Tried, applies, ensure};
use crate::process::Said;
use crate::stage::{Changes, Container, Stage};

pub(super) const CASES: &[Case] = &[
    case(Must, "5.host", "2 DEL", "DEL takes away what ADD made of the attachment on the host", host),
    case(Must, "5.container", "2 DEL", "DEL takes away what ADD made in the container", container),
    case(
        Must,
        "5.netns-gone",
        "2 DEL",
        "DEL after the namespace has gone leaves nothing on the host",
        netns_gone,
    ),
    case(Must, "5.no-netns", "2 DEL", "DEL that is told no namespace leaves nothing on the host", no_netns),
    case(
        Must,
        "6.ipam",
        "4",
        "ADD whose address manager fails leaves nothing, so that it can be tried again",
        ipam,
    ),
    case(
        Quality,
        "6.exhausted",
        "5 Error",
        "an ADD for which no address is left says so, not with code 999",
        exhausted,
    ),
    case(
        Must,
        "6.bad-netns",
        "2 ADD",
        "ADD with a namespace that is none fails and makes nothing",
        bad_netns,
    ),
    case(
        Must,
        "6.own-netns",
        "5 Error",
        "ADD aimed at the host's own namespace fails and makes nothing",
        own_netns,
    ),
    case(
        Must,
        "6.name-taken",
        "2 ADD",
        "ADD of a name that is taken fails and leaves its holder alone",
        name_taken,
    ),
    case(Must, "6.killed", "2 DEL", "an ADD that is killed leaves only what DEL takes away", killed),
    case(Should, "6.clean", "2 ADD", "an ADD that fails gives back what it had allocated", gives_back),
];

/// At how many moments of its ADD a plugin is killed.
const KILLS: u32 = 8;
/// An address manager that never has any.
const FAILING: &str = "cofferdam-test-failing";
const FAILING_SCRIPT: &str = r#"cat >/dev/null
case "$CNI_COMMAND" in ADD) echo '{"cniVersion":"1.0.0","code":101,"msg":"no address on purpose"}'; exit 1 ;; esac
"#;

fn host(stage: &Stage<'_>) -> Tried {
    let before = stage.warmed_up()?;
    let attached = stage.attach()?;
    stage.detach(&attached)?;
    stage.end(attached.container);
    stage.ensure_as_before(&before, "after DEL, the container gone")
}

fn container(stage: &Stage<'_>) -> Tried {
    let container = stage.container()?;
    let before = stage.look_inside(&container);
    let attached = stage.add(container)?;
    stage.detach(&attached)?;
    stage.ensure_inside_as_before(&attached.container, &before, "in the container after DEL")
}

fn netns_gone(stage: &Stage<'_>) -> Tried {
    let before = stage.warmed_up()?;
    let attached = stage.attach()?;
    stage.lose(&attached.container);
    stage.detach(&attached)?;
    stage.ensure_as_before(&before, "after DEL with a namespace that is gone")
}

fn no_netns(stage: &Stage<'_>) -> Tried {
    let before = stage.warmed_up()?;
    let attached = stage.attach()?;
    let previous = Some(&attached.result);
    let environment = vec![("CNI_NETNS", String::new())];
    let said =
        stage.call(Verb::Del, &attached.container, Changes { previous, environment, ..Changes::default() });
    ensure(said.succeeded(), || said.text())?;
    stage.end(attached.container);
    stage.ensure_as_before(&before, "after DEL without a namespace, the container gone")
}

/// ADD with the failing address manager in the place of the real one.
fn add_without_addresses(stage: &Stage<'_>, container: &Container) -> Result<Said, crate::case::End> {
    let ipam = stage.subject.profile.ipam().filter(|kind| stage.subject.profile.config["type"] != **kind);
    applies(ipam.is_some(), "it has no address manager")?;
    stage.place_plugin(FAILING, FAILING_SCRIPT)?;
    let config = Some(json!({ "ipam": { "type": FAILING } }));
    let said = stage.call(Verb::Add, container, Changes { config, ..Changes::default() });
    ensure(!said.succeeded(), || format!("without an address: {}", said.text()))?;
    Ok(said)
}

fn ipam(stage: &Stage<'_>) -> Tried {
    let container = stage.container()?;
    let before = stage.look_inside(&container);
    let said = add_without_addresses(stage, &container)?;
    let when = format!("in the container after an {}", said.text());
    stage.ensure_inside_as_before(&container, &before, &when)?;
    let attached = stage.add(container)?;
    stage.detach(&attached)
}

fn gives_back(stage: &Stage<'_>) -> Tried {
    let before = stage.warmed_up()?;
    let container = stage.container()?;
    let said = add_without_addresses(stage, &container)?;
    stage.end(container);
    stage.ensure_as_before(&before, &format!("after an {}, without any DEL", said.text()))
}

fn exhausted(stage: &Stage<'_>) -> Tried {
    let (first, second) = (stage.container()?, stage.container()?);
    let changes = || Changes { config: one_address(stage), ..Changes::default() };
    applies(changes().config.is_some(), "its addresses do not come from host-local")?;
    let said = stage.call(Verb::Add, &first, changes());
    ensure(said.succeeded(), || said.text())?;
    let said = stage.call(Verb::Add, &second, changes());
    ensure(!said.succeeded(), || format!("for the second container of one address: {}", said.text()))?;
    ensure(said.code().is_some_and(|code| code != 999), || said.text())
}

/// The configuration's address manager with one address to give.
pub(super) fn one_address(stage: &Stage<'_>) -> Option<serde_json::Value> {
    if stage.subject.profile.ipam() != Some("host-local") {
        return None;
    }
    let range = json!({ "subnet": "10.98.0.0/30", "rangeStart": "10.98.0.2", "rangeEnd": "10.98.0.2" });
    Some(json!({ "ipam": { "type": "host-local", "dataDir": stage.data(), "ranges": [[range]] } }))
}

fn bad_netns(stage: &Stage<'_>) -> Tried {
    let file = stage.data().join("no-namespace");
    ensure(std::fs::write(&file, "").is_ok(), || "cannot make a file".into())?;
    let before = stage.warmed_up()?;
    for path in [file.display().to_string(), "/nowhere/at/all".into()] {
        let container = stage.container()?;
        let environment = vec![("CNI_NETNS", path.clone())];
        let said = stage.call(Verb::Add, &container, Changes { environment, ..Changes::default() });
        ensure(!said.succeeded(), || format!("with {path}: {}", said.text()))?;
        stage.end(container);
        stage.ensure_as_before(&before, &format!("after an ADD into {path}"))?;
    }
    Ok(())
}

fn own_netns(stage: &Stage<'_>) -> Tried {
    let before = stage.warmed_up()?;
    let container = stage.container()?;
    let environment = vec![("CNI_NETNS", "/proc/self/ns/net".to_owned())];
    let said = stage.call(Verb::Add, &container, Changes { environment, ..Changes::default() });
    ensure(!said.succeeded(), || said.text())?;
    stage.end(container);
    stage.ensure_as_before(&before, &format!("after an {}", said.text()))
}

fn name_taken(stage: &Stage<'_>) -> Tried {
    let makes_one = !stage.subject.profile.chained && stage.subject.profile.ifname != "lo";
    let container = stage.container()?;
    let lines = "nsenter --net=$NETNS ip link add $IF type bridge";
    let variables = [("NETNS", container.netns.display().to_string()), ("IF", container.ifname.clone())];
    applies(makes_one && stage.shell(lines, &variables).is_ok(), "it makes no interface of that name")?;
    let before = stage.look_inside(&container);
    let said = stage.call(Verb::Add, &container, Changes::default());
    if said.succeeded() && said.value()["interfaces"].as_array().is_none_or(Vec::is_empty) {
        return applies(false, "it makes no interface");
    }
    ensure(!said.succeeded(), || said.text())?;
    stage.ensure_inside_as_before(&container, &before, &format!("after an {}", said.text()))
}

fn killed(stage: &Stage<'_>) -> Tried {
    let before = stage.warmed_up()?;
    let container = stage.container()?;
    let said = stage.call(Verb::Add, &container, Changes::default());
    ensure(said.succeeded(), || said.text())?;
    let attached = crate::stage::Attached { result: said.value(), container };
    stage.detach(&attached)?;
    stage.end(attached.container);
    for moment in 1..=KILLS {
        let container = stage.container()?;
        let kill_after = Some(said.elapsed * moment / (KILLS + 1)).filter(|after| *after > Duration::ZERO);
        let _ = stage.call(Verb::Add, &container, Changes { kill_after, ..Changes::default() });
        let previous = container.given.as_ref();
        let deleted = stage.call(Verb::Del, &container, Changes { previous, ..Changes::default() });
        let when = || format!("after ADD was killed {moment}/{} of its time in", KILLS + 1);
        ensure(deleted.succeeded(), || format!("{}: {}", when(), deleted.text()))?;
        stage.end(container);
        stage.ensure_as_before(&before, &when())?;
    }
    Ok(())
}
