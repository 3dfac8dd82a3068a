//! 2: results in every version. 3: ADD twice.

use cofferdam_cni::{AddResult, Verb, Version};
use serde_json::Value;

use super::case;
use crate::case::Severity::{Must, Should};
use crate::case::{Case, Tried, applies, ensure};
use crate::stage::{Attached, Changes, Stage};

pub(super) const CASES: &[Case] = &[
    case(
        Must,
        "2.versions",
        "5",
        "the result of ADD is one of the version that the configuration has",
        in_each,
    ),
    case(
        Should,
        "2.sandbox",
        "5",
        "the result names the interface and the namespace that it was asked for",
        sandbox,
    ),
    case(Must, "2.indices", "5", "every address that names an interface names one of the result", indices),
    case(
        Should,
        "3.refused",
        "2 ADD",
        "a second ADD of one interface is refused, or changes nothing",
        refused,
    ),
];

fn in_each(stage: &Stage<'_>) -> Tried {
    let chains = Version::V0_3_0;
    for version in stage.versions.iter().copied().filter(|v| !stage.subject.profile.chained || *v >= chains) {
        let container = stage.container()?;
        let changes = || Changes { version: Some(version), ..Changes::default() };
        let said = stage.call(Verb::Add, &container, changes());
        ensure(said.succeeded(), || format!("{version}: {}", said.text()))?;
        let value = said.value();
        ensure(value["cniVersion"] == version.to_string(), || format!("{version} wanted: {}", said.text()))?;
        let parsed = AddResult::parse(&said.stdout, version);
        ensure(parsed.is_ok(), || format!("{version}: {parsed:?}: {}", said.text()))?;
        if let Some(why) = misfit(&value, version) {
            return ensure(false, || format!("no result of version {version}: {why}: {}", said.text()));
        }
        let attached = Attached { container, result: value };
        let changes = Changes { previous: Some(&attached.result), ..changes() };
        let said = stage.call(Verb::Del, &attached.container, changes);
        ensure(said.succeeded(), || format!("{version}: {}", said.text()))?;
        stage.end(attached.container);
    }
    Ok(())
}

/// What is in the result that its version does not have, or the reverse.
fn misfit(result: &Value, version: Version) -> Option<&'static str> {
    let has_any = |list: &Value, keys: &[&str]| {
        list.as_array().into_iter().flatten().any(|item| keys.iter().any(|key| item.get(key).is_some()))
    };
    let is_old = version < Version::V0_3_0;
    if is_old && (result.get("ips").is_some() || result.get("interfaces").is_some()) {
        return Some("it has ips or interfaces");
    }
    if !is_old && (result.get("ip4").is_some() || result.get("ip6").is_some()) {
        return Some("it has ip4 or ip6");
    }
    let ips = result["ips"].as_array().map_or(&[][..], Vec::as_slice);
    if version >= Version::V1_0_0 && has_any(&result["ips"], &["version"]) {
        return Some("an address says its family");
    }
    if !is_old && version < Version::V1_0_0 && !ips.iter().all(|ip| ip["version"].is_string()) {
        return Some("an address does not say its family");
    }
    if version < Version::V1_1_0 && has_any(&result["interfaces"], &["mtu", "socketPath", "pciID"]) {
        return Some("an interface has a field of version 1.1.0");
    }
    None
}

fn sandbox(stage: &Stage<'_>) -> Tried {
    let attached = stage.attach()?;
    let interfaces = attached.result["interfaces"].as_array().cloned().unwrap_or_default();
    applies(!interfaces.is_empty(), "it makes no interface")?;
    let container = &attached.container;
    let is_ours = |interface: &Value| {
        interface["name"] == container.ifname.as_str()
            && interface["sandbox"].as_str().is_some_and(|sandbox| container.netns.as_os_str() == sandbox)
    };
    ensure(interfaces.iter().any(is_ours), || {
        format!("no {} in {}: {interfaces:?}", container.ifname, container.netns.display())
    })
}

fn indices(stage: &Stage<'_>) -> Tried {
    let attached = stage.attach()?;
    let count = attached.result["interfaces"].as_array().map_or(0, Vec::len);
    let ips = attached.result["ips"].as_array().cloned().unwrap_or_default();
    for index in ips.iter().filter_map(|ip| ip.get("interface")) {
        let fits = index.as_u64().and_then(|index| usize::try_from(index).ok()).is_some_and(|at| at < count);
        ensure(fits, || format!("interface {index} of {count}: {}", attached.result))?;
    }
    Ok(())
}

fn refused(stage: &Stage<'_>) -> Tried {
    let attached = stage.attach()?;
    let (host, inside) = (stage.look(), stage.look_inside(&attached.container));
    let again = stage.call(Verb::Add, &attached.container, Changes::default());
    let when = format!("after the second ADD ({})", again.text());
    stage.ensure_as_before(&host, &when)?;
    stage.ensure_inside_as_before(&attached.container, &inside, &when)?;
    stage.ensure_check(&attached, &when)
}
