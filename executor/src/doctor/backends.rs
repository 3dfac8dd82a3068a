//! How layers can be kept and writable layers limited: each backend and each quota, tried or looked for.

use std::path::Path;

use cofferdam_image::{Backend, probe_quotas};

use super::Check;

const AREA: &str = "files";

pub(super) fn examine(place: &Path) -> Vec<Check> {
    let backends = Backend::ALL.into_iter().map(|backend| {
        let subject = format!("layers, {backend}");
        match backend.is_supported(place) {
            Ok(()) => Check::works(AREA, subject, format!("--layers {backend}")),
            Err(reason) => Check::missing(AREA, subject, reason.to_string(), "another backend keeps layers"),
        }
    });
    let quotas = probe_quotas(place);
    let used = quotas.iter().find(|quota| quota.found.is_ok()).map(|quota| quota.name);
    let quotas = quotas.into_iter().map(move |quota| {
        let subject = format!("writable layer, {}", quota.name);
        match quota.found {
            Ok(found) if used == Some(quota.name) => {
                Check::works(AREA, subject, format!("{found}; this is the way that is taken"))
            }
            Ok(found) => Check::works(AREA, subject, found),
            Err(reason) if used.is_some() => Check::degraded(AREA, subject, reason, "another way is taken"),
            Err(reason) => Check::missing(AREA, subject, reason, "--storage-opt size= is refused")
                .remedy("install e2fsprogs; load the loop module"),
        }
    });
    backends.chain(quotas).collect()
}
