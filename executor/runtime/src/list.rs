//! state and list.

use cofferdam_plan::ContainerId;

use crate::error::Error;
use crate::runtime::Runtime;
use crate::state::{Record, State, file_error};

impl Runtime {
    /// The state of a container. runtime-spec runtime.md, "Query State".
    pub fn state(&self, id: &ContainerId) -> Result<State, Error> {
        let directory = self.directory(id);
        let record = Record::load(&directory, id.as_str())?;
        record.state(record.status(&directory))
    }

    /// The state of every container of this root, by id. What cannot be read is left out.
    pub fn list(&self) -> Result<Vec<State>, Error> {
        Ok(self.ids()?.iter().filter_map(|id| self.state(id).ok()).collect())
    }

    /// The ids that have a directory, sorted, whether what is in it can be read or not.
    pub fn ids(&self) -> Result<Vec<ContainerId>, Error> {
        let failed = |error: std::io::Error| file_error("reading", self.root(), &error);
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(self.root()).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            ids.extend(entry.file_name().to_str().and_then(|name| ContainerId::parse(name).ok()));
        }
        ids.sort();
        Ok(ids)
    }

    /// The configuration that a container was created with.
    pub fn spec(&self, id: &ContainerId) -> Result<oci_spec::runtime::Spec, Error> {
        Record::load(&self.directory(id), id.as_str())?.spec.take()
    }
}
