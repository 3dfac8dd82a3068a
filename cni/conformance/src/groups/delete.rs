//! 4: DEL succeeds whatever is gone already, and makes nothing.

use cofferdam_cni::{Verb, Version};

use super::case;
use crate::case::Severity::{Must, Should};
use crate::case::{Case, Tried, applies, ensure};
use crate::stage::{Attached, Changes, Stage, UPLINK, in_version};

pub(super) const CASES: &[Case] = &[
    case(Must, "4.twice", "2 DEL", "a second DEL succeeds", twice),
    case(Must, "4.unknown", "2 DEL", "DEL of what was never added succeeds", unknown),
    case(Must, "4.no-netns", "2 DEL", "DEL without a namespace succeeds", no_netns),
    case(
        Must,
        "4.netns-gone",
        "2 DEL",
        "DEL with a namespace that is gone succeeds and makes no file there",
        gone,
    ),
    case(
        Must,
        "4.netns-file",
        "2 DEL",
        "DEL with a plain file in the namespace's place succeeds",
        plain_file,
    ),
    case(Should, "4.no-result", "2 DEL", "DEL without prevResult cleans up all the same", no_result),
    case(Should, "4.other-version", "2 DEL", "DEL takes a prevResult of another version", other_version),
    case(Must, "4.master-gone", "2 DEL", "DEL succeeds after the host's uplink has gone", master_gone),
];

fn twice(stage: &Stage<'_>) -> Tried {
    let attached = stage.attach()?;
    stage.detach(&attached)?;
    stage.detach(&attached)
}

fn unknown(stage: &Stage<'_>) -> Tried {
    let container = stage.container()?;
    let said = stage.call(Verb::Del, &container, Changes::default());
    ensure(said.succeeded(), || said.text())
}

fn no_netns(stage: &Stage<'_>) -> Tried {
    let attached = stage.attach()?;
    let changes = Changes {
        previous: Some(&attached.result),
        environment: vec![("CNI_NETNS", String::new())],
        ..Changes::default()
    };
    let said = stage.call(Verb::Del, &attached.container, changes);
    ensure(said.succeeded(), || said.text())
}

fn gone(stage: &Stage<'_>) -> Tried {
    let attached = stage.attach()?;
    let path = attached.container.netns.clone();
    stage.lose(&attached.container);
    stage.detach(&attached)?;
    stage.detach(&attached)?;
    ensure(!path.exists(), || format!("DEL made a file at the namespace's path {}", path.display()))
}

fn plain_file(stage: &Stage<'_>) -> Tried {
    let attached = stage.attach()?;
    let path = &attached.container.netns;
    stage.lose(&attached.container);
    ensure(std::fs::write(path, "").is_ok(), || "cannot put a file there".into())?;
    stage.detach(&attached)
}

fn no_result(stage: &Stage<'_>) -> Tried {
    let before = stage.warmed_up()?;
    let attached = stage.attach()?;
    let said = stage.call(Verb::Del, &attached.container, Changes::default());
    ensure(said.succeeded(), || said.text())?;
    stage.end(attached.container);
    stage.ensure_as_before(&before, "after DEL without prevResult")
}

fn other_version(stage: &Stage<'_>) -> Tried {
    let other = stage
        .versions
        .iter()
        .copied()
        .rev()
        .find(|version| (Version::V0_4_0..stage.newest()).contains(version));
    applies(other.is_some(), "it speaks one version with prevResult in DEL")?;
    let attached = stage.attach()?;
    let mut config = stage.config(Verb::Del, &attached.container, &Changes::default());
    config["prevResult"] = in_version(&attached.result, other.unwrap_or(Version::NEWEST));
    let said = stage.call_raw(Verb::Del, &attached.container, config.to_string().as_bytes());
    ensure(said.succeeded(), || said.text())
}

fn master_gone(stage: &Stage<'_>) -> Tried {
    let attached: Attached = stage.attach()?;
    if let Err(how) = stage.shell(&format!("ip link delete {UPLINK}"), &[]) {
        // Moved into the container, for one.
        return applies(false, &format!("the uplink cannot be taken away: {how}"));
    }
    stage.detach(&attached)
}
