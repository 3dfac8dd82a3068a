//! A container's configuration as its state file keeps it: most operations on a container do not look into it, so it is read
//! when one does.

use std::sync::OnceLock;

use oci_spec::runtime::Spec;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::error::Error;

/// The configuration: its text, or what it says, or both. Each is made of the other once.
#[derive(Debug, Clone)]
pub struct Configuration {
    text: OnceLock<Box<RawValue>>,
    /// Boxed: it is large, and the record that holds it is handed from one to the next.
    spec: OnceLock<Box<Spec>>,
}

impl Configuration {
    /// What it says.
    pub(crate) fn get(&self) -> Result<&Spec, Error> {
        if let (None, Some(text)) = (self.spec.get(), self.text.get()) {
            let spec: Spec = serde_json::from_str(text.get()).map_err(|error| {
                Error::Conflict(format!("the configuration in the container's state: {error}"))
            })?;
            return Ok(self.spec.get_or_init(|| spec.into()));
        }
        Ok(self.spec.get_or_init(Box::default))
    }

    /// What it says, to be changed.
    pub(crate) fn change(&mut self) -> Result<&mut Spec, Error> {
        self.get()?;
        self.text.take();
        self.spec
            .get_mut()
            .map(Box::as_mut)
            .ok_or_else(|| Error::Conflict("the container has no configuration".into()))
    }

    /// What it says, for good.
    pub(crate) fn take(self) -> Result<Spec, Error> {
        self.get()?;
        Ok(*self.spec.into_inner().unwrap_or_default())
    }
}

impl From<Spec> for Configuration {
    fn from(spec: Spec) -> Self {
        Self { text: OnceLock::new(), spec: OnceLock::from(Box::new(spec)) }
    }
}

impl Serialize for Configuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.text.get().is_none() {
            let text = serde_json::value::to_raw_value(&self.spec.get()).map_err(S::Error::custom)?;
            let _ = self.text.set(text);
        }
        self.text.get().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Configuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { text: OnceLock::from(Box::deserialize(deserializer)?), spec: OnceLock::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_written_as_it_came_until_it_is_changed() {
        let text = r#"{"ociVersion":"1.0.2",  "hostname":"a"}"#;
        let mut kept: Configuration = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&kept).unwrap(), text);
        assert_eq!(kept.get().unwrap().hostname().as_deref(), Some("a"));
        kept.change().unwrap().set_hostname(Some("b".into()));
        assert!(serde_json::to_string(&kept).unwrap().contains(r#""hostname":"b""#));
        let wrong: Configuration = serde_json::from_str(r#"{"ociVersion":1}"#).unwrap();
        assert!(wrong.get().unwrap_err().to_string().contains("ociVersion") || wrong.take().is_err());
    }
}
