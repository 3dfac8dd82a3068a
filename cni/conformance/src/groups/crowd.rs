//! 8: many at once. 9: an address that is used again. 10: two networks.

use std::collections::BTreeSet;

use cofferdam_cni::Verb;

use super::case;
use crate::case::Severity::Must;
use crate::case::{Case, Tried, applies, ensure};
use crate::process::Said;
use crate::stage::{Attached, Changes, Stage};

pub(super) const CASES: &[Case] = &[
    case(
        Must,
        "8.parallel",
        "3",
        "twenty containers at once: ADD, CHECK and DEL work and leave nothing",
        parallel,
    ),
    case(Must, "8.addresses", "4", "twenty containers at once get twenty addresses", addresses),
    case(Must, "9.late-del", "2 DEL", "a late DEL leaves the new holder of its address alone", late_del),
    case(Must, "10.networks", "3", "DEL on one network leaves the container's other network alone", networks),
];

const MANY: usize = 20;

/// The stage is one thread's: what the threads need is taken out of it first.
fn at_once(stage: &Stage<'_>, verb: Verb, all: &[Attached]) -> Vec<Said> {
    let calls: Vec<_> = all
        .iter()
        .map(|one| {
            let previous = Some(&one.result).filter(|result| !result.is_null());
            stage.prepared(verb, &one.container, Changes { previous, ..Changes::default() })
        })
        .collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = calls.iter().map(|call| scope.spawn(move || call.run())).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

fn many(stage: &Stage<'_>) -> Result<Vec<Attached>, crate::case::End> {
    let fresh = || Ok(Attached { container: stage.container()?, result: serde_json::Value::Null });
    let mut all = (0..MANY).map(|_| fresh()).collect::<Result<Vec<_>, crate::case::End>>()?;
    for (said, one) in at_once(stage, Verb::Add, &all).into_iter().zip(&mut all) {
        ensure(said.succeeded(), || said.text())?;
        one.result = said.value();
    }
    Ok(all)
}

fn parallel(stage: &Stage<'_>) -> Tried {
    let before = stage.warmed_up()?;
    let all = many(stage)?;
    let checked = if stage.has_check() { at_once(stage, Verb::Check, &all) } else { Vec::new() };
    for said in checked.into_iter().chain(at_once(stage, Verb::Del, &all)) {
        ensure(said.succeeded(), || said.text())?;
    }
    for one in all {
        stage.end(one.container);
    }
    stage.ensure_as_before(&before, "after twenty at once")
}

fn addresses(stage: &Stage<'_>) -> Tried {
    applies(!stage.subject.profile.chained, "the addresses are the plugin's before it")?;
    let all = many(stage)?;
    let each = all.iter().flat_map(|one| one.result["ips"].as_array().cloned().unwrap_or_default());
    let each: Vec<String> = each.map(|ip| ip["address"].to_string()).collect();
    applies(!each.is_empty(), "it gives no addresses")?;
    let different: BTreeSet<&String> = each.iter().collect();
    ensure(different.len() == each.len(), || format!("{} of {} differ", different.len(), each.len()))
}

fn late_del(stage: &Stage<'_>) -> Tried {
    applies(
        stage.subject.profile.chained,
        "it takes its addresses from a manager that has not given them back",
    )?;
    applies(stage.has_check(), "without CHECK nobody can tell")?;
    let old = stage.attach()?;
    let mut container = stage.container()?;
    // The old one's namespace has gone, and with it what held the address.
    if let (Some(given), Some(old)) = (&mut container.given, &old.container.given) {
        given["ips"] = old["ips"].clone();
    }
    stage.readdress(&container)?;
    let new = stage.add(container)?;
    stage.ensure_check(&new, "before the late DEL")?;
    stage.detach(&old)?;
    stage.ensure_check(&new, "after the late DEL of another container that had its address")
}

fn networks(stage: &Stage<'_>) -> Tried {
    applies(stage.subject.profile.ifname == "eth0", "it works on one interface only")?;
    let first = stage.attach()?;
    let mut second = stage.again(&first.container);
    second.network = "another".into();
    second.ifname = "eth1".into();
    if stage.subject.profile.chained {
        stage.give(&mut second, 200)?;
    }
    let second = stage.add(second)?;
    stage.ensure_check(&first, "with a second network")?;
    stage.detach(&second)?;
    stage.ensure_check(&first, "after DEL on the second network")?;
    let (host, inside) = (stage.look(), stage.look_inside(&first.container));
    stage.detach(&second)?;
    stage.ensure_as_before(&host, "after a second DEL on the second network")?;
    stage.ensure_inside_as_before(&first.container, &inside, "after a second DEL on the second network")
}
