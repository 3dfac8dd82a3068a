//! 7: CHECK.

use cofferdam_cni::Verb;

use super::case;
use crate::case::Severity::{Must, Should};
use crate::case::{Case, End, Tried, applies, ensure};
use crate::stage::{Changes, Stage};
use crate::tamper;

pub(super) const CASES: &[Case] = &[
    case(Must, "7.passes", "2 CHECK", "CHECK passes right after ADD", passes),
    case(
        Should,
        "7.changes-nothing",
        "2 CHECK",
        "CHECK changes nothing, whether it passes or not",
        changes_nothing,
    ),
    case(Should, "7.deleted", "2 CHECK", "CHECK after DEL fails", deleted),
    case(Should, "7.tampered", "2 CHECK", "CHECK sees every single manipulation of the attachment", tampered),
];

fn exists(stage: &Stage<'_>) -> Tried {
    applies(stage.has_check(), "it speaks no version with CHECK")
}

fn passes(stage: &Stage<'_>) -> Tried {
    exists(stage)?;
    let attached = stage.attach()?;
    let said = stage.check(&attached);
    ensure(said.succeeded(), || said.text())
}

fn changes_nothing(stage: &Stage<'_>) -> Tried {
    exists(stage)?;
    let attached = stage.attach()?;
    let unattached = stage.container()?;
    let looks = || (stage.look(), stage.look_inside(&attached.container));
    let before = looks();
    let said = [
        stage.check(&attached),
        stage.call(
            Verb::Check,
            &unattached,
            Changes { previous: unattached.given.as_ref(), ..Changes::default() },
        ),
    ];
    let after = looks();
    let differences = [before.0.all_differences(&after.0), before.1.all_differences(&after.1)].concat();
    ensure(differences.is_empty(), || {
        format!("{}; {}:\n{}", said[0].text(), said[1].text(), differences.join("\n"))
    })
}

fn deleted(stage: &Stage<'_>) -> Tried {
    exists(stage)?;
    let attached = stage.attach()?;
    let (host, inside) = (stage.look(), stage.look_inside(&attached.container));
    stage.detach(&attached)?;
    let changed = stage.look() != host || stage.look_inside(&attached.container) != inside;
    applies(changed, "it keeps nothing that DEL takes away")?;
    let said = stage.check(&attached);
    ensure(!said.succeeded(), || format!("after DEL, {}", said.text()))
}

fn tampered(stage: &Stage<'_>) -> Tried {
    exists(stage)?;
    let names = &stage.subject.profile.tampers;
    applies(!names.is_empty(), "the profile names no manipulation")?;
    let (mut seen, mut missed) = (Vec::new(), Vec::new());
    for tamper in names.iter().filter_map(|name| tamper::find(name)) {
        let attached = stage.attach()?;
        if !stage.check(&attached).succeeded() {
            return Err(End::Failed(format!("CHECK fails before {} is tried", tamper.name)));
        }
        if tamper.apply(stage, &attached) {
            let list = if stage.check(&attached).succeeded() { &mut missed } else { &mut seen };
            list.push(tamper.name);
        }
        // A fresh start for the next: what was shared may have been manipulated.
        stage.detach(&attached)?;
        stage.end(attached.container);
        stage.forget_shared();
    }
    applies(!(seen.is_empty() && missed.is_empty()), "there was nothing to manipulate")?;
    stage.note(format!("sees {}", seen.join(", ")));
    ensure(missed.is_empty(), || format!("does not see: {}; sees: {}", missed.join(", "), seen.join(", ")))
}
