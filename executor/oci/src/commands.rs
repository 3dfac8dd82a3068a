//! What each command does: one file a family.

pub(crate) mod checkpoint;
pub(crate) mod create;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod features;
pub(crate) mod list;
pub(crate) mod manage;
pub(crate) mod spec;
pub(crate) mod update;

use crate::arguments::Said;
use crate::failed::Failed;
use crate::global::Global;
use crate::log::Log;

/// One call of the program.
pub(crate) struct Call<'a> {
    pub global: &'a Global,
    pub said: &'a Said,
    pub log: &'a Log,
}

impl Call<'_> {
    fn warn(&self, warnings: &[String]) {
        warnings.iter().for_each(|warning| self.log.warning(warning));
    }

    fn remark(&self, remarks: &[String]) {
        remarks.iter().for_each(|remark| self.log.remark(remark));
    }
}

/// What `--version` prints: go-runc reads the lines by their first words.
pub(crate) fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "runc version {version}\ncommit: cofferdam-oci {version}\nspec: {}\n",
        cofferdam_runtime::SPEC_VERSION
    )
}

/// What enters a container must not be a file that the container could overwrite (CVE-2019-5736).
fn seal() -> Result<(), Failed> {
    Ok(cofferdam_runtime::become_sealed()?)
}
