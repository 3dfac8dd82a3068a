//! 11: GC. 12: STATUS.

use cofferdam_cni::{Verb, Version};
use serde_json::{Value, json};

use super::{case, leaks};
use crate::case::Severity::{Must, Should};
use crate::case::{Case, Tried, applies, ensure};
use crate::process::Said;
use crate::snapshot::Snapshot;
use crate::stage::{Attached, Changes, Container, Stage};
use crate::talk::Talk;

pub(super) const CASES: &[Case] = &[
    case(Must, "11.valid", "2 GC", "GC leaves every valid attachment alone", valid),
    case(
        Should,
        "11.stale",
        "2 GC",
        "GC takes away what belongs to no valid attachment, and only that",
        stale,
    ),
    case(
        Must,
        "11.others",
        "2 GC",
        "GC does not mind attachments it never heard of, nor being called twice",
        others,
    ),
    case(Must, "11.networks", "2 GC", "GC of one network leaves another network alone", networks),
    case(
        Should,
        "11.no-list",
        "2 GC",
        "GC without a list of valid attachments is refused and changes nothing",
        no_list,
    ),
    case(Must, "11.traffic", "2 GC", "GC does not disturb what valid attachments are sending", undisturbed),
    case(Must, "12.ready", "2 STATUS", "STATUS succeeds when ADD would", ready),
    case(
        Should,
        "12.exhausted",
        "2 STATUS",
        "STATUS says 50 when no address is left, and recovers",
        exhausted,
    ),
];

/// How often GC is called while containers talk.
const COLLECTIONS: usize = 3;

fn exists(stage: &Stage<'_>) -> Tried {
    applies(stage.newest() >= Version::V1_1_0, "it does not speak 1.1.0")
}

fn gc(stage: &Stage<'_>, container: &Container, valid: Option<Vec<&Container>>) -> Said {
    let list = |valid: Vec<&Container>| -> Value {
        valid.iter().map(|one| json!({ "containerID": one.id, "ifname": one.ifname })).collect()
    };
    let config =
        valid.map(list).map(|list| json!({ "cni.dev/valid-attachments": list, "cni.dev/attachments": list }));
    stage.call(Verb::Gc, container, Changes { config, ..Changes::default() })
}

fn valid(stage: &Stage<'_>) -> Tried {
    exists(stage)?;
    let (one, two) = (stage.attach()?, stage.attach()?);
    let looks = || -> Vec<Snapshot> {
        [&one, &two]
            .map(|attached| stage.look_inside(&attached.container))
            .into_iter()
            .chain([stage.look()])
            .collect()
    };
    let before = looks();
    let said = gc(stage, &one.container, Some(vec![&one.container, &two.container]));
    ensure(said.succeeded(), || said.text())?;
    ensure(looks() == before, || "GC changed something, although everything was valid".into())?;
    stage.ensure_check(&one, "after GC")?;
    stage.ensure_check(&two, "after GC")
}

fn stale(stage: &Stage<'_>) -> Tried {
    exists(stage)?;
    let before = stage.warmed_up()?;
    let kept = stage.attach()?;
    let with_one = stage.look();
    let lost = stage.attach()?;
    // As after a reboot, or a runtime that forgot: nobody calls DEL.
    stage.lose(&lost.container);
    let said = gc(stage, &kept.container, Some(vec![&kept.container]));
    ensure(said.succeeded(), || said.text())?;
    if !stage.subject.profile.chained {
        stage.ensure_as_before(&with_one, "after GC with one of two valid")?;
    }
    stage.ensure_check(&kept, "after GC")?;
    let Attached { container, .. } = kept;
    stage.lose(&container);
    let said = gc(stage, &container, Some(Vec::new()));
    ensure(said.succeeded(), || said.text())?;
    stage.ensure_as_before(&before, "after GC with nothing valid")
}

fn others(stage: &Stage<'_>) -> Tried {
    exists(stage)?;
    let attached = stage.attach()?;
    let unknown = stage.container()?;
    for _ in 0..2 {
        let said = gc(stage, &attached.container, Some(vec![&unknown, &attached.container]));
        ensure(said.succeeded(), || said.text())?;
    }
    stage.ensure_check(&attached, "after GC")
}

fn networks(stage: &Stage<'_>) -> Tried {
    exists(stage)?;
    let attached = stage.attach()?;
    let mut elsewhere = stage.again(&attached.container);
    elsewhere.network = "another".into();
    let said = gc(stage, &elsewhere, Some(Vec::new()));
    ensure(said.succeeded(), || said.text())?;
    stage.ensure_check(&attached, "after GC of another network")
}

fn no_list(stage: &Stage<'_>) -> Tried {
    exists(stage)?;
    let attached = stage.attach()?;
    let before = stage.look();
    let said = gc(stage, &attached.container, None);
    stage.ensure_as_before(&before, "after GC without a list")?;
    ensure(!said.succeeded(), || format!("without cni.dev/valid-attachments: {}", said.text()))
}

fn undisturbed(stage: &Stage<'_>) -> Tried {
    exists(stage)?;
    let (one, two) = (stage.attach()?, stage.attach()?);
    let lost = stage.attach()?;
    stage.lose(&lost.container);
    let talk = Talk::between(&one, &two);
    applies(talk.is_some(), "two of its containers cannot talk to each other")?;
    let Some(talk) = talk else { return Ok(()) };
    let talked = talk.while_doing(|| {
        for _ in 0..COLLECTIONS {
            let said = gc(stage, &one.container, Some(vec![&one.container, &two.container]));
            ensure(said.succeeded(), || said.text())?;
        }
        Ok(())
    });
    let exchanges = talked?
        .map_err(|error| crate::case::End::Failed(format!("a connection broke during GC: {error}")))?;
    stage.note(format!("{exchanges} exchanges during {COLLECTIONS} calls"));
    Ok(())
}

fn ready(stage: &Stage<'_>) -> Tried {
    exists(stage)?;
    let container = stage.container()?;
    let said = stage.call(Verb::Status, &container, Changes::default());
    ensure(said.succeeded(), || said.text())?;
    let attached = stage.add(container)?;
    stage.detach(&attached)
}

fn exhausted(stage: &Stage<'_>) -> Tried {
    exists(stage)?;
    let changes = || Changes { config: leaks::one_address(stage), ..Changes::default() };
    applies(changes().config.is_some(), "its addresses do not come from host-local")?;
    let container = stage.container()?;
    let status = || stage.call(Verb::Status, &container, changes());
    let added = stage.call(Verb::Add, &container, changes());
    ensure(added.succeeded(), || added.text())?;
    let said = status();
    ensure(said.code() == Some(50), || format!("with no address left: {}", said.text()))?;
    let said = stage.call(Verb::Del, &container, changes());
    ensure(said.succeeded(), || said.text())?;
    let said = status();
    ensure(said.succeeded(), || format!("with its address back: {}", said.text()))
}
